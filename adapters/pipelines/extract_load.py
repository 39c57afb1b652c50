"""Step `bigquery_extract_load`: reads as the customer, in its project, into the attempt's own table on the platform."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation, localcontext
from typing import IO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud import bigquery
from pydantic import Field

from adapters.pipelines.attempt import Attempt, Bound
from adapters.pipelines.failures import StepFailed
from adapters.pipelines.jobs import AGAIN, CALL_SECONDS, ONCE
from adapters.pipelines.step import Name, Outcome, SqlFile, Step

_PAGE_ROWS = 5000
_FILE_BYTES = 64 * 1024 * 1024
_STAGE_LIFE = timedelta(days=1)
"""What a crashed worker leaves behind goes by itself."""
_DIGIT = Decimal("1e-20")
"""The last digit that silver tables keep."""


class ExtractLoadStep(Step):
    """Memory stays bounded: pages of the result become Parquet files of at most some 64 MiB, loaded one by one.

    `count` names the variable that holds the number of rows afterwards. `totals` gives for a variable the text columns
    whose decimals are summed while they pass (several in one cell are parted by spaces): an account of what was read
    that owes nothing to SQL, for later steps to compare with.
    """

    type: Literal["bigquery_extract_load"]
    sql: SqlFile
    count: Name
    totals: Mapping[Name, tuple[str, ...]] = Field(default_factory=dict)
    maximum_bytes_billed: int | None = Field(default=None, ge=1)

    @property
    def sql_files(self) -> Sequence[str]:
        return (self.sql,)


def run(step: ExtractLoadStep, attempt: Attempt) -> Outcome:
    """Fill the stage anew. Raises what BigQuery's client raises, `StepFailed` or `Stopped`."""
    client, _ = attempt.source()
    sql = attempt.render(step.sql, reads_source=True)
    job = attempt.jobs.query(client, sql, attempt.bind(sql), most_bytes=step.maximum_bytes_billed)
    result = job.result(page_size=_PAGE_ROWS, retry=AGAIN, job_retry=None, timeout=CALL_SECONDS)
    _make_stage(attempt, result.schema)
    totals = _Totals(step.totals)
    rows = files = 0
    for file, loaded in _files(_pages(result, attempt, totals)):
        attempt.jobs.load_parquet(attempt.platform, file, str(attempt.stage), result.schema)
        rows += loaded
        files += 1
    if rows != result.total_rows:
        raise StepFailed(f"The source announced {result.total_rows} rows and gave {rows}.", can_pass=True)
    attempt.variables[step.count] = Bound("INT64", rows)
    attempt.variables |= totals.bound()
    return Outcome(rows=rows, metadata={"files": files})


def drop_stage(attempt: Attempt) -> None:
    """Remove the attempt's stage. Raises what BigQuery's client raises."""
    attempt.platform.delete_table(attempt.stage, not_found_ok=True, retry=ONCE, timeout=CALL_SECONDS)


def _make_stage(attempt: Attempt, schema: Sequence[bigquery.SchemaField]) -> None:
    drop_stage(attempt)
    # The source's own modes and policy tags stay there.
    table = bigquery.Table(attempt.stage, schema=[bigquery.SchemaField(f.name, f.field_type) for f in schema])
    table.expires = attempt.now() + _STAGE_LIFE
    attempt.platform.create_table(table, retry=ONCE, timeout=CALL_SECONDS)


def _pages(result: bigquery.table.RowIterator, attempt: Attempt, totals: "_Totals") -> Iterator[pa.RecordBatch]:
    for page in result.to_arrow_iterable():
        attempt.jobs.checkpoint()
        totals.add(page)
        yield page


def _files(pages: Iterable[pa.RecordBatch]) -> Iterator[tuple[IO[bytes], int]]:
    """Parquet files with their numbers of rows; each is gone when the next one is asked for."""
    pending = iter(pages)
    page = next(pending, None)
    while page is not None:
        with tempfile.TemporaryFile() as file:
            rows = 0
            with closing(pq.ParquetWriter(file, page.schema)) as writer:
                while page is not None and file.tell() < _FILE_BYTES:
                    writer.write_batch(page)
                    rows += page.num_rows
                    page = next(pending, None)
            if rows:
                yield file, rows


class _Totals:
    """Exact sums over text columns, to the last digit that a silver table keeps."""

    def __init__(self, columns: Mapping[str, tuple[str, ...]]) -> None:
        self._columns = columns
        self._sums = dict.fromkeys(columns, Decimal(0))

    def add(self, page: pa.RecordBatch) -> None:
        with localcontext() as context:
            context.prec = 76
            for name, columns in self._columns.items():
                for column in columns:
                    for cell in page.column(column).to_pylist():
                        for text in (cell or "").split():
                            self._sums[name] += _decimal(text)

    def bound(self) -> Mapping[str, Bound]:
        # As text: a parameter of type BIGNUMERIC loses digits on the emulator.
        return {name: Bound("STRING", format(total, "f")) for name, total in self._sums.items()}


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
        if number.is_finite():
            # Rounded as BigQuery rounds into its columns: half away from zero.
            return number if number.as_tuple().exponent >= -20 else number.quantize(_DIGIT, ROUND_HALF_UP)  # type: ignore[operator]
    except InvalidOperation:
        pass
    raise StepFailed("A cost of the source is not a number.")
