"""Following the log: pages of events become rows somewhere else, and a checkpoint says how far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from domain.envelope import Envelope
from projections.project import changes_of
from projections.rows import RowWriter

PAGE: Final = 2_000
"""Events per batch: large enough that a statement's fixed cost is shared, small enough to stay in memory."""


class Overtaken(Exception):  # noqa: N818 - it says what happened
    """Another process moved this projection's checkpoint: this one leads no more."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An event at its place in the log."""

    event: object
    at: Envelope


Handle = Callable[[Sequence[Placed]], None]
"""Does something with a page of events. It may see a page again after a crash, and must not mind."""


class Log(Protocol):
    def read(self, after: int, limit: int) -> Sequence[Placed]: ...

    def end(self) -> int: ...


class Checkpoints(Protocol):
    def position(self, projection: str) -> int: ...

    def advance(self, projection: str, expected: int, to: int) -> None: ...


def catch_up(
    projection: str,
    log: Log,
    handle: Handle,
    checkpoints: Checkpoints,
    *,
    page: int = PAGE,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Handle all events after the checkpoint, page by page; returns how many events that were.

    Effect first, then the checkpoint: a crash in between repeats a page. Raises what reading or handling raises, with
    the checkpoint standing before the page that failed.
    """
    handled = 0
    position = checkpoints.position(projection)
    while not stop():
        events = log.read(position, page)
        if not events:
            break
        handle(events)
        end = events[-1].at.position
        checkpoints.advance(projection, position, end)
        position = end
        handled += len(events)
    return handled


def rows_into(writer: RowWriter) -> Handle:
    """The handler that writes the rows of events; a repeated page changes nothing."""

    def handle(events: Sequence[Placed]) -> None:
        writer.write([change for placed in events for change in changes_of(placed.event, placed.at)])

    return handle
