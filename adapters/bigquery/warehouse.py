"""The warehouse: BigQuery as the use cases and the projector see it."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from google.api_core import exceptions
from google.cloud import bigquery

from adapters.bigquery.client import CALL_SECONDS, RETRY, plain_errors, run
from adapters.bigquery.tables import dataset_of, delete_dataset, ensure_dataset, ensure_table
from adapters.bigquery.writing import ChangeWriter, Erased, nobody
from application.ports import Query
from domain.refusals import NotFound
from projections.rows import Change, Table
from projections.tables import CENTRAL, CUSTOMER

EMULATED_WRITERS = 4
"""Tables written at the same time in an emulator, which does one thing after the other: the last one waits for all."""
EMULATED_CUSTOMERS_WRITERS = 2
"""Of customers' tables, so that the few central ones get the larger part of its time while both are written."""
WRITERS = 16
"""At Google, where a statement takes a second or more, and statements on different tables do not hinder each other."""
_OPENS = re.compile(r"\bBEGIN(\s+TRANSACTION)?\s*(;|$)", re.IGNORECASE)
_CLOSES = re.compile(r"\b(COMMIT|ROLLBACK)\b", re.IGNORECASE)


class BigQueryWarehouse:
    """BigQuery as a `Warehouse` and a `RowWriter`. Safe to share between threads, except that one table has one writer.

    Every method raises `Away` when BigQuery does not answer: at once refused, in about five seconds; silent, in about
    thirty. `PermissionError` says that it answered and refused.
    """

    def __init__(
        self,
        client: bigquery.Client,
        project: str,
        central_dataset: str,
        location: str,
        *,
        writers: int = EMULATED_WRITERS,
        customers_writers: int = EMULATED_CUSTOMERS_WRITERS,
        erased: Erased = nobody,
    ) -> None:
        self._client = client
        self._project = project
        self._central = central_dataset
        self._location = location
        self._ensured: set[tuple[str, str]] = set()
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="warehouse")
        self._customers_writers = ThreadPoolExecutor(customers_writers, thread_name_prefix="customers' tables")
        self._erased = erased
        self._changes = ChangeWriter(
            client,
            project,
            central_dataset,
            self._writers,
            customers_writers=self._customers_writers,
            repair=self._repair,
            erased=erased,
        )

    def close(self) -> None:
        """End the writers and close the connections."""
        self._writers.shutdown()
        self._customers_writers.shutdown()
        self._client.close()  # type: ignore[no-untyped-call]

    def ensure_central(self) -> None:
        """Make the central dataset and its tables where they are missing; add columns that are new."""
        with plain_errors():
            self._ensure(self._central, CENTRAL)

    def ensure_customer(self, customer_id: str) -> Sequence[str]:
        """Make the customer's dataset and x_meta tables where they are missing; the names of its tables.

        Raises `NotFound` for a customer who was erased: there is no dataset then, also when it happened meanwhile.
        """
        dataset = dataset_of(customer_id)
        if self._erased(customer_id):
            raise NotFound("No such customer.")
        with plain_errors():
            self._ensure(dataset, CUSTOMER)
            gone = self._gone_meanwhile(dataset)
        if gone:
            raise NotFound("No such customer.")
        return [table.name for table in CUSTOMER]

    def delete_customer(self, customer_id: str) -> None:
        """Remove the customer's dataset with every table in it. Idempotent.

        Raises `ValueError` for what is no customer's dataset, the central one first of all.
        """
        dataset = dataset_of(customer_id)
        if dataset == self._central:
            raise ValueError("The central dataset is no customer's.")
        with plain_errors():
            delete_dataset(self._client, dataset)

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

        Idempotent: a row that already stands at a later position keeps it. A missing dataset or table is made, unless
        its customer was erased: those rows are passed over. Where customers are forgotten, that comes first: of a
        customer's own tables the whole dataset goes, whatever else is in it. Tables are written side by side, each in
        order; when some fail the others have been written, and what went wrong with one of them is raised: a fault
        before an `Away`. Raises `ValueError` for a value that a table cannot hold, before anything is written.
        """
        self._changes.write(self._changes.plan(changes))

    def _repair(self, dataset: str, table: Table, error: Exception, again: Callable[[], object]) -> None:
        if isinstance(error, exceptions.NotFound):
            self._ensure(dataset, [table])
            again()
            # Where one table is missing others may be, and no change may come for them soon.
            self._ensure(dataset, CENTRAL if dataset == self._central else CUSTOMER)
            self._gone_meanwhile(dataset)
        elif isinstance(error, exceptions.BadRequest) and (dataset, table.name) not in self._ensured:
            # The table may be older than a column. A statement that is wrong with everything there stays wrong.
            self._ensure(dataset, [table])
            again()
        else:
            raise error

    def _gone_meanwhile(self, dataset: str) -> bool:
        """Take back what was made for a customer who was erased meanwhile: others may have deleted it before."""
        if dataset == self._central or not self._erased(dataset):
            return False
        delete_dataset(self._client, dataset)
        return True

    def _ensure(self, dataset: str, tables: Sequence[Table]) -> None:
        ensure_dataset(self._client, dataset, self._location)
        for table in tables:
            ensure_table(self._client, dataset, table)
            self._ensured.add((dataset, table.name))


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
