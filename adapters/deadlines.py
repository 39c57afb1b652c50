"""Access that ends: what billing has come due is done every few seconds, whoever else does so too."""

import logging
import threading
import time
from collections.abc import Collection, Sequence
from typing import Final

from adapters.bootstrap import Service, origin
from application.billing import EndAccess, end_access
from application.ports import Away

logger = logging.getLogger(__name__)

EVERY_S: Final = 10.0
TURN_S: Final = 1.0
"""How long schedules wait for billing, where much has come due at once."""
AT_A_TIME: Final = 100


class Deadlines:
    """Meets deadlines by the database's clock: begins anew every `every_s` seconds, for `turn_s` at a time."""

    def __init__(
        self, service: Service, *, every_s: float = EVERY_S, turn_s: float = TURN_S, at_a_time: int = AT_A_TIME
    ) -> None:
        self._service = service
        self._every_s = every_s
        self._turn_s = turn_s
        self._at_a_time = at_a_time
        self._next = 0.0
        self._seen: set[str] = set()

    def meet(self, stop: threading.Event) -> bool:
        """Do what is due, unless that was done just now; whether there is more. Never raises: schedules go on."""
        if time.monotonic() < self._next:
            return False
        more = False
        try:
            more = self._turn(stop)
        except Away as away:
            logger.warning("billing waits: %s", away)
        except Exception:
            logger.exception("what is due in billing cannot be done")
        if not more:
            if self._seen:
                logger.info("billing: accounts about which something was done: %d", len(self._seen))
            self._seen = set()
            self._next = time.monotonic() + self._every_s
        return more

    def _turn(self, stop: threading.Event) -> bool:
        until = time.monotonic() + self._turn_s
        while not stop.is_set():
            found = _meet_some(self._service, self._seen, self._at_a_time)
            self._seen.update(found)
            if len(found) < self._at_a_time:
                break
            if time.monotonic() >= until:
                return True
        return False


def meet_all(service: Service) -> int:
    """Do all that is due now, many accounts at a time; how many they were. Raises `Away` with the database."""
    seen: set[str] = set()
    while found := _meet_some(service, seen, AT_A_TIME):
        seen.update(found)
    return len(seen)


def _meet_some(service: Service, besides: Collection[str], limit: int) -> Sequence[str]:
    with service.store.transaction() as session:
        now = session.now()
    by = origin(f"service:{service.settings.worker_id}")
    command = EndAccess(at=now, by=by, limit=limit, besides=frozenset(besides))
    return end_access(command, service.platform, service.settings.terms)
