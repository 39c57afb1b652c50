"""What a process remembers of streams that it loaded before: used only where the log bears it out."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from cachetools import TTLCache
from eventsourcing.persistence import StoredEvent

from domain.envelope import Origin

SIZE: Final = 2_000
TTL_S: Final = 300.0
"""As long as data keys are remembered: a state may hold what they opened."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A stream's state, the event that it ended with, as it is stored, and who `began` it. States are immutable."""

    state: Any
    last: StoredEvent
    began: Origin
    latest: Origin


class Remembered:
    """The states of at most `size` streams, each for `ttl_s` seconds or until `forget`.

    Whoever loads a stream that is remembered asks the log for the event that the state ended with and for what came
    after it. If that event is not the one remembered, byte for byte, nothing of the memory is used: the log may have
    been restored to an earlier state, or another server may have taken its place.

    Where nobody calls `forget`, personal data stay in memory for `ttl_s` seconds after another process erased them.
    Safe for threads.
    """

    def __init__(self, *, size: int = SIZE, ttl_s: float = TTL_S, timer: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._memories: TTLCache[UUID, Memory] = TTLCache(size, ttl_s, timer)
        self._forgotten = 0

    @property
    def forgotten(self) -> int:
        """How often something was to be forgotten: to be read before a stream is loaded."""
        with self._lock:
            return self._forgotten

    def find(self, stream_id: UUID) -> Memory | None:
        with self._lock:
            return self._memories.get(stream_id)

    def keep(self, stream_id: UUID, memory: Memory, *, since: int) -> None:
        """Remember a state that is stored, unless something was to be forgotten `since` it was loaded."""
        with self._lock:
            if since == self._forgotten:
                self._memories[stream_id] = memory

    def forget(self, stream_id: UUID | None = None) -> None:
        """Drop what is remembered of the stream; of all streams, if none is named."""
        with self._lock:
            self._forgotten += 1
            if stream_id is None:
                self._memories.clear()
            else:
                self._memories.pop(stream_id, None)
