"""Access that ends: what billing has come due is done every few seconds, whoever else does so too."""

import logging
import threading
import time
from typing import Final

from adapters.bootstrap import Service, origin
from application.billing import EndAccess, end_access
from application.ports import Away

logger = logging.getLogger(__name__)

EVERY_S: Final = 10.0


class Deadlines:
    """Meets deadlines by the database's clock, at most every `every_s` seconds."""

    def __init__(self, service: Service, *, every_s: float = EVERY_S) -> None:
        self._service = service
        self._every_s = every_s
        self._next = 0.0

    def meet(self, stop: threading.Event) -> None:
        """Do what is due, unless that was done just now. Never raises: schedules go on whatever billing does."""
        if time.monotonic() < self._next:
            return
        try:
            done = meet_all(self._service, stop)
            if done:
                logger.info("billing: accounts about which something was done: %d", done)
        except Away as away:
            logger.warning("billing waits: %s", away)
        except Exception:
            logger.exception("what is due in billing cannot be done")
        self._next = time.monotonic() + self._every_s


def meet_all(service: Service, stop: threading.Event) -> int:
    """Do all that is due now, many accounts at a time; how many they were. Raises `Away` with the database."""
    seen: set[str] = set()
    while not stop.is_set():
        with service.store.transaction() as session:
            now = session.now()
        command = EndAccess(at=now, by=origin(f"service:{service.settings.worker_id}"), besides=frozenset(seen))
        found = end_access(command, service.platform, service.settings.terms)
        seen.update(found)
        if len(found) < command.limit:
            break
    return len(seen)
