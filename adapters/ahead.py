"""The central tables in BigQuery, written ahead of the customers' tables: those are many, and cost a statement each."""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from projections.follow import MOST, Handle, Log, Overtaken, Placed, catch_up

logger = logging.getLogger(__name__)

_NAME: Final = "central tables"
_GATHER_S: Final = 0.5
_MAX_SLEEP_S: Final = 30.0


class Ahead:
    """Writes pages of events with `customers`, and with `central` as far ahead of them as the log goes.

    A page is handled when both have written it, so that a checkpoint never counts what one of them has left to do. How
    far `central` is ahead is known as long as one process leads and no longer: the next one begins at the checkpoint,
    and writes again what was written. Nothing is ahead before the first page is handled, so that what cannot be
    handled is not tried by both, and again and again. Whatever keeps it from being ahead is met by whoever handles the
    page, and raised there.
    """

    def __init__(self, log: Log, central: Handle, customers: Handle) -> None:
        self._log = log
        self._central = central
        self._customers = customers
        self._gate = threading.Lock()  # the central tables have one writer at a time
        self._written = 0
        self._reached = 0
        """Where it goes ahead from."""
        self._handled = 0
        self.wake = threading.Event()

    def end(self) -> int:
        """The position of the log's last event."""
        return self._log.end()

    def read(self, after: int, limit: int, skipping: Collection[int] = frozenset()) -> Sequence[Placed]:
        """The next events to handle: of the log, and where the central tables are ahead, no further than they are."""
        with self._gate:  # which may take a moment: a page that is being written is better than a smaller one
            ahead = self._written - after
        if ahead > 0:
            events = self._log.read(after, min(limit, ahead), skipping)
            if near := [placed for placed in events if placed.at.position <= after + ahead]:
                return near
        return self._log.read(after, limit, skipping)

    def handle(self, events: Sequence[Placed]) -> None:
        """Write the page into all tables; raises what writing it raises."""
        last = events[-1].at.position
        with self._gate:
            if events[0].at.position <= self._handled:
                # The checkpoint was put back, and the tables may be others.
                self._written = 0
            if self._written < last:
                self._central(events)
                self._written = last
        self._customers(events)
        self._handled = last
        self.wake.set()

    @contextmanager
    def leading(self, skipping: Callable[[], Collection[int]]) -> Iterator[None]:
        """Be ahead until the block ends; nothing is written any more then. Passes over the events at `skipping`."""
        self._written = self._handled = 0
        ended = threading.Event()
        thread = threading.Thread(target=self._go_ahead, args=(skipping, ended), name=f"{_NAME} ahead")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self.wake.set()
            thread.join()

    def _go_ahead(self, skipping: Callable[[], Collection[int]], ended: threading.Event) -> None:
        while not ended.is_set():
            self.wake.wait(_MAX_SLEEP_S)
            self.wake.clear()
            if not self._handled:
                continue
            # A busy log is written in batches.
            ended.wait(_GATHER_S)
            self._reached = self._written
            try:
                catch_up(_NAME, self._log, self._write, self, most=MOST, stop=ended.is_set, skipping=skipping())
            except Overtaken:
                self.wake.set()
            except Exception as error:  # noqa: BLE001 - whoever handles this page meets it too, and says so
                logger.debug("the %s are not ahead: %s", _NAME, type(error).__name__)

    def _write(self, events: Sequence[Placed]) -> None:
        with self._gate:
            if self._written != self._reached:
                raise Overtaken(_NAME)
            self._central(events)
            self._written = self._reached = events[-1].at.position

    def position(self, _projection: str) -> int:
        """Up to which position the central tables are written."""
        return self._written

    def advance(self, projection: str, _expected: int, to: int) -> None:
        """Raises `Overtaken` when the central tables are not written up to there."""
        if self._written != to:
            raise Overtaken(projection)
