"""Waiting for a run to end without holding a thread."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.concurrency import run_in_threadpool

_LOOK_AGAIN_SECONDS: Final = 2.0
"""How long a wait trusts notifications before it looks for itself."""


class Outcomes:
    """Tells requests that their run ended, as the database announces it.

    `announce` is called from the listener's thread, everything else on the event loop.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def announce(self, payload: str) -> None:
        """Wake those who wait for these runs (ids separated by commas), or all when it is empty."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, payload)

    def _wake(self, payload: str) -> None:
        for run_id in payload.split(",") if payload else list(self._waiting):
            for event in self._waiting.get(run_id, ()):
                event.set()

    @contextmanager
    def watching(self, run_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the run ends, from now on. Enter this before the run is looked at."""
        event = asyncio.Event()
        self._waiting[run_id].add(event)
        try:
            yield event
        finally:
            self._waiting[run_id].discard(event)
            if not self._waiting[run_id]:
                del self._waiting[run_id]


async def wait_until(ended: Callable[[], bool], event: asyncio.Event, seconds: float) -> bool:
    """Whether `ended` (which may block) became true within that time; looks whenever the event is set."""
    deadline = time.monotonic() + seconds
    while True:
        event.clear()
        if await run_in_threadpool(ended):
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            await asyncio.wait_for(event.wait(), min(left, _LOOK_AGAIN_SECONDS))
        except TimeoutError:
            continue
