"""A run as the API shows it: the rows that its events make, and the events themselves as a timeline."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field

from adapters.event_views import to_customers
from application.mapper import Recorded
from domain.envelope import Envelope
from domain.run_events import (
    CancelRequested,
    RunCancelled,
    RunClaimed,
    RunCompleted,
    RunFailed,
    RunRequeued,
    RunScheduled,
    RunSkipped,
    StepFinished,
)
from projections.fold import fold
from projections.project import changes_of
from projections.rows import Table
from projections.tables import SCHEDULED_PIPELINE_RUNS, X_META_DQ_RESULTS, X_META_PIPELINE_RUNS, X_META_STEP_LOGS


class RunSummary(BaseModel):
    """One run, with the columns of scheduled_pipeline_runs."""

    run_id: str
    pipeline_logging_id: str = Field(description="The run_id, under the name that x_meta tables have for it.")
    pipeline_id: str | None
    customer_id: str
    config_id: str | None
    provider: str
    domain: str
    pipeline_template: str
    trigger_type: str
    trigger_by: str
    backfill_id: str | None
    state: str
    run_date: date
    scheduled_time: datetime
    actual_start_time: datetime | None
    actual_end_time: datetime | None
    duration_ms: int | None
    attempt: int
    worker_id: str | None
    rows_processed: int | None
    error_message: str | None
    parameters: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class StepView(BaseModel):
    step_logging_id: str
    step_name: str
    step_type: str
    step_index: int
    status: str
    attempt: int
    start_time: datetime
    end_time: datetime
    duration_ms: int
    rows_processed: int
    error_message: str | None
    metadata: dict[str, Any]


class FailedExpectation(BaseModel):
    name: str
    severity: str
    observed: str


class DataQualityView(BaseModel):
    dq_result_id: str
    target_table: str | None
    dq_config_id: str
    executed_at: datetime
    expectations_passed: int
    expectations_failed: int
    failed_expectations: list[FailedExpectation]
    overall_status: str
    ingestion_date: date


class Moment(BaseModel):
    """One event of the run."""

    at: datetime
    event: str = Field(examples=["run.completed"])
    by: str
    text: str


class RunView(RunSummary):
    """One run in full. `started`, `ended`, `rows` and `error` repeat the columns of scheduled_pipeline_runs."""

    started: datetime | None
    ended: datetime | None
    rows: int | None
    error: str | None
    steps: list[StepView]
    dq_results: list[DataQualityView]
    timeline: list[Moment]


def summary(row: Mapping[str, Any], pipeline_id: str | None) -> RunSummary:
    """A row of scheduled_pipeline_runs as a list shows it."""
    return RunSummary.model_validate(_columns(row, pipeline_id))


def run_view(history: Sequence[Recorded]) -> RunView:
    """A run from its events, which must not be empty."""
    rows = _rows(history)
    row = rows[SCHEDULED_PIPELINE_RUNS.name][0]
    logged = rows[X_META_PIPELINE_RUNS.name][0]
    steps = sorted(rows.get(X_META_STEP_LOGS.name, []), key=lambda step: (step["attempt"], step["step_index"]))
    return RunView.model_validate(
        {
            **_columns(row, logged["pipeline_id"]),
            "started": row["actual_start_time"],
            "ended": row["actual_end_time"],
            "rows": row["rows_processed"],
            "error": row["error_message"],
            "steps": steps,
            "dq_results": rows.get(X_META_DQ_RESULTS.name, []),
            "timeline": [moment(r.event, r.envelope) for r in history],
        }
    )


def _columns(row: Mapping[str, Any], pipeline_id: str | None) -> dict[str, Any]:
    started, ended = row["actual_start_time"], row["actual_end_time"]
    duration = (ended - started) // timedelta(milliseconds=1) if started and ended else None
    return {
        **row,
        "pipeline_logging_id": row["run_id"],
        "pipeline_id": pipeline_id,
        "duration_ms": duration,
        "parameters": row["parameters"] or {},
    }


def _rows(history: Sequence[Recorded]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of one stream, by table; the projectors that fill the tables make these too."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for folded in fold([change for r in history for change in changes_of(r.event, r.envelope)]).rows:
        table: Table = folded.table
        if folded.whole:
            rows.setdefault(table.name, []).append(folded.values)
    return rows


def moment(event: object, at: Envelope) -> Moment:
    """One event as the timeline shows it."""
    return Moment(at=at.at, event=at.topic.partition("@")[0], by=to_customers(at.by.actor), text=_text(event))


def _text(event: object) -> str:  # noqa: PLR0911 - one case an event
    match event:
        case RunScheduled(trigger_type=trigger, trigger_by=by, missed_since=missed_since):
            asked = trigger if by == trigger else f"{trigger}, by {by}"
            return f"Queued ({asked})." + (f" Stands for all slots since {missed_since}." if missed_since else "")
        case RunClaimed(worker_id=worker, attempt=attempt):
            return f"Attempt {attempt} started on {worker}."
        case StepFinished(name=name, status=status, rows=rows, error=error):
            return f"Step {name}: {status}, {_counted(rows)}." + (f" {error}" if error else "")
        case RunCompleted(rows=rows):
            return f"Completed, {_counted(rows)}."
        case RunFailed(error=error):
            return f"Failed: {error}"
        case RunRequeued(reason=reason):
            return f"Back in the queue: {reason}"
        case CancelRequested(reason=reason):
            return f"Cancellation asked for: {reason}"
        case RunCancelled(reason=reason):
            return f"Cancelled: {reason}"
        case RunSkipped(reason=reason):
            return f"Skipped: {reason}"
    return type(event).__name__


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
