"""What routes reach: the service, the clock, run outcomes, and threads for work that takes long."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from adapters.bootstrap import Service
from adapters.http.figures import Figures
from adapters.http.key_cache import KeyCache
from adapters.http.key_uses import KeyUses
from adapters.http.outcomes import Outcomes
from adapters.http.throttle import Throttle

Result = TypeVar("Result")

_SLOW_THREADS: Final = 32
_AWAY_SECONDS: Final = 15.0


class WarehouseFlag:
    """Remembers for a while that BigQuery is away, so that not every onboarding waits to find out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away_until = 0.0

    def lower(self) -> None:
        with self._lock:
            self._away_until = time.monotonic() + _AWAY_SECONDS

    def raise_again(self) -> None:
        with self._lock:
            self._away_until = 0.0

    @property
    def is_down(self) -> bool:
        with self._lock:
            return time.monotonic() < self._away_until


@dataclass(frozen=True, slots=True)
class Api:
    """One application's parts. `slow` runs what may take minutes, so that short requests always find a thread.

    Once `stopping` is set, what takes minutes is to come to an end.
    """

    service: Service
    now: Callable[[], datetime]
    throttle: Throttle
    outcomes: Outcomes = field(default_factory=Outcomes)
    warehouse_flag: WarehouseFlag = field(default_factory=WarehouseFlag)
    figures: Figures = field(default_factory=Figures)
    keys: KeyCache = field(default_factory=KeyCache)
    key_uses: KeyUses = field(default_factory=KeyUses)
    stopping: threading.Event = field(default_factory=threading.Event)
    slow: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="api-slow")
    )

    def slot_clock(self) -> datetime:
        """The database's clock, by which slots come due: seen by one that is ahead, a next slot would pass over some.

        Raises `Away` with the database.
        """
        with self.service.store.transaction() as session:
            return session.now()

    async def slowly(self, work: Callable[[], Result]) -> Result:
        """The result of work that may take minutes."""
        return await asyncio.get_running_loop().run_in_executor(self.slow, work)


def api_of(request: HTTPConnection) -> Api:
    """The parts of the application that answers this request."""
    api: Api = request.app.state.api
    return api


def at_once(make: Callable[..., Result]) -> Callable[..., Awaitable[Result]]:
    """A dependency made on the event loop: the framework gives what is no coroutine a thread of its own each time."""

    @wraps(make)
    async def made(*args: Any, **options: Any) -> Result:  # noqa: ANN401 - whatever it takes
        return make(*args, **options)

    return made


Parts = Annotated[Api, Depends(at_once(api_of))]
