"""Rows of runs in the central tables: their state, and the queue."""

from collections.abc import Iterator
from datetime import datetime
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
from projections.tables import (
    CUSTOMER_PIPELINE_CONFIGS,
    PIPELINE_EXECUTION_QUEUE,
    SCHEDULED_PIPELINE_RUNS,
)


@singledispatch
def rows(event: RunEvent, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - what every case takes
    """The rows of one run event."""
    raise TypeError(f"No rows are defined for {type(event).__name__}.")


def _run(at: Envelope, **values: Any) -> Set:  # noqa: ANN401 - a column's value
    return Set(SCHEDULED_PIPELINE_RUNS, {"run_id": str(at.stream_id), **values, "updated_at": at.at})


def _queue(at: Envelope, **values: Any) -> Set:  # noqa: ANN401 - a column's value
    return Set(PIPELINE_EXECUTION_QUEUE, {"run_id": str(at.stream_id), **values})


@rows.register
def _(event: RunScheduled, at: Envelope) -> Iterator[RowChange]:
    run_id = str(at.stream_id)
    yield Put(
        SCHEDULED_PIPELINE_RUNS,
        {
            "run_id": run_id,
            "config_id": event.config_id,
            "customer_id": event.customer_id,
            "provider": event.provider,
            "domain": event.domain,
            "pipeline_template": event.template,
            "trigger_type": event.trigger_type,
            "trigger_by": event.trigger_by,
            "backfill_id": event.backfill_id,
            "state": "PENDING",
            "run_date": event.run_date,
            "scheduled_time": event.scheduled_for,
            "actual_start_time": None,
            "actual_end_time": None,
            "attempt": 0,
            "worker_id": None,
            "rows_processed": None,
            "error_message": None,
            "parameters": dict(event.parameters),
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )
    yield Put(
        PIPELINE_EXECUTION_QUEUE,
        {
            "run_id": run_id,
            "customer_id": event.customer_id,
            "config_id": event.config_id,
            "priority": event.priority,
            "scheduled_time": event.scheduled_for,
            "state": "PENDING",
            "not_before": event.not_before,
            "claimed_by": None,
            "lease_expires_at": None,
            "deleted_at": None,
        },
    )
    if event.config_id is not None and event.next_run_time is not None:
        yield Set(
            CUSTOMER_PIPELINE_CONFIGS,
            {
                "config_id": event.config_id,
                "next_run_time": event.next_run_time,
                "last_run_time": event.scheduled_for,
                "last_run_state": "PENDING",
            },
        )


@rows.register
def _(event: RunClaimed, at: Envelope) -> Iterator[RowChange]:
    yield _run(
        at,
        state="RUNNING",
        attempt=event.attempt,
        worker_id=event.worker_id,
        actual_start_time=event.started_at,
        actual_end_time=None,
        error_message=None,
    )
    yield _queue(at, state="RUNNING", claimed_by=event.worker_id, lease_expires_at=event.lease_expires_at)


@rows.register
def _(event: StepFinished, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - steps are in the customer's own log
    yield from ()


def _ended(  # noqa: PLR0917 - the columns of an end
    at: Envelope,
    state: str,
    ended_at: datetime,
    config_id: str | None,
    rows_processed: int | None = None,
    error: str | None = None,
) -> Iterator[RowChange]:
    yield _run(at, state=state, actual_end_time=ended_at, rows_processed=rows_processed, error_message=error)
    yield _queue(at, state=state, lease_expires_at=None, deleted_at=at.at)
    if config_id is not None:
        yield Set(CUSTOMER_PIPELINE_CONFIGS, {"config_id": config_id, "last_run_state": state})


@rows.register
def _(event: RunCompleted, at: Envelope) -> Iterator[RowChange]:
    yield from _ended(at, "COMPLETED", event.ended_at, event.config_id, event.rows)


@rows.register
def _(event: RunFailed, at: Envelope) -> Iterator[RowChange]:
    yield from _ended(at, "FAILED", event.ended_at, event.config_id, event.rows, event.error)


@rows.register
def _(event: RunCancelled, at: Envelope) -> Iterator[RowChange]:
    yield from _ended(at, "CANCELLED", event.ended_at, event.config_id, None, event.reason)


@rows.register
def _(event: RunSkipped, at: Envelope) -> Iterator[RowChange]:
    yield from _ended(at, "SKIPPED", event.ended_at, event.config_id, None, event.reason)


@rows.register
def _(event: RunRequeued, at: Envelope) -> Iterator[RowChange]:
    yield _run(at, state="PENDING", worker_id=None, error_message=event.reason)
    yield _queue(at, state="PENDING", claimed_by=None, lease_expires_at=None, not_before=event.not_before)


@rows.register
def _(event: CancelRequested, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the run goes on until its worker sees it
    yield from ()
