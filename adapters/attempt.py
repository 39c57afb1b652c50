"""One attempt of a run in a worker's hands: until when it is the worker's, what it has reported, and how it ends."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from application.execution import Outcome
from application.ports import Cancelled, RunOrder, RunReport, StepReport

_FLUSH_STEPS_AFTER_S: Final = 1.0
_BACKOFF_BASE_S: Final = 15.0
"""Three attempts then outlast an outage of a minute: what passes sooner, steps try again by themselves."""
_BACKOFF_CAP_S: Final = 300.0
_BACKOFF_DOUBLINGS: Final = 5
"""So many reach the cap. The attempt number of a run that was handed back often is far higher."""


class Stop(StrEnum):
    """Why an attempt ends before its run does."""

    CANCELLED = "cancelled"
    LOST = "lost"
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class Attempt:
    """What the thread that executes a run shares with the heartbeat.

    `ours_until` is an instant of this process's monotonic clock. It moves on with every renewal of the lease; after it
    the run may be another worker's. `renew_at`, where it is set, is when the first renewal is due.
    """

    order: RunOrder
    ours_until: float
    renew_at: float | None = None
    steps: list[StepReport] = field(default_factory=list)
    flushed_at: float = field(default_factory=time.monotonic)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _reasons: list[Stop] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        return self.order.run_id, self.order.attempt

    @property
    def reason(self) -> Stop | None:
        """Why it is to end; the first reason counts."""
        return self._reasons[0] if self._reasons else None

    def stop(self, reason: Stop) -> None:
        """Have it end at its next look."""
        self._reasons.append(reason)
        self._stopped.set()

    def look(self) -> None:
        """Raises `Cancelled` when it is to end, and when its lease was not renewed in time.

        The time is looked at here and not by the heartbeat, which may hang or, after a pause of the whole process,
        wake up later than this does.
        """
        if time.monotonic() >= self.ours_until:
            self.stop(Stop.LOST)
        if self._stopped.is_set():
            raise Cancelled

    def so_far(self, at: datetime) -> Outcome | None:
        """The steps of a run that takes long, to be recorded on the way; None when it is not time for that."""
        if not self.steps or time.monotonic() - self.flushed_at < _FLUSH_STEPS_AFTER_S:
            return None
        outcome = self._outcome(at)
        self.steps.clear()
        self.flushed_at = time.monotonic()
        return outcome

    def ended(self, at: datetime, report: RunReport) -> Outcome:
        """The run's own end. An error that can pass asks for another attempt, after a while."""
        again = not report.succeeded and report.can_pass
        retry_after = timedelta(seconds=backoff_s(self.order.attempt)) if again else None
        return self._outcome(at, report=report, retry_after=retry_after)

    def cancelled(self, at: datetime) -> Outcome:
        return self._outcome(at, cancelled=True)

    def handed_back(self, at: datetime, reason: str) -> Outcome:
        return self._outcome(at, handed_back=reason)

    def _outcome(
        self,
        at: datetime,
        *,
        report: RunReport | None = None,
        retry_after: timedelta | None = None,
        cancelled: bool = False,
        handed_back: str | None = None,
    ) -> Outcome:
        return Outcome(
            run_id=self.order.run_id,
            customer_id=self.order.customer_id,
            attempt=self.order.attempt,
            at=at,
            steps=tuple(self.steps),
            report=report,
            retry_after=retry_after,
            cancelled=cancelled,
            handed_back=handed_back,
        )


class Progress:
    """What the engine tells while it works; `flush` is called after each step."""

    def __init__(self, attempt: Attempt, flush: Callable[[Attempt], None]) -> None:
        self._attempt = attempt
        self._flush = flush

    def finished(self, step: StepReport) -> None:
        self._attempt.steps.append(step)
        self._flush(self._attempt)
        self.check()

    def check(self) -> None:
        self._attempt.look()


def backoff_s(attempt: int) -> float:
    """Seconds to wait before the next attempt: exponential, with full jitter."""
    longest = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2 ** min(attempt, _BACKOFF_DOUBLINGS))
    return random.uniform(0, longest)  # noqa: S311 - no secret
