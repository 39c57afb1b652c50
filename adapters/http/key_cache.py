"""What API keys prove, remembered for a while, and never believed for longer than the database confirms it."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from cachetools import TTLCache

from adapters.postgres.reads.keys import Holder

SIZE: Final = 100_000
TTL_S: Final = 60.0
NOBODYS_SIZE: Final = 10_000
NOBODYS_TTL_S: Final = 5.0
LEASE_S: Final = 1.0
"""How long after the database's last word what is remembered may be used."""
ASK_S: Final = 0.4
"""How often the listener asks for that word: twice within a lease, so that one late answer ends none."""
_CHANGES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """What a lookup found; no holder when nobody holds such a key. `since` is when it began, in changes seen."""

    holder: Holder | None
    since: int


class KeyCache:
    """Holders by the SHA-256 of their keys, in one process.

    A key that is revoked anywhere is dead here within a second of that: the change is announced, and `forget` drops
    what was remembered; and while the database cannot be heard, nothing remembered is used at all, because each use
    needs a word of the database (`hear`) that is not older than `LEASE_S`. Whoever finds nothing here looks the key
    up, and `keep`s what it found with the instant at which it began to look: what changed meanwhile is not kept.

    Keys that nobody holds are remembered apart from the others, so that no number of guesses drives a good key out.
    An end is no business of the cache: a holder's `expires_at` is compared at every use.
    """

    def __init__(
        self,
        *,
        size: int = SIZE,
        ttl_s: float = TTL_S,
        lease_s: float = LEASE_S,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease_s = lease_s
        self._timer = timer
        self._lock = threading.Lock()
        self._held: TTLCache[bytes, Entry] = TTLCache(size, ttl_s, timer)
        self._nobodys: TTLCache[bytes, Entry] = TTLCache(NOBODYS_SIZE, NOBODYS_TTL_S, timer)
        self._changes = 0
        self._changed: dict[str, int] = {}
        self._all_changed = 0
        self._trusted_until = 0.0

    @property
    def changes(self) -> int:
        """How many changes were seen: to be read before a key is looked up."""
        with self._lock:
            return self._changes

    def find(self, digest: bytes) -> Entry | None:
        """What is remembered of the key with this SHA-256; None when it has to be looked up."""
        with self._lock:
            if self._timer() >= self._trusted_until:
                return None
            entry = self._held.get(digest)
            if entry is None:
                return self._nobodys.get(digest)
            return entry if self._stands(entry) else None

    def keep(self, digest: bytes, entry: Entry) -> None:
        """Remember what a lookup found, unless that has changed since the lookup began."""
        with self._lock:
            if not self._stands(entry):
                return
            if entry.holder is None:
                self._nobodys[digest] = entry
            else:
                self._held[digest] = entry

    def forget(self, customer_ids: Collection[str]) -> None:
        """What the keys of these customers prove has changed."""
        with self._lock:
            self._changes += 1
            self._nobodys.clear()
            for customer_id in customer_ids:
                self._changed[customer_id] = self._changes
            if len(self._changed) > _CHANGES:
                self._forget_all()

    def announce(self, payload: str) -> None:
        """As it comes from the listener: customers separated by commas, or nothing where any may have changed."""
        if payload:
            self.forget(payload.split(","))
            return
        with self._lock:
            self._changes += 1
            self._forget_all()

    def hear(self, asked: float) -> None:
        """All that was announced before that instant (of the timer) has been taken in."""
        with self._lock:
            self._trusted_until = asked + self._lease_s

    def _forget_all(self) -> None:
        self._held.clear()
        self._nobodys.clear()
        self._changed.clear()
        self._all_changed = self._changes

    def _stands(self, entry: Entry) -> bool:
        if entry.holder is None:
            return entry.since == self._changes
        return entry.since >= max(self._all_changed, self._changed.get(entry.holder.customer_id, 0))
