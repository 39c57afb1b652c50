"""The sealer: behind the log it seals what was appended, and has signed heads of it carried out of the database."""

import logging
import threading
import time
from typing import Any, Final

from psycopg import Connection
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from adapters.bootstrap import Service
from adapters.chain.carrier import Carrier
from adapters.postgres import seals
from adapters.postgres.checkpoints import Lead, leading
from adapters.postgres.maintenance import maintenance
from adapters.postgres.seals import Sealed
from application.ports import Away
from projections.follow import Overtaken

logger = logging.getLogger(__name__)

SEAL: Final = "seal"
"""The lead of the one process that seals."""
_GATHER_S: Final = 1.0
"""How long a woken sealer waits for more events, so that a seal is worth its row."""
_LOOK_S: Final = 0.5
_IDLE_S: Final = 30.0
_STANDBY_S: Final = 2.0
_MAX_SLEEP_S: Final = 30.0
_LAST_S: Final = 5.0
"""How long it goes on sealing after it was told to stop."""


class Sealer(threading.Thread):
    """Seals the log as long as nobody else does, until `stop` is set; then it seals and signs what there still is.

    `wake` tells it that events were appended. It goes on from the last seal, wherever it was killed.
    """

    def __init__(self, service: Service, stop: threading.Event, *, gather_s: float = _GATHER_S) -> None:
        super().__init__(name=SEAL)
        self._service = service
        self._stop_asked = stop
        self._gather_s = gather_s
        self.wake = threading.Event()

    def run(self) -> None:
        """Lead as long as nobody else does; after an error, wait longer and longer, and go on."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential_jitter(multiplier=0.5, max=_MAX_SLEEP_S),
            stop=lambda _: self._stop_asked.is_set(),
            sleep=self._sleep,
            before_sleep=_tell,
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                self._lead()

    def _sleep(self, seconds: float) -> None:
        self._stop_asked.wait(seconds)

    def _lead(self) -> None:
        while not self._stop_asked.is_set():
            with leading(self._service.dsn, SEAL) as lead:
                if lead:
                    with maintenance(self._service.dsn, name=SEAL) as connection, Carrier(self._service) as carrier:
                        self._follow(lead, connection, carrier)
            self._stop_asked.wait(_STANDBY_S)

    def _follow(self, lead: Lead, connection: Connection[Any], carrier: Carrier) -> None:
        end = seals.last(connection)
        carrier.compare(connection)
        ends = False
        while not ends:
            # Cleared before looking, so that what comes while we look wakes us again.
            self.wake.clear()
            stopping = self._stop_asked.is_set()
            end = self._seal(connection, end, lead)
            carrier.carry(end, last=stopping)
            ends = stopping or lead.wanted()
            if not ends:
                self._pause(lead, carrier.due_in())

    def _seal(self, connection: Connection[Any], end: Sealed, lead: Lead) -> Sealed:
        began = time.monotonic()
        while sealed := seals.seal_next(connection, end):
            end = sealed
            if lead.wanted() or (self._stop_asked.is_set() and time.monotonic() - began > _LAST_S):
                break
        return end

    def _pause(self, lead: Lead, due_in_s: float) -> None:
        until = time.monotonic() + min(_IDLE_S, due_in_s)
        while (left := until - time.monotonic()) > 0 and not self._stop_asked.is_set() and not lead.wanted():
            if self.wake.wait(min(_LOOK_S, left)):
                self._stop_asked.wait(self._gather_s)
                return


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Away | Overtaken):
        logger.warning("the sealer waits: %s", error)
    else:
        logger.error("the sealer stopped and will be tried again", exc_info=error)
