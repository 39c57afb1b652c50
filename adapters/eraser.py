"""The eraser: finishes erasures that a crash or an outage left behind, and applies the deletion ledger."""

import logging
import threading
import time
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from adapters.bootstrap import Service
from adapters.erasure import apply_ledger, finish_all
from adapters.postgres import erasures
from adapters.postgres.checkpoints import leading
from application.ports import Away

logger = logging.getLogger(__name__)

ERASE: Final = "erase"
"""The lead of the one process that finishes erasures."""
_LOOK_S: Final = 1.0
_LEDGER_S: Final = 600.0
_MAX_SLEEP_S: Final = 30.0
_LONGEST_LOOK_S: Final = 10.0


class Eraser(threading.Thread):
    """Finishes what is not complete, until `stop` is set: looked at every `look_s` seconds.

    At the start and every `ledger_s` seconds it compares the log with the deletion ledger.
    """

    def __init__(
        self, service: Service, stop: threading.Event, *, look_s: float = _LOOK_S, ledger_s: float = _LEDGER_S
    ) -> None:
        super().__init__(name=ERASE)
        self._service = service
        self._stop_asked = stop
        self._look_s = look_s
        self._ledger_s = ledger_s
        self._ledger_due = 0.0

    def run(self) -> None:
        """Go on until it is stopped; after an error, wait longer and longer."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential_jitter(multiplier=0.5, max=_MAX_SLEEP_S),
            stop=lambda _: self._stop_asked.is_set(),
            sleep=self._sleep,
            before_sleep=_tell,
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                self._work()

    def _sleep(self, seconds: float) -> None:
        self._stop_asked.wait(seconds)

    def _work(self) -> None:
        wait_s = self._look_s
        while not self._stop_asked.is_set():
            left = self._pass()
            # What waits for something that is away is not asked for every second.
            wait_s = min(wait_s * 2, _LONGEST_LOOK_S) if left else self._look_s
            self._stop_asked.wait(wait_s)

    def _pass(self) -> bool:
        """Do what there is to do, if nobody else does; whether some of it has to wait."""
        compare = time.monotonic() >= self._ledger_due
        if not compare and not erasures.unfinished(self._service.datastore):
            return False
        with leading(self._service.dsn, ERASE) as lead:
            if not lead:
                return True
            left = any(erasure.completed_at is None for erasure in finish_all(self._service))
            if compare and not self._stop_asked.is_set():
                apply_ledger(self._service, f"service:{self._service.settings.worker_id}")
                self._ledger_due = time.monotonic() + self._ledger_s
            return left


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Away):
        logger.warning("the eraser waits: %s", error)
    else:
        logger.error("the eraser stopped and will be tried again", exc_info=error)
