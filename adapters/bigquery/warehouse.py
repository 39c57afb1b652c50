"""The warehouse: BigQuery as the use cases and the projector see it."""

import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from google.api_core import exceptions
from google.cloud import bigquery

from adapters.bigquery.client import CALL_SECONDS, RETRY, passes, plain_errors, run
from adapters.bigquery.merge import Merge, merge_of, merge_sql
from adapters.bigquery.tables import dataset_of, ensure_dataset, ensure_table
from application.ports import Away, Query
from projections.fold import Folded, fold
from projections.rows import Change, Table
from projections.tables import CENTRAL, CUSTOMER

_WRITERS = 4
"""Tables written at the same time."""
_OPENS = re.compile(r"\bBEGIN(\s+TRANSACTION)?\s*(;|$)", re.IGNORECASE)
_CLOSES = re.compile(r"\b(COMMIT|ROLLBACK)\b", re.IGNORECASE)


class BigQueryWarehouse:
    """BigQuery as a `Warehouse` and a `RowWriter`. Safe to share between threads, except that one table has one writer.

    Every method raises `Away` when BigQuery does not answer: at once refused, in about five seconds; silent, in about
    thirty. `PermissionError` says that it answered and refused.
    """

    def __init__(self, client: bigquery.Client, project: str, central_dataset: str, location: str) -> None:
        self._client = client
        self._project = project
        self._central = central_dataset
        self._location = location
        self._ensured: set[tuple[str, str]] = set()
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="warehouse")

    def close(self) -> None:
        """End the writers and close the connections."""
        self._writers.shutdown()
        self._client.close()  # type: ignore[no-untyped-call]

    def ensure_central(self) -> None:
        """Make the central dataset and its tables where they are missing; add columns that are new."""
        with plain_errors():
            self._ensure(self._central, CENTRAL)

    def ensure_customer(self, customer_id: str) -> Sequence[str]:
        """Make the customer's dataset and x_meta tables where they are missing; the names of its tables."""
        with plain_errors():
            self._ensure(dataset_of(customer_id), CUSTOMER)
        return [table.name for table in CUSTOMER]

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Query:
        """Run standard SQL to its end, at most 30 seconds; `affected` is set for statements that change rows.

        Raises `ValueError` with BigQuery's own sentence for a statement that it does not accept (`NotThere`, which is
        one, when something it names is missing). A statement that ran out of time is cancelled and raises `Away`.
        """
        if _OPENS.search(sql) and not _CLOSES.search(sql):
            raise ValueError("A transaction that is begun has to be committed or rolled back by the same statement.")
        bound = [_parameter(name, value) for name, value in (parameters or {}).items()]
        with plain_errors():
            job = run(self._client, sql, bound)
            affected = job.num_dml_affected_rows
            if affected is not None:
                return Query(columns=(), rows=(), affected=affected)
            answer = job.result(retry=RETRY, job_retry=None, timeout=CALL_SECONDS)
            rows = [row.values() for row in answer]
            return Query(columns=[field.name for field in answer.schema], rows=rows)

    def write(self, changes: Sequence[Change]) -> None:
        """Apply changes of a stretch of the log: folded, one statement per table and at most 5,000 rows or 1 MB.

        Idempotent: a row that already stands at a later position keeps it. A missing dataset or table is made. Tables
        are written side by side, each in order; when some fail the others have been written, and what went wrong with
        one of them is raised: a fault before an `Away`. Raises `ValueError` for a value that a table cannot hold,
        before anything is written.
        """
        tables: dict[tuple[str, str], list[Folded]] = {}
        for row in fold(changes):
            dataset = self._central if row.customer_id is None else dataset_of(row.customer_id)
            tables.setdefault((dataset, row.table.name), []).append(row)
        merges = [(dataset, merge_of(rows)) for (dataset, _), rows in tables.items()]
        if len(merges) == 1:
            self._write(*merges[0], threading.Event())
            return
        gone = threading.Event()
        written = [self._writers.submit(self._write, dataset, merge, gone) for dataset, merge in merges]
        wait(written)
        _raise_first(written)

    def _write(self, dataset: str, merge: Merge, gone: threading.Event) -> None:
        """Write one table, unless BigQuery was already found to be `gone`: the others then do not wait as well."""
        sql = merge_sql(f"`{self._project}.{dataset}.{merge.table.name}`", merge.table, merge.shape)
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
        except exceptions.BadRequest:
            # The table may be older than a column. A statement that is wrong with everything there stays wrong.
            if (dataset, table.name) in self._ensured:
                raise
            self._ensure(dataset, [table])
            run(self._client, sql, rows)
        except exceptions.NotFound:
            self._ensure(dataset, [table])
            run(self._client, sql, rows)
            # Where one table is missing others may be, and no change may come for them soon.
            self._ensure(dataset, CENTRAL if dataset == self._central else CUSTOMER)

    def _ensure(self, dataset: str, tables: Sequence[Table]) -> None:
        ensure_dataset(self._client, dataset, self._location)
        for table in tables:
            ensure_table(self._client, dataset, table)
            self._ensured.add((dataset, table.name))


def _raise_first(written: Sequence[Future[None]]) -> None:
    errors = [error for future in written if (error := future.exception()) is not None]
    if not errors:
        return
    first = min(errors, key=lambda error: isinstance(error, Away))
    if len(errors) > 1:
        first.add_note(f"{len(errors)} of {len(written)} tables were not written")
    raise first


_KINDS: Sequence[tuple[type | tuple[type, ...], str]] = (
    (bool, "BOOL"),
    (int, "INT64"),
    (float, "FLOAT64"),
    (Decimal, "NUMERIC"),
    (str, "STRING"),
    (datetime, "TIMESTAMP"),
    (date, "DATE"),
)
"""In this order: a bool is an int, and an instant is a date."""


def _parameter(name: str, value: Any) -> bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter:  # noqa: ANN401
    if isinstance(value, list | tuple):
        return bigquery.ArrayQueryParameter(name, _kind(name, value[0]) if value else "STRING", list(value))
    return bigquery.ScalarQueryParameter(name, _kind(name, value), value)


def _kind(name: str, value: object) -> str:
    if value is None:
        return "STRING"
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"Parameter {name}: an instant without a zone")
    for types, kind in _KINDS:
        if isinstance(value, types):
            return kind
    # Bytes too: an emulator stores a BYTES parameter as its base64 text. FROM_BASE64(@text) is right everywhere.
    raise ValueError(f"Parameter {name}: a {type(value).__name__} cannot be passed")
