"""One execution of a pipeline.

PENDING → RUNNING → COMPLETED
   │         ├────→ FAILED
   │         ├────→ PENDING      (requeued: a retry, or the lease ran out)
   │         └────→ CANCELLED
   ├─────────────→ CANCELLED
   └─────────────→ SKIPPED
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Final

from domain.refusals import Conflict
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
    Trigger,
)


class RunState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"

    @property
    def ended(self) -> bool:
        return self not in {RunState.PENDING, RunState.RUNNING}


class Priority(IntEnum):
    """Which run of one customer goes first: the lower number."""

    ONBOARDING = 0
    MANUAL = 10
    RETRY = 20
    SCHEDULED = 30
    CATCH_UP = 40
    BACKFILL = 50


MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """One execution of a pipeline: pending → running → completed."""

    order: RunScheduled
    state: RunState = RunState.PENDING
    attempt: int = 0
    attempts_spent: int = 0
    attempts_not_begun: int = 0
    worker_id: str | None = None
    started_at: datetime | None = None
    lease_expires_at: datetime | None = None
    not_before: datetime | None = None
    cancel_requested: bool = False
    cancel_reason: str = "Cancelled on request."
    steps_done: frozenset[tuple[int, int]] = frozenset()

    @property
    def customer_id(self) -> str:
        return self.order.customer_id

    @property
    def _schedule(self) -> str | None:
        """The pipeline whose newest run this is about: back-fill says nothing of how its schedule goes."""
        return None if self.order.trigger_type is Trigger.BACKFILL else self.order.config_id

    def ready(self, now: datetime) -> bool:
        """Whether a worker may have it: rows that say so may be out of date."""
        return self.state is RunState.PENDING and (self.not_before is None or self.not_before <= now)

    def claim(self, worker_id: str, at: datetime, lease: timedelta) -> tuple[RunEvent, ...]:
        """A worker takes the run for `lease`."""
        if self.state is not RunState.PENDING:
            raise Conflict(f"The run is {self.state} already.")
        if not self.ready(at):
            raise Conflict("The run waits for its next attempt.")
        return (RunClaimed(worker_id=worker_id, attempt=self.attempt + 1, started_at=at, lease_expires_at=at + lease),)

    def _held(self, worker_id: str, attempt: int) -> None:
        if self.state is not RunState.RUNNING or self.attempt != attempt or self.worker_id != worker_id:
            raise Conflict(f"Attempt {attempt} no longer holds the run: it is {self.state}, attempt {self.attempt}.")

    def finish_step(self, worker_id: str, step: StepFinished) -> tuple[RunEvent, ...]:
        """Record a step of the attempt that holds the run; the same step twice is one step."""
        self._held(worker_id, step.attempt)
        return () if (step.attempt, step.index) in self.steps_done else (step,)

    def complete(self, worker_id: str, attempt: int, at: datetime, rows: int) -> tuple[RunEvent, ...]:
        self._held(worker_id, attempt)
        return (
            RunCompleted(
                attempt=attempt,
                started_at=self.started_at or at,
                ended_at=self._end(at),
                rows=rows,
                config_id=self._schedule,
            ),
        )

    def fail(
        self, worker_id: str, attempt: int, at: datetime, error: str, retry_at: datetime | None
    ) -> tuple[RunEvent, ...]:
        """The attempt failed. With `retry_at` the error can pass: the run goes back while it has attempts left."""
        self._held(worker_id, attempt)
        if retry_at is not None and not self.last_attempt:
            if self.cancel_requested:
                return self._cancelled(at)
            return (RunRequeued(attempt=attempt, not_before=retry_at, reason=error),)
        return (self._failed(at, error),)

    def hand_back(self, worker_id: str, attempt: int, at: datetime, reason: str) -> tuple[RunEvent, ...]:
        """The worker stops before the end and lets another one have the run at once; the attempt does not count."""
        self._held(worker_id, attempt)
        if self.cancel_requested:
            return self._cancelled(at)
        return (RunRequeued(attempt=attempt, not_before=at, reason=reason, spent=False),)

    def expire(self, at: datetime, *, begun: bool) -> tuple[RunEvent, ...]:
        """The lease ran out: the run goes back to the queue, or has failed when its attempts are used up.

        Whether it ran out, and whether the worker had `begun` to execute it, is the caller's to say: leases are kept
        by the database's clock, without events. A claim whose worker never began costs no attempt.
        """
        if self.state is not RunState.RUNNING:
            return ()
        if self.cancel_requested:
            return self._cancelled(at)
        if not begun:
            reason = f"Worker {self.worker_id} never began attempt {self.attempt}."
            return (RunRequeued(attempt=self.attempt, not_before=at, reason=reason, spent=False, begun=False),)
        reason = f"Worker {self.worker_id} stopped answering during attempt {self.attempt}."
        if self.last_attempt:
            return (self._failed(at, reason),)
        return (RunRequeued(attempt=self.attempt, not_before=at, reason=reason),)

    def cancel(self, at: datetime, reason: str) -> tuple[RunEvent, ...]:
        """Ask for the end of the run: at once while it waits, at the worker's next heartbeat while it runs."""
        match self.state:
            case RunState.PENDING:
                return (RunCancelled(attempt=self.attempt, ended_at=at, reason=reason, config_id=self._schedule),)
            case RunState.RUNNING:
                return () if self.cancel_requested else (CancelRequested(reason=reason),)
            case _:
                raise Conflict(f"The run is {self.state} already and cannot be cancelled.")

    def end(self, at: datetime, reason: str) -> tuple[RunEvent, ...]:
        """End the run at once, whoever holds it: what its worker still says is refused. One that has ended has."""
        match self.state:
            case RunState.PENDING:
                return self.cancel(at, reason)
            case RunState.RUNNING:
                # Asked for too: that is what wakes its worker.
                asked: tuple[RunEvent, ...] = () if self.cancel_requested else (CancelRequested(reason=reason),)
                return (*asked, *self._cancelled(at, reason))
            case _:
                return ()

    def stop_cancelled(self, worker_id: str, attempt: int, at: datetime) -> tuple[RunEvent, ...]:
        """The worker saw the request and stopped."""
        self._held(worker_id, attempt)
        return self._cancelled(at)

    def skip(self, at: datetime, reason: str) -> tuple[RunEvent, ...]:
        if self.state is not RunState.PENDING:
            raise Conflict(f"The run is {self.state} already.")
        return (RunSkipped(ended_at=at, reason=reason, config_id=self._schedule),)

    @property
    def last_attempt(self) -> bool:
        """Whether the run has failed when this attempt does. Those that were handed back or never began don't count."""
        return self.attempts_spent + 1 >= MAX_ATTEMPTS

    def _end(self, at: datetime) -> datetime:
        """Workers' clocks may be behind the database's, which said when the attempt began."""
        return at if self.started_at is None else max(at, self.started_at)

    def _failed(self, at: datetime, error: str) -> RunFailed:
        return RunFailed(
            attempt=self.attempt,
            started_at=self.started_at or at,
            ended_at=self._end(at),
            error=error,
            config_id=self._schedule,
        )

    def _cancelled(self, at: datetime, reason: str | None = None) -> tuple[RunEvent, ...]:
        return (
            RunCancelled(
                attempt=self.attempt,
                started_at=self.started_at,
                ended_at=self._end(at),
                reason=reason or self.cancel_reason,
                config_id=self._schedule,
            ),
        )

    @property
    def started(self) -> bool:
        """Whether any attempt ever began: only a run that never did gives its unit of quota back."""
        return self.attempt > self.attempts_not_begun


# --- fold ---------------------------------------------------------------------------------------------------------


def evolve(run: PipelineRun | None, event: RunEvent) -> PipelineRun:  # noqa: PLR0911 - one case an event
    """What the run is after `event`."""
    if isinstance(event, RunScheduled):
        return PipelineRun(order=event, not_before=event.not_before)
    assert run is not None, "a run begins with RunScheduled"  # noqa: S101 - the store keeps the order
    match event:
        case RunClaimed(worker_id=worker_id, attempt=attempt, started_at=started_at, lease_expires_at=until):
            return replace(
                run,
                state=RunState.RUNNING,
                attempt=attempt,
                worker_id=worker_id,
                started_at=started_at,
                lease_expires_at=until,
            )
        case StepFinished(attempt=attempt, index=index):
            return replace(run, steps_done=run.steps_done | {(attempt, index)})
        case RunRequeued(not_before=not_before, spent=spent, begun=begun):
            return replace(
                run,
                state=RunState.PENDING,
                attempts_spent=run.attempts_spent + spent,
                attempts_not_begun=run.attempts_not_begun + (not begun),
                worker_id=None,
                lease_expires_at=None,
                not_before=not_before,
            )
        case CancelRequested(reason=reason):
            return replace(run, cancel_requested=True, cancel_reason=reason)
        case RunCompleted():
            return replace(run, state=RunState.COMPLETED)
        case RunFailed():
            return replace(run, state=RunState.FAILED)
        case RunCancelled():
            return replace(run, state=RunState.CANCELLED)
        case RunSkipped():
            return replace(run, state=RunState.SKIPPED)
