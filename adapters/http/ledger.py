"""Allowances as one process takes from them: those that all processes share, and its own while the database is away."""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from cachetools import LRUCache
from fastapi import HTTPException

from adapters.postgres.allowances import Ask, Grant, granted
from application.ports import Away
from application.session import Superseded

logger = logging.getLogger(__name__)

Take = Callable[[Sequence[Ask]], Sequence[Grant]]

PATIENCE_S: Final = 0.5
"""How long a request waits to have its tokens counted by the database."""
AWAY_S: Final = 5.0
"""How long a process counts by itself before it asks the database again."""
BUCKETS: Final = 100_000
_THREADS: Final = 2


def bucket(kind: str, *names: str) -> bytes:
    """The name of a bucket: always as long, whatever a caller puts into it, and no list of addresses for a reader."""
    return hashlib.blake2b("\0".join((kind, *names)).encode(errors="surrogatepass"), digest_size=16).digest()


def too_many(sentence: str, wait_s: float) -> HTTPException:
    """The answer to one request too many: come back after so many seconds."""
    return HTTPException(429, sentence, {"Retry-After": str(seconds(wait_s))})


def seconds(wait_s: float) -> int:
    """A time to wait in whole seconds, at least one."""
    return max(1, math.ceil(wait_s))


class LocalBuckets:
    """The same allowances, counted by this process alone; the buckets used longest ago are forgotten, and so whole."""

    def __init__(self, *, buckets: int = BUCKETS, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._full_at: LRUCache[bytes, float] = LRUCache(buckets)

    def take(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        """What each of the asks gets, in their order."""
        return [self._one(ask) for ask in asks]

    def _one(self, ask: Ask) -> Grant:
        now = self._timer()
        since = max(self._full_at.get(ask.bucket, now), now)
        room = math.floor(ask.allowance.burst + 1e-6 - (since - now) / ask.allowance.spacing_s)
        tokens = max(0, min(ask.tokens, room))
        full_at = since + tokens * ask.allowance.spacing_s
        self._full_at[ask.bucket] = full_at
        return granted(ask, tokens, full_at - now)


class Ledger:
    """Takes tokens for the requests of one event loop."""

    def __init__(self, take: Take, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._take = take
        self._timer = timer
        self._local = LocalBuckets(timer=timer)
        self._away_until = 0.0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="allowances")

    async def take(self, *asks: Ask) -> Sequence[Grant]:
        """What each of the asks gets. While the database is away, from allowances of this process's own.

        So an outage costs at most one more allowance for each process, and never a request.
        """
        if self._timer() < self._away_until:
            return self._local.take(asks)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._take, asks)
        except (Away, Superseded, TimeoutError) as error:
            logger.warning("limits are counted by this process alone for %.0f s (%s)", AWAY_S, type(error).__name__)
            self._away_until = self._timer() + AWAY_S
            return self._local.take(asks)

    def close(self) -> None:
        """Wait for what is being taken: no longer than until the connections are closed, where that comes first."""
        self._threads.shutdown(cancel_futures=True)
