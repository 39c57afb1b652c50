"""Step `bigquery_query`: one SQL file, run as the platform or as the customer, perhaps into a silver table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from google.cloud import bigquery
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.pipelines import silver
from adapters.pipelines.attempt import Attempt, Bound
from adapters.pipelines.failures import StepFailed
from adapters.pipelines.identifiers import quoted_column
from adapters.pipelines.jobs import AGAIN, CALL_SECONDS
from adapters.pipelines.step import Name, Outcome, SqlFile, Step

_MOST_CAPTURED = 5000


class Destination(BaseModel):
    """Where a query's rows go. Every mode is idempotent for its run.

    `append` replaces the rows of the same run, `truncate` the whole table, `replace_partition` the rows whose `key` is
    among `values`, a variable that an earlier step captured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str = Field(pattern=r"^(\{provider\}_)?[a-z][a-z0-9_]*$")
    layout: Literal["focus_cost"]
    write: Literal["append", "truncate", "replace_partition"]
    key: str | None = None
    values: Name | None = None

    @model_validator(mode="after")
    def _key_fits(self) -> Self:
        if (self.write == "replace_partition") is not (self.key is not None and self.values is not None):
            raise ValueError("replace_partition, and it alone, takes key and values")
        if self.key is not None and self.key not in silver.LAYOUTS[self.layout].columns:
            raise ValueError("key is no column of the layout")
        return self

    @property
    def leaving(self) -> str:
        """SQL for the rows of the target that go."""
        return {
            "append": "target.`run_id` = @run_id",
            "truncate": "TRUE",
            "replace_partition": f"target.{self._in_values}",
        }[self.write]

    @property
    def kept(self) -> str:
        """SQL for the rows of the query that come."""
        return {"append": "`run_id` = @run_id", "truncate": "TRUE", "replace_partition": self._in_values}[self.write]

    @property
    def _in_values(self) -> str:
        return f"{quoted_column(self.key)} IN UNNEST(@{self.values})" if self.key is not None else ""


class QueryStep(Step):
    """`reads: source` runs the statement as the customer, in its project where it left a credential.

    `capture` keeps a column of the result as an array for later steps, with its least value as `{name}_first`.
    """

    type: Literal["bigquery_query"]
    sql: SqlFile
    reads: Literal["platform", "source"] = "platform"
    destination: Destination | None = None
    capture: Mapping[Name, str] = Field(default_factory=dict)
    dry_run: bool = False
    maximum_bytes_billed: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_purpose(self) -> Self:
        if self.destination is not None and (self.reads == "source" or self.dry_run or self.capture):
            raise ValueError("a query with a destination runs on the platform and captures nothing")
        return self

    @property
    def sql_files(self) -> Sequence[str]:
        return (self.sql,)


def run(step: QueryStep, attempt: Attempt) -> Outcome:
    """Run the statement. Raises what BigQuery's client raises, `StepFailed` or `Stopped`."""
    if step.destination is not None:
        return _into(step, step.destination, attempt)
    client = attempt.source()[0] if step.reads == "source" else attempt.platform
    sql = attempt.render(step.sql, reads_source=step.reads == "source")
    job = attempt.jobs.query(client, sql, attempt.bind(sql), dry_run=step.dry_run, most_bytes=step.maximum_bytes_billed)
    if step.dry_run:
        return Outcome(metadata={"dry_run": True, "bytes_processed": job.total_bytes_processed or 0})
    result = job.result(retry=AGAIN, job_retry=None, timeout=CALL_SECONDS)
    if step.capture:
        attempt.variables |= _captured(step, result)
    return Outcome(rows=int(result.total_rows or 0))


def _into(step: QueryStep, destination: Destination, attempt: Attempt) -> Outcome:
    layout = silver.LAYOUTS[destination.layout]
    target = attempt.dataset.table(attempt.table_id(destination.table))
    name = attempt.table(destination.table)
    silver.ensure(attempt.jobs, attempt.platform, target, layout)
    select = attempt.render(step.sql)
    sql = silver.replace(name, layout, select, leaving=destination.leaving, kept=destination.kept)
    job = attempt.jobs.query(attempt.platform, sql, attempt.bind(sql), most_bytes=step.maximum_bytes_billed)
    return Outcome(
        rows=_inserted(job, destination, name, attempt),
        delivers=True,
        target_table=target.table_id,
        metadata={"replaced": len(attempt.variables[destination.values].value) if destination.values else None},
    )


def _inserted(job: bigquery.QueryJob, destination: Destination, name: str, attempt: Attempt) -> int:
    if job.dml_stats is not None:
        return int(job.dml_stats.inserted_row_count)
    # The emulator counts what was deleted and inserted together.
    count = f"SELECT COUNT(*) FROM {name} WHERE {destination.kept}"  # noqa: S608 - checked names, bound values
    rows = attempt.jobs.query(attempt.platform, count, attempt.bind(count)).result(
        retry=AGAIN, job_retry=None, timeout=CALL_SECONDS
    )
    return int(next(iter(rows))[0])


def _captured(step: QueryStep, result: bigquery.table.RowIterator) -> Mapping[str, Bound]:
    kinds = {field.name: field.field_type for field in result.schema}
    if (result.total_rows or 0) > _MOST_CAPTURED:
        raise StepFailed(f"The step {step.id} found more than {_MOST_CAPTURED} values.")
    rows = list(result)
    captured: dict[str, Bound] = {}
    for name, column in step.capture.items():
        values = sorted({row[column] for row in rows if row[column] is not None})
        captured[name] = Bound(_standard(kinds[column]), values)
        captured[f"{name}_first"] = Bound(_standard(kinds[column]), _least(values))
    return captured


def _standard(kind: str) -> str:
    return {"INTEGER": "INT64", "BOOLEAN": "BOOL", "FLOAT": "FLOAT64"}.get(kind, kind)


def _least(values: Iterable[Any]) -> Any:  # noqa: ANN401 - a value of BigQuery's
    return min(values, default=None)
