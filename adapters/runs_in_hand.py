"""The runs that a worker has in hand: claimed, executed, renewed, and told of."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Self
from uuid import uuid4

from adapters.attempt import Attempt, Progress, Stop
from adapters.bootstrap import Service, origin
from adapters.postgres import leases, offers
from adapters.reporter import Reporter
from application.execution import LEASE_SECONDS, ClaimRuns, Outcome, claim_runs
from application.ports import Away, Cancelled, RunOrder, RunReport
from application.session import Superseded

logger = logging.getLogger(__name__)

_CONFIRM_S: Final = 1.0
"""What is over by then, as most short runs are, needs no renewal at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a worker holds runs without a sign of life, and how long it takes to end; in seconds.

    `lost_after_s` must be shorter than `lease_s`: a worker that could not renew its leases has stopped its runs before
    they are another's.
    """

    lease_s: float = LEASE_SECONDS
    heartbeat_s: float = 15.0
    lost_after_s: float = 45.0
    takeover_s: float = 10.0
    grace_s: float = 25.0

    @property
    def finish_s(self) -> float:
        """The part of the grace in which runs may come to their own end; in the rest they are handed back."""
        return self.grace_s * 0.8


DEFAULT_TIMING: Final = Timing()


class Worker:
    """Holds runs for one worker id: claims, heartbeats, reports."""

    def __init__(
        self,
        service: Service,
        worker_id: str,
        *,
        timing: Timing = DEFAULT_TIMING,
        let_go: Callable[[], None] = lambda: None,
        request_id: str | None = None,
    ) -> None:
        """`let_go` is called when some of the runs in hand have been recorded, once for all of them.

        `request_id` is the HTTP request in which this worker works, if it does so in one.
        """
        self._service = service
        self._timing = timing
        self._held: dict[tuple[str, int], Attempt] = {}
        self._lock = threading.Lock()
        self._reporter = Reporter(
            service,
            worker_id,
            patience_s=timing.lost_after_s,
            in_hand=lambda: self.holding,
            then=let_go,
            request_id=request_id,
        )
        self._let_go = let_go
        self._request_id = request_id
        self.unheard = False
        """Whether runs may have been taken up of which this worker heard nothing: `take_up` gives them back."""
        self.worker_id = worker_id
        self.offer_id = uuid4()
        """The name by which the worker is handed runs: another process may have the same `worker_id`."""
        self.finished = 0
        """Attempts that came to an outcome and were not handed back, since the start."""

    def __enter__(self) -> Self:
        self._reporter.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when what was executed has been recorded."""
        self._reporter.stop()

    def claim(self, limit: int, run_id: str | None = None) -> list[RunOrder]:
        """Claim at most `limit` runs; they are this worker's until reported.

        Raises `Away` with the database. What was claimed then is not executed, and costs its run no attempt.
        """
        command = ClaimRuns(
            at=self._service.now(),
            by=origin(f"worker:{self.worker_id}", request_id=self._request_id),
            worker_id=self.worker_id,
            limit=limit,
            run_id=run_id,
            lease_seconds=self._timing.lease_s,
        )
        orders = claim_runs(command, self._service.platform)
        if not orders:
            return []
        ours_until = self._ours_until()
        claimed = {attempt.key: attempt for attempt in (Attempt(order, ours_until) for order in orders)}
        try:
            begun = leases.renew(self._service.datastore, self.worker_id, list(claimed), self._timing.lease_s)
        except (Away, Superseded) as error:
            # Whether they have begun nobody knows: they are given back as soon as the database answers again.
            for attempt in claimed.values():
                self._tell(attempt.handed_back(self._service.now(), "The worker lost the database before it began."))
            raise Away(str(error)) from error
        # A claim that took longer than its lease may be another's by now.
        held = {(lease.run_id, lease.attempt): claimed[lease.run_id, lease.attempt] for lease in begun}
        with self._lock:
            self._held.update(held)
        return [attempt.order for attempt in held.values()]

    def take_up(self, most: int) -> list[RunOrder]:
        """Begin at most so many runs that were handed to this worker's offer; they are this worker's until reported.

        What is left goes back to the queue in a moment, as what nobody takes up. Raises `Away` with the database. What
        was taken up then is not executed, and goes back at the next call.
        """
        with self._lock:
            besides = [run_id for run_id, _ in self._held]
        asked = time.monotonic()
        try:
            handed = offers.take_up(
                self._service.datastore,
                self.offer_id,
                self.worker_id,
                self._timing.lease_s,
                most=most,
                besides=besides,
                begun=self.unheard,
            )
        except (Away, Superseded) as error:
            self.unheard = True
            raise Away(str(error)) from error
        self.unheard = False
        share = self._timing.lost_after_s / self._timing.lease_s
        attempts = {
            each.order.run_id: Attempt(
                each.order,
                asked + share * min(each.left, self._timing.lease_s),
                renew_at=asked + _CONFIRM_S,
            )
            for each in handed
        }
        for each in handed:
            if each.begun:
                attempt = attempts.pop(each.order.run_id)
                self._tell(attempt.handed_back(self._service.now(), "The worker lost the database before it began."))
            elif each.stop_asked:
                attempts[each.order.run_id].stop(Stop.CANCELLED)
        with self._lock:
            self._held.update((attempt.key, attempt) for attempt in attempts.values())
        return [attempt.order for attempt in attempts.values()]

    def offer(self, free: int, seconds: float) -> None:
        """Be handed up to `free` runs within so many seconds. Raises `Away` with the database."""
        offers.offer(self._service.datastore, self.offer_id, self.worker_id, free, seconds)

    def withdraw(self) -> None:
        """Be handed nothing more. Raises `Away` with the database."""
        offers.withdraw(self._service.datastore, self.offer_id)

    def _ours_until(self) -> float:
        """Counted from before a renewal is asked for, so that it ends before the database's count does."""
        return time.monotonic() + self._timing.lost_after_s

    def execute(self, order: RunOrder) -> None:
        """Run one claimed attempt to its end and have it reported soon.

        What goes wrong in the run is its outcome, and raises nothing.
        """
        attempt = self._held[order.run_id, order.attempt]

        def recorded(*, finished: bool) -> None:
            with self._lock:
                del self._held[attempt.key]
                self.finished += finished

        try:
            outcome = self._outcome(attempt)
        except BaseException:
            # Held no more, it is not renewed for ever: another worker takes it over.
            recorded(finished=False)
            self._let_go()
            raise
        if outcome is None:
            recorded(finished=False)
            self._let_go()
        else:
            self._reporter.submit(outcome, partial(recorded, finished=outcome.handed_back is None))

    def _outcome(self, attempt: Attempt) -> Outcome | None:
        order = attempt.order
        try:
            report = self._service.engine.run(order, Progress(attempt, self._flush))
        except Cancelled:
            match attempt.reason:
                case Stop.LOST:
                    logger.warning("run %s: attempt %d lost its lease and was stopped", order.run_id, order.attempt)
                    if attempt.renew_at is None:
                        return None
                    # It was taken up, and not renewed in time for a database that may have forgotten that. Mostly it
                    # has not: then nobody else would have the run for a minute.
                    return attempt.handed_back(self._service.now(), "The worker could not renew the lease at once.")
                case Stop.CANCELLED:
                    return attempt.cancelled(self._service.now())
                case _:
                    return attempt.handed_back(self._service.now(), "The worker shut down.")
        except Exception:
            logger.exception("run %s: the engine failed", order.run_id)
            report = RunReport(succeeded=False, error="The pipeline engine failed; the operators' log says why.")
        return attempt.ended(self._service.now(), report)

    def _flush(self, attempt: Attempt) -> None:
        outcome = attempt.so_far(self._service.now())
        if outcome is not None:
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._reporter.submit(outcome, lambda: None)

    def renew(self) -> bool:
        """One heartbeat: renew all leases; stop what was cancelled, and what is held no more.

        Answers whether the database did. While it does not, attempts end by themselves before they are another's.
        """
        with self._lock:
            attempts = dict(self._held)
        ours_until = self._ours_until()
        # What was taken up is held for a few seconds only until this one is on the disk.
        durable = any(attempt.renew_at is not None for attempt in attempts.values())
        try:
            answer = leases.renew(
                self._service.datastore, self.worker_id, list(attempts), self._timing.lease_s, durable=durable
            )
        except (Away, Superseded) as error:
            logger.warning("the leases of %d runs could not be renewed: %s", len(attempts), error)
            for attempt in attempts.values():
                if attempt.renew_at is not None:
                    attempt.renew_at = time.monotonic() + _CONFIRM_S
            return False
        held = {(lease.run_id, lease.attempt): lease for lease in answer}
        for key, attempt in attempts.items():
            if key not in held:
                attempt.renew_at = None
                attempt.stop(Stop.LOST)
                continue
            attempt.ours_until, attempt.renew_at = ours_until, None
            if held[key].stop_asked:
                attempt.stop(Stop.CANCELLED)
        return True

    @property
    def must_renew(self) -> bool:
        """Whether a run was taken up a moment ago whose lease is to be renewed before the next heartbeat is due."""
        now = time.monotonic()
        with self._lock:
            return any(attempt.renew_at is not None and attempt.renew_at <= now for attempt in self._held.values())

    @property
    def holding(self) -> int:
        """How many runs are in hand: claimed, and not yet recorded."""
        with self._lock:
            return len(self._held)

    def wait_idle(self, timeout_s: float) -> None:
        """Returns when nothing is in hand any more, or the time is up."""
        until = time.monotonic() + timeout_s
        while self.holding and time.monotonic() < until:
            time.sleep(0.05)

    def hand_back_all(self) -> None:
        """Stop every run in hand; each goes back to the queue."""
        with self._lock:
            attempts = list(self._held.values())
        for attempt in attempts:
            attempt.stop(Stop.SHUTDOWN)
