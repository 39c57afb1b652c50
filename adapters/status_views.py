"""The status of the service as HTTP and the command line show it."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, Field

from projections.follow import ProblemKind


class WaitsFor(StrEnum):
    """What keeps a customer's waiting runs from starting."""

    SUSPENDED = "suspended"
    LATER = "later"
    LIMIT = "limit"
    PIPELINE = "pipeline"
    BACKFILL = "backfill"
    WORKER = "worker"


class CustomerWaiting(BaseModel):
    """A customer whose runs wait."""

    customer_id: str
    pending: int
    ready: int = Field(description="Those of them that do not wait for an instant.")
    running: int
    places: int | None = Field(description="How many of its runs may run at a time.")
    oldest_wait_seconds: float | None = Field(description="Since its oldest ready run could have started.")
    waits_for: WaitsFor
    why: str


class LeaseView(BaseModel):
    """A running run, held by its worker until the lease ends or is renewed."""

    run_id: str
    customer_id: str
    provider: str | None
    domain: str | None
    pipeline_template: str | None
    worker_id: str
    attempt: int
    running_seconds: float | None
    begun: bool = Field(description="Whether the worker has begun to execute it.")
    stop_asked: bool = Field(description="Whether its cancellation was asked for.")
    expires_at: datetime
    seconds_left: float = Field(description="Below zero when the lease is over.")
    expired: bool


class WorkerView(BaseModel):
    """A process that executes runs, or did within the last day."""

    worker_id: str
    runs: int = Field(description="Runs it holds.")
    alive: bool | None = Field(description="null for one that holds runs and never said that it lives.")
    seen_seconds_ago: float | None
    host: str | None
    pid: int | None
    version: str | None
    started_at: datetime | None
    concurrency: int | None = Field(description="How many runs it executes at a time.")
    finished: int | None = Field(description="Attempts that it brought to an end since it started.")
    finished_per_minute: int | None


class ProcessView(BaseModel):
    """A process of the service."""

    instance_id: str
    roles: list[str]
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_seconds_ago: float
    alive: bool


class Trouble(BaseModel):
    """Something that an operator has to look at."""

    problem: str
    remedy: str


class SkipView(BaseModel):
    """An event that an operator had a projection pass over."""

    projection: str
    position: int
    topic: str
    reason: str
    skipped_by: str
    skipped_at: datetime


class ProjectionView(BaseModel):
    """How far a projection has come, and what keeps it from going on."""

    name: str
    position: int = Field(description="Of the last event that it handled.")
    log_end: int
    behind: int = Field(description="Events that it has not handled.")
    behind_seconds: float | None = Field(
        description="The age of the oldest of them; null where that event's own instant cannot be read."
    )
    events_per_second: float | None = Field(description="How fast it moved last, within the last minute.")
    alive: bool = Field(description="Whether a process works on it.")
    stopped: bool = Field(description="Whether it stands at an event that it can make nothing of.")
    problem: str | None
    problem_kind: ProblemKind | None
    problem_position: int | None = Field(description="The event that it stands at.")
    problem_topic: str | None = Field(description="The name under which that event is stored.")
    problem_since: datetime | None
    skipped: int = Field(description="Events that operators had it pass over.")


class RebuildView(BaseModel):
    """Tables that are made anew from the log, or were."""

    rebuild_id: str
    tables: list[str]
    target: str
    state: str
    asked_by: str
    reason: str | None
    asked_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    position: int = Field(description="How far the log was read.")
    log_end: int
    error: str | None


class ProjectionsView(BaseModel):
    """All projections, the events that are passed over, and the newest rebuilds."""

    log_end: int = Field(description="The position of the newest event.")
    items: list[ProjectionView]
    skipped: list[SkipView]
    rebuilds: list[RebuildView] = Field(description="The newest first.")


class StatusView(BaseModel):
    """The queue and the processes now, by the database's clock."""

    now: datetime
    due: int = Field(description="Pipelines whose slot has come and that were not triggered yet.")
    due_seconds: float | None = Field(description="For how long the oldest of them has been due.")
    next_slot: datetime | None
    pending: int
    pending_ready: int = Field(description="Waiting runs that do not wait for an instant.")
    pending_later: int = Field(description="Waiting runs that may not start before some instant: retries and jitter.")
    running: int
    oldest_pending_age_seconds: float | None = Field(description="How long the oldest ready run waits.")
    waiting_customers: int
    customers: list[CustomerWaiting] = Field(description="Those with the most waiting runs.")
    alive: dict[str, int] = Field(description="Processes that live, by role.")
    dead: int = Field(description="Processes that were not stopped in order and were not seen for a minute.")
    throughput_per_minute: int = Field(description="Attempts brought to an end, by all workers together.")
    places_free: int = Field(description="How many more runs the workers could execute.")
    workers: list[WorkerView]
    processes: list[ProcessView]
    leases: list[LeaseView] = Field(description="Running runs; of many, those whose leases end first.")
    projections: list[ProjectionView]
    problems: list[Trouble]
