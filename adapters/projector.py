"""The projector process: follows the log into BigQuery, and sends what the log says is to be sent."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from adapters.bootstrap import Service
from adapters.postgres.channels import LOG
from adapters.postgres.checkpoints import Lead, leading
from adapters.postgres.listener import Listener
from adapters.welcome import Welcomer
from application.ports import Away
from projections.follow import Handle, Overtaken, catch_up, rows_into

logger = logging.getLogger(__name__)

WAREHOUSE: Final = "bigquery"
WELCOME: Final = "welcome"
_GATHER_S: Final = 0.5
"""How long a woken projector waits for more events, so that a busy log is written in batches."""
_MAX_SLEEP_S: Final = 30.0
_STANDBY_S: Final = 2.0
_NAP_S: Final = 0.5

Before = Callable[[], object]


def run_projector(service: Service, stop: threading.Event) -> None:
    """Follow the log with every projection until `stop` is set. One process leads each projection at a time."""
    followers = [
        Follower(service, WAREHOUSE, rows_into(service.warehouse), stop, before=service.warehouse.ensure_central),
        Follower(service, WELCOME, Welcomer(service).handle, stop),
    ]

    def wake_all(_: str) -> None:
        for follower in followers:
            follower.wake.set()

    listener = Listener(service.dsn, {LOG: wake_all})
    listener.start()
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join()
    listener.stop()


class Follower(threading.Thread):
    """Keeps one projection up with the log, whatever happens to the backends."""

    def __init__(
        self, service: Service, name: str, handle: Handle, stop: threading.Event, *, before: Before | None = None
    ) -> None:
        super().__init__(name=f"follow {name}")
        self._service = service
        self._projection = name
        self._handle = handle
        self._before = before
        self._stop_asked = stop
        self.wake = threading.Event()

    def run(self) -> None:
        """Lead the projection as long as nobody else does; after an error, wait longer and longer, and go on."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential_jitter(multiplier=0.5, max=_MAX_SLEEP_S),
            stop=lambda _: self._stop_asked.is_set(),
            sleep=self._pause,
            before_sleep=self._tell,
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                self._lead()

    def _pause(self, seconds: float) -> None:
        self._stop_asked.wait(seconds)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Away | Overtaken):
            logger.warning("projection %s waits: %s", self._projection, error)
        else:
            logger.error("projection %s stopped and will be tried again", self._projection, exc_info=error)

    def _lead(self) -> None:
        while not self._stop_asked.is_set():
            with leading(self._service.dsn, self._projection) as lead:
                if lead:
                    self._follow(lead)
            self._stop_asked.wait(_STANDBY_S)

    def _follow(self, lead: Lead) -> None:
        service, stop = self._service, self._stop_asked
        if self._before is not None:
            self._before()

        def ends() -> bool:
            return stop.is_set() or lead.wanted()

        while not ends():
            # Cleared before looking, so that what comes while we look wakes us again.
            self.wake.clear()
            handled = catch_up(self._projection, service.log, self._handle, service.checkpoints, stop=ends)
            if handled:
                logger.debug("projection %s: %d events", self._projection, handled)
            waited = 0.0
            while not ends() and waited < _MAX_SLEEP_S and not self.wake.wait(_NAP_S):
                waited += _NAP_S
            stop.wait(_GATHER_S)
