"""Writing changes of the log into tables: folded, one statement per table and chunk, tables side by side."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from google.cloud import bigquery

from adapters.bigquery.client import passes, plain_errors, run
from adapters.bigquery.merge import CHUNK_ROWS, Merge, merge_of, merge_sql
from adapters.bigquery.tables import dataset_of
from application.ports import Away
from projections.fold import Folded, fold
from projections.rows import Change, Table

Repair = Callable[[str, Table, Exception, Callable[[], object]], None]
"""Given the dataset, the table, why a statement failed and how to do it again: mends that, or raises the error."""


def _beyond_repair(_dataset: str, _table: Table, error: Exception, _again: Callable[[], object]) -> None:
    raise error


class ChangeWriter:
    """Writes into the tables `{dataset}.{table}{suffix}` of one project. One thread calls it."""

    def __init__(
        self,
        client: bigquery.Client,
        project: str,
        central_dataset: str,
        writers: ThreadPoolExecutor,
        *,
        suffix: str = "",
        repair: Repair = _beyond_repair,
    ) -> None:
        self._client = client
        self._project = project
        self._central = central_dataset
        self._writers = writers
        self._suffix = suffix
        self._repair = repair

    def merges(self, changes: Sequence[Change]) -> list[tuple[str, Merge]]:
        """What is to be written, with the dataset of each table; raises `ValueError` for a value it cannot hold."""
        tables: dict[tuple[str, str], list[Folded]] = {}
        for row in fold(changes):
            dataset = self._central if row.customer_id is None else dataset_of(row.customer_id)
            tables.setdefault((dataset, row.table.name), []).append(row)
        return [(dataset, merge_of(rows)) for (dataset, _), rows in tables.items()]

    def write(self, merges: Sequence[tuple[str, Merge]]) -> None:
        """Write tables side by side, each in order; the others also when some fail, and a fault before an `Away`."""
        if len(merges) == 1:
            self._write(*merges[0], threading.Event())
            return
        gone = threading.Event()
        settle([self._writers.submit(self._write, dataset, merge, gone) for dataset, merge in merges])

    def _write(self, dataset: str, merge: Merge, gone: threading.Event) -> None:
        """Write one table, unless BigQuery was already found to be `gone`: the others then do not wait as well."""
        target = f"`{self._project}.{dataset}.{merge.table.name}{self._suffix}`"
        sql = merge_sql(target, merge.table, merge.shape)
        for chunk in merge.chunks:
            if gone.is_set():
                raise Away("BigQuery is away")
            with plain_errors():
                try:
                    self._merge(dataset, merge.table, sql, chunk)
                except Exception as error:
                    if passes(error):
                        gone.set()
                    raise

    def _merge(self, dataset: str, table: Table, sql: str, chunk: str) -> None:
        rows = [bigquery.ScalarQueryParameter("rows", "STRING", chunk)]
        try:
            run(self._client, sql, rows)
        except Exception as error:  # noqa: BLE001 - what cannot be mended is raised again
            self._repair(dataset, table, error, lambda: run(self._client, sql, rows))


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
