"""The projector process: follows the log into BigQuery and into the outbox, and delivers what customers are told."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from adapters.ahead import Ahead
from adapters.bigquery.client import NotThere
from adapters.bootstrap import Service, utc_now
from adapters.chain.sealer import Sealer
from adapters.eraser import Eraser
from adapters.granter import Granter
from adapters.notifications.deliverer import Deliverer, couriers
from adapters.notifications.outbox import Outbox
from adapters.postgres.channels import DATA_KEYS, LOG
from adapters.postgres.channels import NOTIFICATIONS as NEWS
from adapters.postgres.checkpoints import Lead, leading
from adapters.postgres.listener import Listener
from adapters.postgres.reads.projections import skipped
from adapters.rebuild import Rebuilder
from application.mapper import UnreadableEvent
from application.ports import Away
from domain.projection import NOTIFICATIONS, WAREHOUSE
from projections.follow import (
    MOST,
    Checkpoints,
    Handle,
    Log,
    Overtaken,
    Placed,
    Problem,
    ProblemKind,
    Unwritable,
    catch_up,
    rows_into,
)
from projections.rows import Scope

logger = logging.getLogger(__name__)

_GATHER_S: Final = 0.5
"""How long a woken projector waits for more events, so that a busy log is written in batches."""
_MAX_SLEEP_S: Final = 30.0
_STANDBY_S: Final = 2.0
_NAP_S: Final = 0.5
_TELL_AGAIN_S: Final = 600.0
_BACK_OFF: Final = wait_exponential_jitter(multiplier=0.5, max=_MAX_SLEEP_S)

Before = Callable[[], object]
Beside = Callable[[Callable[[], Collection[int]]], AbstractContextManager[object]]


class NoPlace(Exception):  # noqa: N818 - it says what is missing
    """Where the rows go is not there, and cannot be made."""


def run_projector(service: Service, stop: threading.Event) -> None:
    """Follow the log with every projection until `stop` is set. One process leads each projection at a time."""
    outbox = Outbox(service.datastore, utc_now)
    tables = warehouse_tables(service)
    followers = [
        warehouse_follower(service, tables, stop),
        Follower(service, NOTIFICATIONS, outbox.handle, stop, checkpoints=outbox),
    ]

    sealer = Sealer(service, stop)
    deliverers = [Deliverer(service.datastore, courier, stop) for courier in couriers(service)]

    wakes = [*(follower.wake for follower in followers), tables.wake, sealer.wake]

    def wake_all(_: str) -> None:
        for wake in wakes:
            wake.set()

    def deliver_all(_: str) -> None:
        for deliverer in deliverers:
            deliverer.wake.set()

    listener = Listener(service.dsn, {LOG: wake_all, NEWS: deliver_all, DATA_KEYS: service.forget})
    listener.start()
    threads = [*followers, *deliverers, sealer, Rebuilder(service, stop), Eraser(service, stop), Granter(service, stop)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listener.stop()


def warehouse_tables(service: Service) -> Ahead:
    """BigQuery's tables, the central ones ahead of those of customers."""
    return Ahead(service.log, into_warehouse(service, Scope.CENTRAL), into_warehouse(service, Scope.CUSTOMER))


def warehouse_follower(service: Service, tables: Ahead, stop: threading.Event) -> "Follower":
    """What follows the log into BigQuery's tables."""
    before = service.warehouse.ensure_central
    return Follower(
        service, WAREHOUSE, tables.handle, stop, log=tables, before=before, beside=tables.leading, most=MOST
    )


def into_warehouse(service: Service, *scopes: Scope) -> Handle:
    """Writes the rows of events into BigQuery, in tables of these scopes or all.

    That a dataset is missing is no fault of the events.
    """
    write = rows_into(service.warehouse, scopes or tuple(Scope))

    def handle(events: Sequence[Placed]) -> None:
        try:
            write(events)
        except NotThere as missing:
            raise NoPlace(str(missing)) from missing

    return handle


def problem_of(error: BaseException) -> Problem:
    """What an error of a follower is to operators: what the projection does, without anything that is recorded."""
    match error:
        case UnreadableEvent() | Unwritable():
            text = f"stopped at position {error.position}: {error}"
            return Problem(kind=ProblemKind.EVENT, text=text, position=error.position)
        case Away():
            return Problem(kind=ProblemKind.AWAY, text=f"waits: {error}")
        case PermissionError() | NoPlace():
            return Problem(kind=ProblemKind.FAULT, text=f"does not go on, and tries again and again: {error}")
    text = f"failed ({type(error).__name__}), and tries again and again: the projector's log says where."
    return Problem(kind=ProblemKind.FAULT, text=text)


class Follower(threading.Thread):
    """Keeps one projection up with the log, whatever happens to the backends.

    An event that it can make nothing of stops it right there, until the event can be read or an operator has it passed
    over. It says so in the log of the process when it begins and every `tell_again_s` seconds, and in its checkpoint.
    While it is far behind it handles up to `most` events at once. `checkpoints` moves on where that is to be one
    transaction with what is handled. It is `beside` that block, given which events to pass over, that it follows while
    it leads.
    """

    def __init__(
        self,
        service: Service,
        name: str,
        handle: Handle,
        stop: threading.Event,
        *,
        log: Log | None = None,
        before: Before | None = None,
        beside: Beside = lambda _: nullcontext(),
        most: int = 0,
        checkpoints: Checkpoints | None = None,
        tell_again_s: float = _TELL_AGAIN_S,
    ) -> None:
        super().__init__(name=f"follow {name}")
        self._service = service
        self._projection = name
        self._handle = handle
        self._log = log or service.log
        self._before = before
        self._beside = beside
        self._most = most
        self._checkpoints = checkpoints or service.checkpoints
        self._stop_asked = stop
        self._tell_again_s = tell_again_s
        self._problem: Problem | None = None
        self._told_at = 0.0
        self._moved = False
        self.wake = threading.Event()

    def run(self) -> None:
        """Lead the projection as long as nobody else does; after an error, wait longer and longer, and go on."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Exception),
            wait=self._back_off,
            stop=lambda _: self._stop_asked.is_set(),
            sleep=self._pause,
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                self._lead()

    def _back_off(self, state: RetryCallState) -> float:
        if self._moved:
            # It is another error than those before.
            state.attempt_number, self._moved = 1, False
        return _BACK_OFF(state)

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the event that it stands at is passed over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stop_asked.wait(min(left, _NAP_S)):
            if self._problem is not None and self._problem.position is not None and self._is_skipped():
                return

    def _is_skipped(self) -> bool:
        try:
            return self._problem is not None and self._problem.position in self._skipped()
        except Away:
            return False

    def _skipped(self) -> frozenset[int]:
        return skipped(self._service.datastore, self._projection)

    def _lead(self) -> None:
        while not self._stop_asked.is_set():
            try:
                with leading(self._service.dsn, self._projection) as lead:
                    if lead:
                        with self._beside(self._skipped):
                            self._follow_and_say(lead)
            except Away as away:
                self._tell(problem_of(away), away)
                raise
            self._stop_asked.wait(_STANDBY_S)

    def _follow_and_say(self, lead: Lead) -> None:
        """Follow; what keeps it from that is said in the checkpoint, as long as this process leads."""
        try:
            self._follow(lead)
        except Overtaken as overtaken:
            logger.warning("projection %s waits: another process moved on from %s", self._projection, overtaken)
            raise
        except Exception as error:
            problem = problem_of(error)
            self._tell(problem, error)
            self._service.checkpoints.stand(self._projection, problem)
            raise

    def _tell(self, problem: Problem, error: Exception) -> None:
        if problem == self._problem and time.monotonic() - self._told_at < self._tell_again_s:
            return
        self._problem, self._told_at = problem, time.monotonic()
        match problem.kind:
            case ProblemKind.EVENT:
                # Not the error itself: a backend's words may quote what is recorded.
                logger.error("projection %s %s", self._projection, problem.text)
            case ProblemKind.AWAY:
                logger.warning("projection %s %s", self._projection, problem.text)
            case ProblemKind.FAULT:
                logger.error("projection %s failed and will be tried again", self._projection, exc_info=error)

    def _handle_and_note(self, events: Sequence[Placed]) -> None:
        self._handle(events)
        self._moved = True

    def _follow(self, lead: Lead) -> None:
        service, stop = self._service, self._stop_asked
        if self._before is not None:
            self._before()

        def ends() -> bool:
            return stop.is_set() or lead.wanted()

        said = True  # maybe by another process, before this one led
        while not ends():
            # Cleared before looking, so that what comes while we look wakes us again.
            self.wake.clear()
            handled = catch_up(
                self._projection,
                self._log,
                self._handle_and_note,
                self._checkpoints,
                most=self._most,
                stop=ends,
                skipping=self._skipped(),
            )
            if said and not ends():
                service.checkpoints.go_on(self._projection)
                if self._problem is not None:
                    logger.info("projection %s goes on", self._projection)
                self._problem, said = None, False
            if handled:
                logger.debug("projection %s: %d events", self._projection, handled)
            waited = 0.0
            while not ends() and waited < _MAX_SLEEP_S and not self.wake.wait(_NAP_S):
                waited += _NAP_S
            stop.wait(_GATHER_S)
