"""What happens to a run. These shapes are the storage format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any


class Trigger(StrEnum):
    MANUAL = "manual"
    SCHEDULED = "scheduled"
    RETRY = "retry"
    ONBOARDING = "onboarding"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScheduled:
    """A run came into being and waits for a worker.

    `counted_on` is the UTC day whose quota it took a unit of, None when it counts against none; `next_run_time` is the
    pipeline's next slot, `missed_since` the oldest of the missed slots that this run stands for besides its own.
    Before `not_before` no worker may have it.
    """

    customer_id: str
    provider: str
    domain: str
    template: str
    pipeline_id: str
    trigger_type: Trigger
    trigger_by: str
    run_date: date
    scheduled_for: datetime
    priority: int
    config_id: str | None = None
    counted_on: date | None = None
    next_run_time: datetime | None = None
    missed_since: datetime | None = None
    retry_of: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    not_before: datetime | None = None
    backfill_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunClaimed:
    """A worker took the run. `attempt` is the fencing token: whatever the worker says later must carry it."""

    worker_id: str
    attempt: int
    started_at: datetime
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectationMet:
    """How one data-quality check came out; `observed` says what was seen, never a customer's values."""

    name: str
    passed: bool
    severity: str
    observed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    attempt: int
    index: int
    name: str
    type: str
    status: str
    started_at: datetime
    ended_at: datetime
    rows: int = 0
    error: str | None = None
    target_table: str | None = None
    expectations: tuple[ExpectationMet, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCompleted:
    attempt: int
    started_at: datetime
    ended_at: datetime
    rows: int
    config_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    attempt: int
    started_at: datetime
    ended_at: datetime
    error: str
    rows: int = 0
    config_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequeued:
    """Back in the queue until `not_before`: the attempt failed in a way that can pass, or its lease ran out.

    `spent` says whether the attempt counts as one of the run's: one that its worker handed back does not. `begun` says
    whether it was executed at all.
    """

    attempt: int
    not_before: datetime
    reason: str
    spent: bool = True
    begun: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled:
    attempt: int
    ended_at: datetime
    reason: str
    started_at: datetime | None = None
    config_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSkipped:
    ended_at: datetime
    reason: str
    config_id: str | None = None


RunEvent = (
    RunScheduled
    | RunClaimed
    | StepFinished
    | RunCompleted
    | RunFailed
    | RunRequeued
    | CancelRequested
    | RunCancelled
    | RunSkipped
)
