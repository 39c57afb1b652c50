"""The worker process: claims waiting runs, executes them in threads, and tells what became of them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

from adapters.attempt import Attempt, Progress, Stop
from adapters.bootstrap import Service, origin
from adapters.postgres import leases, waiting
from adapters.postgres.channels import QUEUE, STOP
from adapters.postgres.listener import Listener
from adapters.process import Part, Shutdown, Unable
from adapters.provisioner import provision_pending
from adapters.reporter import Reporter
from adapters.scheduler import run_takeover
from application.execution import LEASE_SECONDS, ClaimRuns, Outcome, claim_runs
from application.platform import Superseded
from application.ports import Away, Cancelled, RunOrder, RunReport

logger = logging.getLogger(__name__)

_SHORTEST_SLEEP_S: Final = 0.02
_GATHER_S: Final = 0.005
_AWAY_SLEEP_S: Final = 2.0
_LOOKED_S: Final = 0.05
"""What a claim may have looked at earlier than the question that follows it says."""


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
    ) -> None:
        """`let_go` is called when some of the runs in hand have been recorded, once for all of them."""
        self._service = service
        self._timing = timing
        self._held: dict[tuple[str, int], Attempt] = {}
        self._lock = threading.Lock()
        self._reporter = Reporter(
            service, worker_id, patience_s=timing.lost_after_s, in_hand=lambda: self.holding, then=let_go
        )
        self._let_go = let_go
        self.worker_id = worker_id
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
            by=origin(f"worker:{self.worker_id}"),
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
                    return None
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
        try:
            answer = leases.renew(self._service.datastore, self.worker_id, list(attempts), self._timing.lease_s)
        except (Away, Superseded) as error:
            logger.warning("the leases of %d runs could not be renewed: %s", len(attempts), error)
            return False
        held = {(lease.run_id, lease.attempt): lease for lease in answer}
        for key, attempt in attempts.items():
            if key not in held:
                attempt.stop(Stop.LOST)
                continue
            attempt.ours_until = ours_until
            if held[key].stop_asked:
                attempt.stop(Stop.CANCELLED)
        return True

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


def process_one(service: Service, worker_id: str, run_id: str | None = None) -> str | None:
    """Claim one waiting run, or the one that is named, and execute it; returns its id, None when there was none."""
    with Worker(service, worker_id) as worker:
        orders = worker.claim(1, run_id)
        if not orders:
            return None
        beat_now = threading.Event()
        listener = Listener(service.dsn, {STOP: lambda _: beat_now.set()})
        with _beside([_heartbeat(worker, beat_now, DEFAULT_TIMING)], Shutdown(), listener, beat_now):
            worker.execute(orders[0])
    return orders[0].run_id


def run_worker(
    service: Service,
    stop: threading.Event,
    *,
    timing: Timing = DEFAULT_TIMING,
    began: Callable[[Worker], None] = lambda _: None,
) -> None:
    """Claim and execute runs until `stop` is set; then finish what can be finished in time and hand back the rest.

    `began` is told the worker whose figures count. Raises `Unable` when a part that it needs has failed.
    """
    settings = service.settings
    wake, beat_now, failing = threading.Event(), threading.Event(), Shutdown()
    listener = Listener(service.dsn, {QUEUE: lambda _: wake.set(), STOP: lambda _: beat_now.set()})
    with (
        Worker(service, settings.worker_id, timing=timing, let_go=wake.set) as worker,
        ThreadPoolExecutor(settings.worker_concurrency, thread_name_prefix="run") as pool,
    ):
        parts = [
            _heartbeat(worker, beat_now, timing),
            Part("takeover", lambda s: run_takeover(service, s, every_s=timing.takeover_s, lease_s=timing.lease_s)),
            Part("provisioner", lambda s: provision_pending(service, s)),
        ]
        began(worker)
        with _beside(parts, failing, listener, beat_now):
            try:
                _claim_until(lambda: stop.is_set() or failing.is_due, service, worker, pool, wake)
                if not failing.is_due:
                    worker.wait_idle(timing.finish_s)
            finally:
                worker.hand_back_all()
                worker.wait_idle(timing.grace_s - timing.finish_s)
    if failing.failure is not None:
        raise Unable(failing.failure)


def _heartbeat(worker: Worker, beat_now: threading.Event, timing: Timing) -> Part:
    def beat(stop: threading.Event) -> None:
        pause = timing.heartbeat_s
        while not stop.is_set():
            beat_now.wait(pause)
            beat_now.clear()
            if not stop.is_set():
                # Sooner again when it failed: the leases run out.
                pause = timing.heartbeat_s if worker.renew() else timing.heartbeat_s / 5

    return Part("heartbeat", beat)


@contextmanager
def _beside(parts: Sequence[Part], failing: Shutdown, listener: Listener, beat_now: threading.Event) -> Iterator[None]:
    """The parts work, and the listener listens, as long as the block does."""
    listener.start()
    for part in parts:
        part.start(failing)
    try:
        yield
    finally:
        for part in parts:
            part.stop()
        beat_now.set()
        listener.stop()
        for part in parts:
            part.join(5)


def _claim_until(
    ended: Callable[[], bool], service: Service, worker: Worker, pool: ThreadPoolExecutor, wake: threading.Event
) -> None:
    settings = service.settings
    while not ended():
        # Cleared before looking, so that what comes while we look wakes us again.
        wake.clear()
        if 0 < settings.worker_concurrency - worker.holding < settings.worker_concurrency:
            # Short runs end together: many of them are claimed with one transaction a moment later.
            wake.wait(_GATHER_S)
            wake.clear()
        looked_at = time.monotonic()
        free = settings.worker_concurrency - worker.holding
        pause = settings.poll_interval_seconds
        try:
            orders = worker.claim(free) if free > 0 else []
            if free > 0 and not orders:
                pause = _until_ready(service, looked_at, pause)
        except Away as away:
            logger.warning("the worker waits: %s", away)
            orders, pause = [], min(pause, _AWAY_SLEEP_S)
        for order in orders:
            pool.submit(worker.execute, order)
        if not orders:
            _sleep(wake, ended, pause)


def _until_ready(service: Service, looked_at: float, most_s: float) -> float:
    """Nobody is told when the time of a run that has to wait has come: the worker wakes up for it."""
    since_s = time.monotonic() - looked_at + _LOOKED_S
    seconds = waiting.seconds_until_ready(service.datastore, since_s=since_s)
    return most_s if seconds is None else min(max(seconds, _SHORTEST_SLEEP_S), most_s)


def _sleep(wake: threading.Event, ended: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ended() and (left := until - time.monotonic()) > 0 and not wake.wait(min(left, 0.5)):
        pass
