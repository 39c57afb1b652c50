"""Following the log: whatever comes to stand in it, in order and exactly once, for as long as somebody looks."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

from adapters.postgres.channels import LOG
from adapters.postgres.listener import Handler, Listener
from application.ports import Away

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Look = Callable[[int], tuple[Sequence[Item], int]]
"""Looks at what comes after a position of the log: what was found there, and the position that this reaches."""

_AWAY_S: Final = 1.0


class Listening(Protocol):
    """Calls handlers for notifications, and every one of them with "" whenever some may have been missed."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Following(Generic[Item]):
    """What `look` finds after a position of the log, and then whatever comes.

    Waits for the database's notification, not for a time, and looks for itself whenever it may have missed one. While
    the database is away it waits for it to come back.
    """

    def __init__(
        self,
        look: Look[Item],
        dsn: str,
        position: int,
        listen: Callable[[str, Mapping[str, Handler]], Listening] = Listener,
    ) -> None:
        self._look = look
        self._position = position
        self._wake, self._stop = threading.Event(), threading.Event()
        self._listener = listen(dsn, {LOG: lambda _: self._wake.set()})

    def stop(self) -> None:
        """End the iteration; may be called from another thread."""
        self._stop.set()
        self._wake.set()

    def __iter__(self) -> Iterator[Item]:
        self._listener.start()
        try:
            while not self._stop.is_set():
                # Cleared before looking, so that what comes while we look wakes us again.
                self._wake.clear()
                found, reached = self._patiently()
                yield from found
                if reached == self._position and not self._stop.is_set():
                    self._wake.wait()
                self._position = reached
        finally:
            self._listener.stop()

    def _patiently(self) -> tuple[Sequence[Item], int]:
        away = False
        while not self._stop.is_set():
            try:
                return self._look(self._position)
            except Away as error:
                if not away:
                    logger.warning("waiting: %s", error)
                away = True
                self._stop.wait(_AWAY_S)
        return [], self._position
