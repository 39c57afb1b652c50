"""The scheduler process: sleeps until the next slot, wakes when a schedule changes, and triggers what is due."""

import logging
import threading
from datetime import datetime, timedelta
from typing import Final

from adapters.bootstrap import Service, origin
from adapters.deadlines import Deadlines
from adapters.postgres.channels import DATA_KEYS, SCHEDULES
from adapters.postgres.listener import Listener
from adapters.process import rest
from application.execution import LEASE_SECONDS, TakeOver, take_over
from application.ports import Away
from application.scheduling import Triggered, TriggerSchedules, trigger_schedules
from domain.envelope import Origin

logger = logging.getLogger(__name__)

TURN_S: Final = 20.0
"""How long a pass waits for the one before it in the same process."""

_STILL_DUE: Final = timedelta(milliseconds=500)
MAX_SLEEP = timedelta(seconds=30)
"""How long the scheduler sleeps at most: the safety net under a notification that was lost."""


def trigger_now(service: Service, by: Origin, *, turn_s: float = TURN_S) -> Triggered:
    """Trigger all slots that are due by the database's clock: what the scheduler does, and POST /scheduler/trigger.

    Raises `Away` with the database, and when another pass of this process takes longer than `turn_s`: while the
    database hangs, callers must not pile up behind each other.
    """
    if not service.triggering.acquire(timeout=turn_s):
        raise Away("Schedules are being triggered at this moment. Try again.")
    try:
        with service.store.transaction() as session:
            now = session.now()
        return trigger_schedules(TriggerSchedules(at=now, by=by), service.platform, service.registry)
    finally:
        service.triggering.release()


def run_scheduler(service: Service, stop: threading.Event) -> None:
    """Trigger due slots until `stop` is set. Any number of these may run: a slot is scheduled once."""
    wake = threading.Event()
    listener = Listener(service.dsn, {SCHEDULES: lambda _: wake.set(), DATA_KEYS: service.forget})
    listener.start()
    deadlines = Deadlines(service)
    try:
        while not stop.is_set():
            more = deadlines.meet(stop)
            # Cleared before looking, so that what comes while we look wakes us again.
            wake.clear()
            pause = _step(service)
            rest(wake, stop.is_set, 0 if more else pause.total_seconds())
    finally:
        listener.stop()


def _step(service: Service) -> timedelta:
    try:
        done = trigger_now(service, origin(f"scheduler:{service.settings.worker_id}"))
        if done.triggered:
            logger.info("triggered %d pipelines: %d queued, %d skipped", done.triggered, done.queued, done.skipped)
        pause = _until_next_slot(service)
    except Away as away:
        logger.warning("the scheduler waits: %s", away)
        return timedelta(seconds=2)
    # What stays due although nothing could be triggered must not keep the scheduler from sleeping.
    return pause if pause or done.triggered else _STILL_DUE


def _until_next_slot(service: Service) -> timedelta:
    with service.datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT min(next_run_time) AS next, clock_timestamp() AS now FROM customer_pipeline_configs"
            " WHERE is_active AND deleted_at IS NULL AND next_run_time IS NOT NULL",
            prepare=True,
        ).fetchone()
    if row is None or row["next"] is None:
        return MAX_SLEEP
    slot: datetime = row["next"]
    now: datetime = row["now"]
    return min(max(slot - now, timedelta(0)), MAX_SLEEP)


def run_takeover(
    service: Service, stop: threading.Event, *, every_s: float = 10, lease_s: float = LEASE_SECONDS
) -> None:
    """Bring back the runs of workers that stopped answering, until `stop` is set.

    Begins only after a lease's time: whoever was cut off together with us had the chance to come back.
    """
    stop.wait(lease_s)
    while not stop.wait(every_s):
        try:
            taken = _take_over_all(service, stop)
            if taken:
                logger.warning("runs taken over because their leases ran out: %d", taken)
        except Away as away:
            logger.warning("taking over waits: %s", away)
        except Exception:
            # What cannot be taken over must not end the runs in hand, nor the next attempt at it.
            logger.exception("runs whose leases ran out cannot be taken over")


def _take_over_all(service: Service, stop: threading.Event) -> int:
    """Many at a time, so that neither a customer nor the log is held for long."""
    taken = 0
    while not stop.is_set():
        with service.store.transaction() as session:
            now = session.now()
        command = TakeOver(at=now, by=origin(f"service:{service.settings.worker_id}"))
        found = len(take_over(command, service.platform))
        taken += found
        if found < command.limit:
            break
    return taken
