"""Pieces of work side by side, as many as there is room for."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from adapters.bigquery.writing import settle


class Abreast:
    """Pieces of work side by side. No more than twice `abreast` wait, and none begins after one has failed."""

    def __init__(self, pool: ThreadPoolExecutor, abreast: int) -> None:
        self._pool = pool
        self._room = threading.BoundedSemaphore(2 * abreast)
        self._failed = threading.Event()
        self._work: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._failed.set()
        settle(self._work)

    def start(self, work: Callable[..., object], *arguments: Any) -> None:  # noqa: ANN401 - whatever the work takes
        """Do the work soon; waits for room."""
        self._room.acquire()
        self._work.append(self._pool.submit(self._do, work, arguments))

    def _do(self, work: Callable[..., object], arguments: Iterable[Any]) -> None:
        try:
            if not self._failed.is_set():
                work(*arguments)
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._room.release()
