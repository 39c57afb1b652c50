"""The worker process: claims waiting runs, executes them in threads, and tells what became of them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from adapters.bootstrap import Service
from adapters.claiming import Calls, Claiming
from adapters.postgres.channels import DATA_KEYS, HANDED, QUEUE, STOP
from adapters.postgres.listener import Listener
from adapters.postgres.offers import OFFER_LOCK
from adapters.process import Part, Shutdown, Unable
from adapters.provisioner import provision_pending
from adapters.runs_in_hand import DEFAULT_TIMING, Timing, Worker
from adapters.scheduler import run_takeover

_LOOK_S: Final = 0.2


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
    beat_now, failing, calls = threading.Event(), Shutdown(), Calls()
    with (
        Worker(service, settings.worker_id, timing=timing, let_go=calls.look) as worker,
        ThreadPoolExecutor(settings.worker_concurrency, thread_name_prefix="run") as pool,
    ):
        offer_id = str(worker.offer_id)
        listener = Listener(
            service.dsn,
            {
                QUEUE: lambda _: calls.look(),
                HANDED: lambda to: calls.take_up() if to in {"", offer_id} else None,
                STOP: lambda _: beat_now.set(),
                DATA_KEYS: service.forget,
            },
            sign=(OFFER_LOCK, offer_id),
        )
        parts = [
            _heartbeat(worker, beat_now, timing),
            Part("takeover", lambda s: run_takeover(service, s, every_s=timing.takeover_s, lease_s=timing.lease_s)),
            Part("provisioner", lambda s: provision_pending(service, s)),
        ]
        began(worker)
        with _beside(parts, failing, listener, beat_now):
            try:
                Claiming(service, worker, pool, calls).until(lambda: stop.is_set() or failing.is_due)
                if not failing.is_due:
                    worker.wait_idle(timing.finish_s)
            finally:
                worker.hand_back_all()
                worker.wait_idle(timing.grace_s - timing.finish_s)
    if failing.failure is not None:
        raise Unable(failing.failure)


def _heartbeat(worker: Worker, beat_now: threading.Event, timing: Timing) -> Part:
    def beat(stop: threading.Event) -> None:
        due = time.monotonic() + timing.heartbeat_s
        while not stop.is_set():
            asked = beat_now.wait(min(max(0.0, due - time.monotonic()), _LOOK_S))
            if stop.is_set() or not (asked or worker.must_renew or time.monotonic() >= due):
                continue
            beat_now.clear()
            # Sooner again when it failed: the leases run out.
            due = time.monotonic() + (timing.heartbeat_s if worker.renew() else timing.heartbeat_s / 5)

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
