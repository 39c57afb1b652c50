"""Writing changes of the log into tables: folded, one statement per table and chunk, tables side by side."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from google.api_core import exceptions
from google.cloud import bigquery

from adapters.bigquery.client import passes, plain_errors, run
from adapters.bigquery.merge import CHUNK_ROWS, Merge, forget_sql, merge_of, merge_sql
from adapters.bigquery.tables import dataset_of, delete_dataset
from application.ports import Away
from projections.fold import Folded, fold
from projections.rows import Change, Scope, Table

Repair = Callable[[str, Table, Exception, Callable[[], object]], None]
"""Given the dataset, the table, why a statement failed and how to do it again: mends that, or raises the error."""
Erased = Callable[[str], bool]
"""Whether a customer was erased, as the log says now, however far it was followed."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What a stretch of the log does to one table: what some customers had there goes, then rows are merged."""

    dataset: str
    table: Table
    forgotten: Sequence[tuple[str, int]] = ()
    """Customers, each with the position before which its rows go."""
    merge: Merge | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stretch of the log does: datasets of customers go, and each table is written by itself."""

    gone: Sequence[str]
    writings: Sequence[Writing]


def nobody(_customer_id: str) -> bool:
    """The answer of who knows of no erasures."""
    return False


def _beyond_repair(_dataset: str, _table: Table, error: Exception, _again: Callable[[], object]) -> None:
    raise error


class ChangeWriter:
    """Writes into the tables `{dataset}.{table}{suffix}` of one project. Threads that call it write different tables.

    The tables of customers have writers of their own where the central ones are not to wait behind them.

    The dataset of a customer who was `erased` is not missed: what an earlier part of the log would write there is
    passed over.
    """

    def __init__(
        self,
        client: bigquery.Client,
        project: str,
        central_dataset: str,
        writers: ThreadPoolExecutor,
        *,
        customers_writers: ThreadPoolExecutor | None = None,
        suffix: str = "",
        repair: Repair = _beyond_repair,
        erased: Erased = nobody,
    ) -> None:
        self._client = client
        self._project = project
        self._central = central_dataset
        self._writers = writers
        self._customers_writers = customers_writers or writers
        self._suffix = suffix
        self._repair = repair
        self._erased = erased

    def plan(self, changes: Sequence[Change]) -> Plan:
        """What is to be written; raises `ValueError` for a value that a table cannot hold."""
        forgotten, changed = fold(changes)
        # A customer's dataset goes as a whole, whatever else is in it, and nothing comes into it any more.
        gone = {dataset_of(f.customer_id): None for f in forgotten if f.table.scope is Scope.CUSTOMER}
        if self._central in gone:
            raise ValueError("The central dataset is no customer's.")
        leaving: dict[str, list[tuple[str, int]]] = {}
        tables: dict[tuple[str, str], list[Folded]] = {}
        shapes: dict[tuple[str, str], Table] = {}
        for f in forgotten:
            if f.table.scope is Scope.CENTRAL:
                shapes[self._central, f.table.name] = f.table
                leaving.setdefault(f.table.name, []).append((f.customer_id, f.position))
        for row in changed:
            dataset = self._central if row.customer_id is None else dataset_of(row.customer_id)
            if dataset not in gone:
                tables.setdefault((dataset, row.table.name), []).append(row)
        shapes.update((place, rows[0].table) for place, rows in tables.items())
        writings = [
            Writing(
                dataset,
                table,
                leaving.get(name, ()) if dataset == self._central else (),
                merge_of(rows) if (rows := tables.get((dataset, name))) else None,
            )
            for (dataset, name), table in shapes.items()
        ]
        return Plan(list(gone), writings)

    def write(self, plan: Plan) -> None:
        """Write tables side by side, each in order; the others also when some fail, and a fault before an `Away`."""
        with plain_errors():
            for dataset in plan.gone:
                delete_dataset(self._client, dataset)
        away = threading.Event()
        if len(plan.writings) == 1:
            self._write(plan.writings[0], away)
            return
        settle([self._writers_of(writing).submit(self._write, writing, away) for writing in plan.writings])

    def _writers_of(self, writing: Writing) -> ThreadPoolExecutor:
        return self._writers if writing.dataset == self._central else self._customers_writers

    def _write(self, writing: Writing, away: threading.Event) -> None:
        """Write one table, unless BigQuery was already found to be `away`: the others then do not wait as well."""
        table, merge = writing.table, writing.merge
        target = f"`{self._project}.{writing.dataset}.{table.name}{self._suffix}`"
        statements: list[tuple[str, str]] = []
        rest = iter(writing.forgotten)
        while some := list(islice(rest, CHUNK_ROWS)):
            statements.append((forget_sql(target), msgspec.json.encode(some).decode()))
        if merge is not None:
            sql = merge_sql(target, table, merge.shape)
            statements += ((sql, chunk) for chunk in merge.chunks)
        for sql, rows in statements:
            if away.is_set():
                raise Away("BigQuery is away")
            with plain_errors():
                try:
                    self._run(writing.dataset, table, sql, rows)
                except Exception as error:
                    if passes(error):
                        away.set()
                    raise

    def _run(self, dataset: str, table: Table, sql: str, rows: str) -> None:
        parameters = [bigquery.ScalarQueryParameter("rows", "STRING", rows)]
        try:
            run(self._client, sql, parameters)
        except Exception as error:  # noqa: BLE001 - what cannot be mended is raised again
            if isinstance(error, exceptions.NotFound) and dataset != self._central and self._erased(dataset):
                return
            self._repair(dataset, table, error, lambda: run(self._client, sql, parameters))


def write_rows(
    client: bigquery.Client, target: str, table: Table, rows: Iterable[Mapping[str, Any]], *, guarded: bool
) -> int:
    """Write whole rows, `position` included, into `target`, a backquoted name of a table laid out so; how many.

    Raises the library's errors, and `ValueError` for a value that the table cannot hold.
    """
    written = 0
    rest = iter(rows)
    while some := list(islice(rest, CHUNK_ROWS)):
        merge = merge_of([whole(table, row) for row in some])
        sql = merge_sql(target, table, merge.shape, guarded=guarded)
        for chunk in merge.chunks:
            run(client, sql, [bigquery.ScalarQueryParameter("rows", "STRING", chunk)])
        written += len(some)
    return written


def whole(table: Table, row: Mapping[str, Any]) -> Folded:
    """A row of the table as it stands somewhere else; values that are no columns of the table are passed over."""
    try:
        values = {name: row[name] for name in table.names}
        position = row["position"]
    except KeyError as missing:
        raise ValueError(f"{table.name}: a whole row lacks {missing}") from None
    return Folded(table, None, tuple(values[name] for name in table.key), values, whole=True, position=position)


def settle(work: Sequence[Future[Any]]) -> None:
    """Wait for all of it, whatever fails; then raise what went wrong with one of them: a fault before an `Away`."""
    wait(work)
    errors = [error for future in work if (error := future.exception()) is not None]
    if not errors:
        return
    first = min(errors, key=lambda error: isinstance(error, Away))
    if len(errors) > 1:
        first.add_note(f"{len(errors)} of {len(work)} tables failed")
    raise first
