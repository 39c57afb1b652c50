"""The newest use of each API key, collected in memory and written together."""

import logging
import threading
from datetime import datetime
from typing import Final

from cachetools import LRUCache

from adapters.postgres import key_uses
from adapters.postgres.event_log import Datastore
from adapters.postgres.key_uses import Use
from adapters.postgres.reads.keys import Holder
from application.ports import Away
from application.session import Superseded

logger = logging.getLogger(__name__)

EVERY_S: Final = 60.0
KEPT: Final = 100_000
"""Keys whose uses one process holds at a time: beyond that, those used longest ago are let go."""


class KeyUses:
    """When and from where this process saw each key last, until that is written.

    No request writes anything. A process that is killed loses what it has seen since it last wrote.
    """

    def __init__(self, *, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._kept = kept
        self._seen: LRUCache[str, Use] = LRUCache(kept)

    def note(self, holder: Holder, at: datetime, source: str | None) -> None:
        """The key was used."""
        use = Use(holder.api_key_id, holder.customer_id, at, source)
        with self._lock:
            self._seen[holder.api_key_id] = use

    def flush(self, datastore: Datastore) -> None:
        """Write what was seen; what cannot be written now is kept for the next time."""
        with self._lock:
            seen, self._seen = self._seen, LRUCache(self._kept)
        if not seen:
            return
        try:
            key_uses.record(datastore, seen.values())
        except (Away, Superseded) as reason:
            logger.warning("uses of API keys are written later: %s", reason)
            with self._lock:
                for key_id, use in seen.items():
                    if len(self._seen) < self._kept:
                        self._seen.setdefault(key_id, use)

    def run(self, datastore: Datastore, stop: threading.Event, *, every_s: float = EVERY_S) -> None:
        """Write until `stop` is set, and once more then. Never raises: what cannot be written at all is let go."""
        last = False
        while not last:
            last = stop.wait(every_s)
            try:
                self.flush(datastore)
            except Exception:
                logger.exception("uses of API keys are lost")
