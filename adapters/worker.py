"""The worker process: claims waiting runs, executes them in threads, and tells what became of them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from adapters.bootstrap import Service
from adapters.postgres import waiting
from adapters.postgres.channels import DATA_KEYS, QUEUE, STOP
from adapters.postgres.listener import Listener
from adapters.process import Part, Shutdown, Unable, rest
from adapters.provisioner import provision_pending
from adapters.runs_in_hand import DEFAULT_TIMING, Timing, Worker
from adapters.scheduler import run_takeover
from application.ports import Away

logger = logging.getLogger(__name__)

_SHORTEST_SLEEP_S: Final = 0.02
_GATHER_S: Final = 0.005
_AWAY_SLEEP_S: Final = 2.0
_LOOK_S: Final = 0.2
_LOOKED_S: Final = 0.05
"""What a claim may have looked at earlier than the question that follows it says."""


def process_one(
    service: Service,
    worker_id: str,
    run_id: str | None = None,
    *,
    stop: threading.Event | None = None,
    request_id: str | None = None,
) -> str | None:
    """Claim one waiting run, or the one that is named, and execute it; returns its id, None when there was none.

    Once `stop` is set the run is handed back to the queue. `request_id` is the HTTP request that asked for this.
    """
    with Worker(service, worker_id, request_id=request_id) as worker:
        orders = worker.claim(1, run_id)
        if not orders:
            return None
        beat_now = threading.Event()
        listener = Listener(service.dsn, {STOP: lambda _: beat_now.set()})
        parts = [_heartbeat(worker, beat_now, DEFAULT_TIMING)]
        if stop is not None:
            parts.append(_handing_back(worker, stop))
        with _beside(parts, Shutdown(), listener, beat_now):
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
    listener = Listener(
        service.dsn,
        {QUEUE: lambda _: wake.set(), STOP: lambda _: beat_now.set(), DATA_KEYS: service.forget},
    )
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


def _handing_back(worker: Worker, due: threading.Event) -> Part:
    def watch(stop: threading.Event) -> None:
        while not stop.wait(_LOOK_S):
            if due.is_set():
                worker.hand_back_all()

    return Part("hand-back", watch)


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
            rest(wake, ended, pause)


def _until_ready(service: Service, looked_at: float, most_s: float) -> float:
    """Nobody is told when the time of a run that has to wait has come: the worker wakes up for it."""
    since_s = time.monotonic() - looked_at + _LOOKED_S
    seconds = waiting.seconds_until_ready(service.datastore, since_s=since_s)
    return most_s if seconds is None else min(max(seconds, _SHORTEST_SLEEP_S), most_s)
