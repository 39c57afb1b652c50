"""Tables filled beside the live ones and put in their place: how a rebuild replaces a warehouse's tables."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain, groupby, islice
from operator import itemgetter
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

import requests
from google.api_core import exceptions
from google.cloud import bigquery

from adapters.bigquery.abreast import Abreast
from adapters.bigquery.client import CALL_SECONDS, METADATA_SECONDS, RETRY, plain_errors, run
from adapters.bigquery.slices import SLICE_BYTES, Slice, slices
from adapters.bigquery.tables import dataset_of, delete_dataset, ensure_dataset, ensure_table
from adapters.bigquery.writing import ChangeWriter, Erased, nobody, write_rows
from projections.rows import Change, Table, Type

SUFFIX = "__rebuild"
JOB_SECONDS = 600.0
"""The longest that a load or a copy may take, the time that it waits for its turn included."""
_UPLOAD_SECONDS = 120.0
"""The longest that the answer to an uploaded slice, or to the start of a copy, may take: an emulator does it then."""
_UPLOAD_RETRIES = 3
_WRITERS = 4
"""Tables worked on at the same time."""


class Staging:
    """The staged twins, `{table}__rebuild`, of a warehouse's tables. One thread works with it.

    Every method raises `Away` when BigQuery does not answer or has no quota left for now, `PermissionError` when it
    refuses, `ValueError` for what it does not accept. A failure leaves the live tables as they were.

    What belongs into the dataset of a customer who was `erased` meanwhile is passed over, and no dataset is left.
    """

    def __init__(
        self,
        client: bigquery.Client,
        project: str,
        central_dataset: str,
        location: str,
        *,
        slice_bytes: int = SLICE_BYTES,
        erased: Erased = nobody,
    ) -> None:
        self._slice_bytes = slice_bytes
        self._client = client
        self._project = project
        self._location = location
        self._staged: dict[tuple[str, str], Table] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="staging")
        self._central = central_dataset
        self._erased = erased
        self._changes = ChangeWriter(client, project, central_dataset, self._writers, suffix=SUFFIX, erased=erased)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the writers. The client stays open, and staged tables stay."""
        self._writers.shutdown(cancel_futures=True)

    @property
    def staged(self) -> Sequence[tuple[str, Table]]:
        """Dataset and table of what is staged and not yet swapped or dropped."""
        return [(dataset, table) for (dataset, _), table in self._staged.items()]

    def load(self, dataset: str, table: Table, rows: Iterable[Mapping[str, Any]]) -> int:
        """Fill the table's staged twin with these whole rows (`position` included); returns how many there are.

        The twin is laid out as the live table, and replaces one that an earlier rebuild left. A `dataset` among the
        values that is no column of the table is passed over. The dataset and the live table are made if they are
        missing. Memory stays flat. Raises `ValueError` when BigQuery ends up with another number of rows.
        """
        self._create(dataset, table)
        if _has_bytes(table):
            with plain_errors():
                loaded = write_rows(self._client, self._sql_name(dataset, table), table, rows, guarded=True)
        else:
            loaded = self._load_slices(dataset, table, slices(table, rows, size=self._slice_bytes))
        self._check(dataset, table, loaded)
        return loaded

    def load_each(
        self, table: Table, rows: Iterable[Mapping[str, Any]], datasets: Iterable[str] = ()
    ) -> Mapping[str, int]:
        """As `load`, for a customers' table of many datasets side by side; returns each dataset's number of rows.

        `rows` come with the `dataset` they belong to, all of one dataset together. `datasets` without any rows get an
        empty table.
        """
        counts: dict[str, int] = {}
        with ExitStack() as files, Abreast(self._writers, _WRITERS) as abreast:

            def load(dataset: str, spooled: Iterable[Slice]) -> None:
                counts[dataset] = self._load_own(dataset, table, spooled)

            seen: set[str] = set()
            for customer_id, own in groupby(rows, key=itemgetter("dataset")):
                dataset = dataset_of(customer_id)
                if dataset in seen:
                    raise ValueError(f"{table.name}: the rows of {dataset} do not come together")
                seen.add(dataset)
                if _has_bytes(table):
                    counts[dataset] = self.load(dataset, table, own)
                    continue
                spooled = slices(table, own, size=self._slice_bytes)
                begin = list(islice(spooled, 2))
                for slice_ in begin:
                    files.callback(slice_.file.close)
                if len(begin) == 1:
                    abreast.start(load, dataset, begin)
                else:  # larger than a slice: it is read while it is loaded, here
                    load(dataset, chain(begin, spooled))
            for dataset in map(dataset_of, datasets):
                if dataset not in seen:
                    seen.add(dataset)
                    abreast.start(load, dataset, [])
        return counts

    def _load_own(self, dataset: str, table: Table, spooled: Iterable[Slice]) -> int:
        """Fill a customer's staged table; nothing is there when the customer was erased meanwhile."""
        loaded = 0
        try:
            self._create(dataset, table)
            loaded = self._load_slices(dataset, table, spooled)
            self._check(dataset, table, loaded)
        except ValueError:
            if not self._gone_meanwhile(dataset):
                raise
            return 0
        return 0 if self._gone_meanwhile(dataset) else loaded

    def write(self, changes: Sequence[Change]) -> None:
        """Apply changes of a later stretch of the log to the staged tables, as the warehouse does to the live ones.

        A table that is not staged yet, a new customer's, is staged empty first.
        """
        plan = self._changes.plan(changes)
        with Abreast(self._writers, _WRITERS) as abreast:
            for writing in plan.writings:
                if (writing.dataset, writing.table.name) not in self._staged and not self._is_gone(writing.dataset):
                    abreast.start(self._create, writing.dataset, writing.table)
        self._changes.write(plan)
        for dataset in plan.gone:
            self._unstage(dataset)

    def swap(self, dataset: str, table: Table) -> None:
        """Put the staged table in the place of the live one, and drop it.

        Queries see all of the old rows or all of the new ones. After an error it can be called again, and it has to be
        where an emulator was killed in that moment: it may have left the live table empty.
        """
        live, staged = self._name(dataset, table, ""), self._name(dataset, table)
        try:
            self._copy(live, staged)
        except ValueError:
            if not self._gone_meanwhile(dataset):
                raise
        else:
            self.drop(dataset, table)

    def _copy(self, live: str, staged: str) -> None:
        with plain_errors():
            self._check_same_columns(live, staged)
            config = bigquery.CopyJobConfig(write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE)
            job_id = f"convergence_{uuid4()}"
            try:
                job = self._client.copy_table(
                    staged, live, job_id=job_id, job_config=config, retry=RETRY, timeout=_UPLOAD_SECONDS
                )
            except exceptions.Conflict:
                job = cast("bigquery.CopyJob", self._client.get_job(job_id, retry=RETRY, timeout=METADATA_SECONDS))
            _finish(job)

    def swap_all(self) -> None:
        """`swap` everything that is staged, side by side; after an error call it again for the rest."""
        with Abreast(self._writers, _WRITERS) as abreast:
            for dataset, table in self.staged:
                abreast.start(self.swap, dataset, table)

    def drop(self, dataset: str, table: Table) -> None:
        """Remove the staged table, if there is one."""
        with plain_errors():
            name = self._name(dataset, table)
            self._client.delete_table(name, not_found_ok=True, retry=RETRY, timeout=METADATA_SECONDS)
        self._staged.pop((dataset, table.name), None)

    def drop_all(self) -> None:
        """`drop` everything that is staged."""
        with Abreast(self._writers, _WRITERS) as abreast:
            for dataset, table in self.staged:
                abreast.start(self.drop, dataset, table)

    def _is_gone(self, dataset: str) -> bool:
        return dataset != self._central and self._erased(dataset)

    def _gone_meanwhile(self, dataset: str) -> bool:
        """Whether the dataset is that of a customer who was erased; then nothing of what was staged there is left."""
        if not self._is_gone(dataset):
            return False
        with plain_errors():
            delete_dataset(self._client, dataset)
        self._unstage(dataset)
        return True

    def _unstage(self, dataset: str) -> None:
        for place in [place for place in list(self._staged) if place[0] == dataset]:
            self._staged.pop(place, None)

    def _name(self, dataset: str, table: Table, suffix: str = SUFFIX) -> str:
        return f"{self._project}.{dataset}.{table.name}{suffix}"

    def _sql_name(self, dataset: str, table: Table) -> str:
        return f"`{self._name(dataset, table)}`"

    def _create(self, dataset: str, table: Table) -> None:
        """Make the staged table, empty, with the columns, partitions and clusters of the live one."""
        with plain_errors():
            ensure_dataset(self._client, dataset, self._location)
            live = ensure_table(self._client, dataset, table)
            staged = bigquery.Table(self._name(dataset, table), schema=live.schema)
            staged.description = live.description
            staged.time_partitioning = live.time_partitioning
            staged.clustering_fields = live.clustering_fields
            self._client.delete_table(staged, not_found_ok=True, retry=RETRY, timeout=METADATA_SECONDS)
            self._client.create_table(staged, exists_ok=True, retry=RETRY, timeout=METADATA_SECONDS)
        self._staged[dataset, table.name] = table

    def _load_slices(self, dataset: str, table: Table, spooled: Iterable[Slice]) -> int:
        loaded = 0
        for slice_ in spooled:
            with slice_.file, plain_errors():
                self._load_slice(dataset, table, slice_)
            loaded += slice_.rows
        return loaded

    def _load_slice(self, dataset: str, table: Table, slice_: Slice) -> None:
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.NEWLINE_DELIMITED_JSON,
            write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
            create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
        )
        job = self._client.load_table_from_file(  # without a size it is resumable
            slice_.file,
            self._name(dataset, table),
            rewind=True,
            num_retries=_UPLOAD_RETRIES,
            job_id=f"convergence_{uuid4()}",
            job_config=config,
            timeout=_UPLOAD_SECONDS,
        )
        _finish(job)

    def _check(self, dataset: str, table: Table, loaded: int) -> None:
        """An upload that was repeated after its answer was lost, and other mishaps."""
        with plain_errors():
            job = run(self._client, f"SELECT COUNT(*) FROM {self._sql_name(dataset, table)}")  # noqa: S608
            [there] = job.result(retry=RETRY, job_retry=None, timeout=CALL_SECONDS)
        if there[0] != loaded:
            raise ValueError(f"{dataset}.{table.name}: {loaded} rows were loaded, and BigQuery has {there[0]}")

    def _check_same_columns(self, live: str, staged: str) -> None:
        """An emulator copies column by column, whatever their names."""
        there = [self._client.get_table(name, retry=RETRY, timeout=METADATA_SECONDS).schema for name in (live, staged)]
        if [field.name for field in there[0]] != [field.name for field in there[1]]:
            raise ValueError(f"{live} has other columns than when the rebuild began: rebuild it again")


def _has_bytes(table: Table) -> bool:
    """Then it is written by statements: a load job reads base64 at Google, and keeps it as it is in an emulator."""
    return any(column.type is Type.BYTES for column in table.columns)


def _finish(job: bigquery.LoadJob | bigquery.CopyJob) -> None:
    """Wait for the job's end; it is cancelled, with a `TimeoutError`, when that does not come in time."""
    if job.state == "DONE" and not job.error_result:
        return
    try:
        job.result(retry=RETRY, timeout=JOB_SECONDS)
    except TimeoutError:
        with suppress(exceptions.GoogleAPIError, requests.RequestException):  # it ends by itself then
            job.cancel(retry=None, timeout=METADATA_SECONDS)
        raise
