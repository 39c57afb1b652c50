"""The worker process: claims waiting runs, executes them in threads, and tells what became of them."""

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Self

from adapters.bootstrap import Service, origin, utc_now
from adapters.postgres import leases
from adapters.postgres.channels import QUEUE, STOP
from adapters.postgres.listener import Listener
from adapters.provisioner import provision_pending
from adapters.reporter import Reporter
from adapters.scheduler import run_takeover
from adapters.settings import Settings
from application.execution import LEASE_SECONDS, ClaimRuns, Outcome, claim_runs
from application.ports import Away, Cancelled, RunOrder, RunReport, StepReport

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 15.0
LOST_AFTER_S: Final = 45.0
"""A worker that could not renew its leases for this long stops its runs: they may be another's by now."""
GRACE_S: Final = 25.0
FLUSH_STEPS_AFTER_S: Final = 1.0
_BACKOFF_BASE_S: Final = 2.0
_BACKOFF_CAP_S: Final = 300.0


@dataclass(slots=True)
class _Attempt:
    """One attempt in hand: what it has reported, and whether it must stop."""

    order: RunOrder
    stop: threading.Event = field(default_factory=threading.Event)
    reason: str = ""
    steps: list[StepReport] = field(default_factory=list)
    flushed_at: float = field(default_factory=time.monotonic)


class Worker:
    """Holds runs for one worker id: claims, heartbeats, reports."""

    def __init__(self, service: Service, worker_id: str, *, lease_s: float = LEASE_SECONDS) -> None:
        self._service = service
        self._lease_s = lease_s
        self._held: dict[tuple[str, int], _Attempt] = {}
        self._lock = threading.Lock()
        self._renewed = time.monotonic()
        self._reporter = Reporter(service, worker_id, patience_s=LOST_AFTER_S)
        self.worker_id = worker_id

    def __enter__(self) -> Self:
        self._reporter.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when what was executed has been recorded."""
        self._reporter.stop()

    def claim(self, limit: int, run_id: str | None = None) -> list[RunOrder]:
        """Claim at most `limit` runs; they are this worker's until reported. Raises `Away` with the database."""
        command = ClaimRuns(
            at=utc_now(),
            by=origin(f"worker:{self.worker_id}"),
            worker_id=self.worker_id,
            limit=limit,
            run_id=run_id,
            lease_seconds=self._lease_s,
        )
        orders = claim_runs(command, self._service.platform)
        if not orders:
            return []
        # A claim whose answer was lost, or that took too long, is not executed: nobody would know of it.
        keys = [(order.run_id, order.attempt) for order in orders]
        begun = leases.renew(self._service.datastore, self.worker_id, keys, self._lease_s)
        held = {(lease.run_id, lease.attempt) for lease in begun}
        orders = [order for order in orders if (order.run_id, order.attempt) in held]
        with self._lock:
            self._held.update({(order.run_id, order.attempt): _Attempt(order) for order in orders})
        return orders

    def execute(self, order: RunOrder, recorded: Callable[[], None] = lambda: None) -> None:
        """Run one claimed attempt to its end and have it reported; `recorded` is called when that is done.

        Never raises: what goes wrong is the run's outcome.
        """
        attempt = self._held[order.run_id, order.attempt]

        def let_go() -> None:
            with self._lock:
                del self._held[order.run_id, order.attempt]
            recorded()

        outcome = self._outcome(attempt)
        if outcome is None:
            let_go()
        else:
            self._reporter.submit(outcome, let_go)

    def _outcome(self, attempt: _Attempt) -> Outcome | None:
        order = attempt.order
        progress = _Progress(self, attempt)
        try:
            report = self._service.engine.run(order, progress)
        except Cancelled:
            if attempt.reason == "lost":
                logger.warning("run %s: attempt %d lost its lease and was stopped", order.run_id, order.attempt)
                return None
            return (
                self._ended(attempt, cancelled=True)
                if attempt.reason == "cancelled"
                else self._ended(attempt, handed_back="The worker shut down.")
            )
        except Exception:
            logger.exception("run %s: the engine failed", order.run_id)
            report = RunReport(succeeded=False, error="The pipeline engine failed; the operators' log says why.")
        retry_after = None
        if not report.succeeded and report.can_pass:
            retry_after = timedelta(seconds=backoff_s(order.attempt))
        return self._ended(attempt, report=report, retry_after=retry_after)

    def _ended(
        self,
        attempt: _Attempt,
        *,
        report: RunReport | None = None,
        retry_after: timedelta | None = None,
        cancelled: bool = False,
        handed_back: str | None = None,
    ) -> Outcome:
        return Outcome(
            run_id=attempt.order.run_id,
            customer_id=attempt.order.customer_id,
            attempt=attempt.order.attempt,
            at=utc_now(),
            steps=tuple(attempt.steps),
            report=report,
            retry_after=retry_after,
            cancelled=cancelled,
            handed_back=handed_back,
        )

    def flush(self, attempt: _Attempt) -> None:
        """Record the steps so far of a run that takes long."""
        if attempt.steps and time.monotonic() - attempt.flushed_at >= FLUSH_STEPS_AFTER_S:
            self._reporter.submit(self._ended(attempt), lambda: None)
            attempt.steps.clear()
            attempt.flushed_at = time.monotonic()

    def renew(self) -> None:
        """One heartbeat: renew all leases; stop what was cancelled, and what is held no more."""
        with self._lock:
            attempts = list(self._held.items())
        try:
            answer = leases.renew(self._service.datastore, self.worker_id, [key for key, _ in attempts], self._lease_s)
        except Away:
            if time.monotonic() - self._renewed > LOST_AFTER_S:
                self._stop_all("lost")
            return
        self._renewed = time.monotonic()
        held = {(lease.run_id, lease.attempt): lease for lease in answer}
        for key, attempt in attempts:
            if key not in held:
                self._stop(attempt, "lost")
            elif held[key].stop_asked:
                self._stop(attempt, "cancelled")

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
        self._stop_all("shutdown")

    def _stop_all(self, reason: str) -> None:
        with self._lock:
            attempts = list(self._held.values())
        for attempt in attempts:
            self._stop(attempt, reason)

    @staticmethod
    def _stop(attempt: _Attempt, reason: str) -> None:
        attempt.reason = attempt.reason or reason
        attempt.stop.set()


class _Progress:
    """What the engine tells while it works."""

    def __init__(self, worker: Worker, attempt: _Attempt) -> None:
        self._worker = worker
        self._attempt = attempt

    def finished(self, step: StepReport) -> None:
        self._attempt.steps.append(step)
        self._worker.flush(self._attempt)
        self.check()

    def check(self) -> None:
        if self._attempt.stop.is_set():
            raise Cancelled


def backoff_s(attempt: int) -> float:
    """Seconds to wait before the next attempt: exponential, with full jitter."""
    return random.uniform(0, min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2**attempt))  # noqa: S311 - no secret


def _heartbeats(worker: Worker, done: threading.Event, wake: threading.Event) -> None:
    while not done.is_set():
        wake.wait(HEARTBEAT_S)
        wake.clear()
        if not done.is_set():
            worker.renew()


def process_one(service: Service, worker_id: str, run_id: str | None = None) -> str | None:
    """Claim one waiting run, or the one that is named, and execute it; returns its id, None when there was none."""
    done, wake = threading.Event(), threading.Event()
    with Worker(service, worker_id) as worker:
        orders = worker.claim(1, run_id)
        if not orders:
            return None
        beat = threading.Thread(target=_heartbeats, args=(worker, done, wake), name="heartbeat", daemon=True)
        listener = Listener(service.dsn, {STOP: lambda _: wake.set()})
        beat.start()
        listener.start()
        try:
            worker.execute(orders[0])
        finally:
            done.set()
            wake.set()
            beat.join()
            listener.stop()
    return orders[0].run_id


def run_worker(service: Service, stop: threading.Event) -> None:
    """Claim and execute runs until `stop` is set; then finish what can be finished in 25 s and hand back the rest."""
    settings = service.settings
    wake, beat_now, done = threading.Event(), threading.Event(), threading.Event()
    listener = Listener(service.dsn, {QUEUE: lambda _: wake.set(), STOP: lambda _: beat_now.set()})
    with (
        Worker(service, settings.worker_id) as worker,
        ThreadPoolExecutor(settings.worker_concurrency, thread_name_prefix="run") as pool,
    ):
        threads = [
            threading.Thread(target=_heartbeats, args=(worker, done, beat_now), name="heartbeat"),
            threading.Thread(target=run_takeover, args=(service, done), name="takeover"),
            threading.Thread(target=provision_pending, args=(service, done), name="provisioner"),
        ]
        listener.start()
        for thread in threads:
            thread.start()
        try:
            _claim_until(stop, worker, pool, wake, service.settings)
            worker.wait_idle(GRACE_S - 5)
            worker.hand_back_all()
            worker.wait_idle(5)
        finally:
            done.set()
            beat_now.set()
            listener.stop()
            for thread in threads:
                thread.join(timeout=5)


def _claim_until(
    stop: threading.Event, worker: Worker, pool: ThreadPoolExecutor, wake: threading.Event, settings: Settings
) -> None:
    while not stop.is_set():
        # Cleared before looking, so that what comes while we look wakes us again.
        wake.clear()
        free = settings.worker_concurrency - worker.holding
        orders = _claim(worker, free) if free > 0 else []
        for order in orders:
            pool.submit(worker.execute, order, wake.set)
        if not orders:
            _sleep(wake, stop, settings.poll_interval_seconds)


def _claim(worker: Worker, free: int) -> list[RunOrder]:
    try:
        return worker.claim(free)
    except Away as away:
        logger.warning("the worker waits: %s", away)
        return []


def _sleep(wake: threading.Event, stop: threading.Event, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not stop.is_set() and (left := until - time.monotonic()) > 0 and not wake.wait(min(left, 0.5)):
        pass
