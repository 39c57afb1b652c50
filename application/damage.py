"""What of the log cannot be read, as it is met: said loudly, but not again and again."""

import logging
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from application.mapper import UnreadableEvent

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 600.0
_MOST: Final = 10_000


class Damage:
    """Tells of each stream that cannot be loaded when it is first met, and then every `again_s` seconds."""

    def __init__(self, *, again_s: float = _AGAIN_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._again_s = again_s
        self._clock = clock
        self._told_at: dict[UUID | str, float] = {}

    def tell(self, error: UnreadableEvent) -> None:
        """Say so in the log of the process, unless that was just done."""
        now = self._clock()
        told_at = self._told_at.get(error.stream_id)
        if told_at is not None and now - told_at < self._again_s:
            return
        if len(self._told_at) >= _MOST:
            self._told_at.clear()
        self._told_at[error.stream_id] = now
        logger.error("%s What has to be decided about it is refused.", error)
