"""Rows of runs in their customer's own dataset: the execution log, its steps, its data-quality results."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import singledispatch
from typing import Any

from domain.envelope import Envelope
from domain.run_events import (
    CancelRequested,
    RunCancelled,
    RunClaimed,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunRequeued,
    RunScheduled,
    RunSkipped,
    StepFinished,
)
from projections.rows import Put, RowChange, Set
from projections.tables import X_META_DQ_RESULTS, X_META_PIPELINE_RUNS, X_META_STEP_LOGS


@singledispatch
def rows(event: RunEvent, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - what every case takes
    """The rows of one run event."""
    raise TypeError(f"No rows are defined for {type(event).__name__}.")


def _log(at: Envelope, **values: Any) -> Set:  # noqa: ANN401 - a column's value
    return Set(X_META_PIPELINE_RUNS, {"pipeline_logging_id": str(at.stream_id), **values})


def _milliseconds(since: datetime, until: datetime) -> int:
    return (until - since) // timedelta(milliseconds=1)


@rows.register
def _(event: RunScheduled, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        X_META_PIPELINE_RUNS,
        {
            "pipeline_logging_id": str(at.stream_id),
            "pipeline_id": event.pipeline_id,
            "customer_id": event.customer_id,
            "status": "PENDING",
            "trigger_type": event.trigger_type,
            "trigger_by": event.trigger_by,
            "run_date": event.run_date,
            "start_time": None,
            "end_time": None,
            "duration_ms": None,
            "rows_processed": None,
            "error_message": None,
            "parameters": dict(event.parameters),
            "deleted_at": None,
        },
    )


@rows.register
def _(event: RunClaimed, at: Envelope) -> Iterator[RowChange]:
    yield _log(at, status="RUNNING", start_time=event.started_at)


@rows.register
def _(event: StepFinished, at: Envelope) -> Iterator[RowChange]:
    run_id = str(at.stream_id)
    step_id = f"{run_id}:{event.attempt}:{event.index}"
    yield Put(
        X_META_STEP_LOGS,
        {
            "step_logging_id": step_id,
            "pipeline_logging_id": run_id,
            "step_name": event.name,
            "step_type": event.type,
            "step_index": event.index,
            "status": event.status,
            "attempt": event.attempt,
            "start_time": event.started_at,
            "end_time": event.ended_at,
            "duration_ms": _milliseconds(event.started_at, event.ended_at),
            "rows_processed": event.rows,
            "error_message": event.error,
            "metadata": dict(event.metadata),
            "deleted_at": None,
        },
    )
    if event.expectations:
        failed = [e for e in event.expectations if not e.passed]
        fatal = any(e.severity == "fail" for e in failed)
        yield Put(
            X_META_DQ_RESULTS,
            {
                "dq_result_id": step_id,
                "pipeline_logging_id": run_id,
                "target_table": event.target_table,
                "dq_config_id": event.name,
                "executed_at": event.ended_at,
                "expectations_passed": len(event.expectations) - len(failed),
                "expectations_failed": len(failed),
                "failed_expectations": [
                    {"name": e.name, "severity": e.severity, "observed": e.observed} for e in failed
                ],
                "overall_status": "FAIL" if fatal else "WARN" if failed else "PASS",
                "ingestion_date": event.ended_at.date(),
                "deleted_at": None,
            },
        )


def _ended(  # noqa: PLR0917 - the columns of an end
    at: Envelope,
    status: str,
    ended_at: datetime,
    started_at: datetime | None,
    rows_processed: int | None = None,
    error: str | None = None,
) -> Set:
    return _log(
        at,
        status=status,
        end_time=ended_at,
        duration_ms=None if started_at is None else _milliseconds(started_at, ended_at),
        rows_processed=rows_processed,
        error_message=error,
    )


@rows.register
def _(event: RunCompleted, at: Envelope) -> Iterator[RowChange]:
    yield _ended(at, "COMPLETED", event.ended_at, event.started_at, event.rows)


@rows.register
def _(event: RunFailed, at: Envelope) -> Iterator[RowChange]:
    yield _ended(at, "FAILED", event.ended_at, event.started_at, event.rows, event.error)


@rows.register
def _(event: RunCancelled, at: Envelope) -> Iterator[RowChange]:
    yield _ended(at, "CANCELLED", event.ended_at, event.started_at, error=event.reason)


@rows.register
def _(event: RunSkipped, at: Envelope) -> Iterator[RowChange]:
    yield _ended(at, "SKIPPED", event.ended_at, None, error=event.reason)


@rows.register
def _(event: RunRequeued, at: Envelope) -> Iterator[RowChange]:
    yield _log(at, status="PENDING", error_message=event.reason)


@rows.register
def _(event: CancelRequested, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the run goes on until its worker sees it
    yield from ()
