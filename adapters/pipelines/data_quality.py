"""Step `data_quality`: expectations about a table, most of them answered by one statement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.pipelines.attempt import Attempt, Bound
from adapters.pipelines.failures import StepFailed
from adapters.pipelines.identifiers import quoted_column
from adapters.pipelines.jobs import AGAIN, CALL_SECONDS
from adapters.pipelines.step import Name, Outcome, SqlFile, Step
from application.ports import Expectation

_Columns = Annotated[tuple[str, ...], Field(min_length=1)]


class _Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Literal["warn", "fail"] = "fail"


class RowCount(_Check):
    """At least `minimum`, at most `maximum` rows, and as many as the variable `equals` says."""

    check: Literal["row_count"]
    minimum: int | None = None
    maximum: int | None = None
    equals: Name | None = None


class NotNull(_Check):
    """No NULL in any of the columns."""

    check: Literal["not_null"]
    columns: _Columns


class Unique(_Check):
    """No two rows with the same values in all of the columns."""

    check: Literal["unique"]
    columns: _Columns


class Range(_Check):
    """Numbers from `minimum` to `maximum`, both included; NULL is within any range."""

    check: Literal["range"]
    column: str
    minimum: int | None = None
    maximum: int | None = None

    @model_validator(mode="after")
    def _has_bound(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError("a range has a minimum or a maximum")
        return self


class AcceptedValues(_Check):
    """Texts out of `values`; NULL is accepted."""

    check: Literal["accepted_values"]
    column: str
    values: tuple[str, ...] = Field(min_length=1)


class Freshness(_Check):
    """The latest value of a DATE or TIMESTAMP column lies no more than so many hours before the run date's end."""

    check: Literal["freshness"]
    column: str
    max_age_hours: int = Field(ge=1)


class CustomSql(_Check):
    """A statement that gives one row: `passed` BOOL, and `observed`, words without customers' data."""

    check: Literal["custom_sql"]
    name: Name
    sql: SqlFile


_AnyCheck = Annotated[
    RowCount | NotNull | Unique | Range | AcceptedValues | Freshness | CustomSql, Field(discriminator="check")
]


class DataQualityStep(Step):
    """`where` is SQL of the template, with values as `@name`, for the rows that are looked at."""

    type: Literal["data_quality"]
    table: str | None = Field(default=None, pattern=r"^(\{provider\}_)?[a-z][a-z0-9_]*$")
    where: str = "TRUE"
    expectations: tuple[_AnyCheck, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _table_needed(self) -> Self:
        if self.table is None and not all(isinstance(check, CustomSql) for check in self.expectations):
            raise ValueError("expectations other than custom_sql need a table")
        return self

    @property
    def sql_files(self) -> Sequence[str]:
        return tuple(check.sql for check in self.expectations if isinstance(check, CustomSql))


@dataclass(slots=True)
class _Measures:
    """Aggregates of one statement, and the values they compare with."""

    columns: list[str] = field(default_factory=list)
    values: dict[str, Bound] = field(default_factory=dict)

    def column(self, sql: str) -> str:
        self.columns.append(f"{sql} AS m{len(self.columns)}")
        return f"m{len(self.columns) - 1}"

    def bind(self, kind: str, value: object) -> str:
        name = f"dq_value_{len(self.values)}"
        self.values[name] = Bound(kind, value)
        return f"@{name}"


def run(step: DataQualityStep, attempt: Attempt) -> Outcome:
    """Check every expectation. Raises `StepFailed`, with all results, when one with severity `fail` is not met."""
    results = [*_measured(step, attempt), *_asked(step, attempt)]
    outcome = Outcome(
        target_table=attempt.table_id(step.table) if step.table else None,
        expectations=tuple(results),
        metadata={"passed": sum(result.passed for result in results), "checked": len(results)},
    )
    failed = [result for result in results if not result.passed and result.severity == "fail"]
    if failed:
        raise StepFailed(
            "Data quality: " + "; ".join(f"{result.name}: {result.observed}" for result in failed) + ".",
            outcome=outcome,
        )
    return outcome


def _measured(step: DataQualityStep, attempt: Attempt) -> Iterator[Expectation]:
    checks = [check for check in step.expectations if not isinstance(check, CustomSql)]
    if step.table is None or not checks:
        return
    measures = _Measures()
    pending = [(check, name, measures.column(sql)) for check in checks for name, sql in _aggregates(check, measures)]
    sql = f"SELECT {', '.join(measures.columns)} FROM {attempt.table(step.table)} WHERE {step.where}"  # noqa: S608
    row = _one_row(attempt, sql, measures.values)
    for check, name, key in pending:
        passed, observed = _judge(check, row[key], attempt)
        yield Expectation(name=name, passed=passed, severity=check.severity, observed=observed)


def _aggregates(check: _Check, measures: _Measures) -> Iterator[tuple[str, str]]:
    match check:
        case RowCount():
            yield "row_count", "COUNT(*)"
        case NotNull(columns=columns):
            for column in columns:
                yield f"not_null({column})", f"COUNTIF({quoted_column(column)} IS NULL)"
        case Unique(columns=columns):
            key = ", ".join(map(quoted_column, columns))
            yield f"unique({', '.join(columns)})", f"COUNT(*) - COUNT(DISTINCT TO_JSON_STRING(STRUCT({key})))"
        case Range(column=column, minimum=minimum, maximum=maximum):
            name = quoted_column(column)
            outside = [f"{name} < {measures.bind('INT64', minimum)}"] if minimum is not None else []
            outside += [f"{name} > {measures.bind('INT64', maximum)}"] if maximum is not None else []
            yield f"range({column})", f"COUNTIF({' OR '.join(outside)})"
        case AcceptedValues(column=column, values=values):
            known = measures.bind("STRING", list(values))
            yield f"accepted_values({column})", f"COUNTIF({quoted_column(column)} NOT IN UNNEST({known}))"
        case Freshness(column=column):
            yield f"freshness({column})", f"MAX({quoted_column(column)})"


def _judge(check: _Check, seen: Any, attempt: Attempt) -> tuple[bool, str]:  # noqa: ANN401 - a value of BigQuery's
    match check:
        case RowCount(minimum=minimum, maximum=maximum, equals=equals):
            if equals is not None and equals not in attempt.variables:
                raise StepFailed(f"The expectation row_count needs @{equals}, which no earlier step has found.")
            wanted = None if equals is None else attempt.variables[equals].value
            passed = (minimum is None or seen >= minimum) and (maximum is None or seen <= maximum)
            passed = passed and (wanted is None or seen == wanted)
            return passed, f"{seen} rows" if wanted is None or seen == wanted else f"{seen} rows instead of {wanted}"
        case NotNull():
            return seen == 0, f"{seen} rows without a value"
        case Unique(columns=columns):
            return seen == 0, f"{seen} duplicates of ({', '.join(columns)})"
        case Range():
            return seen == 0, f"{seen} values out of range"
        case AcceptedValues():
            return seen == 0, f"{seen} values not accepted"
        case Freshness(max_age_hours=hours):
            return _fresh(seen, hours, attempt.order.run_date)
        case _:
            raise AssertionError(check)


def _fresh(latest: date | datetime | None, hours: int, run_date: date) -> tuple[bool, str]:
    if latest is None:
        return False, "no value at all"
    instant = latest if isinstance(latest, datetime) else datetime.combine(latest, datetime.max.time(), UTC)
    age = datetime.combine(run_date, datetime.max.time(), UTC) - instant
    return age <= timedelta(hours=hours), f"the latest is {max(age // timedelta(hours=1), 0)} hours old"


def _asked(step: DataQualityStep, attempt: Attempt) -> Iterator[Expectation]:
    for check in step.expectations:
        if isinstance(check, CustomSql):
            row = _one_row(attempt, attempt.render(check.sql), {})
            yield Expectation(
                name=check.name, passed=row["passed"] is True, severity=check.severity, observed=str(row["observed"])
            )


def _one_row(attempt: Attempt, sql: str, values: Mapping[str, Bound]) -> Mapping[str, Any]:
    job = attempt.jobs.query(attempt.platform, sql, attempt.bind(sql, values))
    rows = list(job.result(retry=AGAIN, job_retry=None, timeout=CALL_SECONDS))
    if len(rows) != 1:
        raise StepFailed("A data-quality statement did not give exactly one row.")
    return dict(rows[0].items())
