"""Following the log: pages of events become rows somewhere else, and a checkpoint says how far."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final, Protocol

from domain.envelope import Envelope
from projections.project import changes_of
from projections.rows import Change, RowWriter, Scope

PAGE: Final = 2_000
"""Events per batch: large enough that a statement's fixed cost is shared, small enough to stay in memory."""
MOST: Final = 16_000
"""Events per batch when there are many to catch up with: about a hundred megabytes while they are folded."""

_OF_ITS_DATA: Final = (ValueError, OverflowError)
"""What a handler raises for events that it can make nothing of, however often it is tried."""
_NO_ROWS: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Overtaken(Exception):  # noqa: N818 - it says what happened
    """Another process moved this projection's checkpoint: this one leads no more."""


class Unwritable(Exception):  # noqa: N818 - it names what was found
    """An event that can be read, and whose rows cannot be made or are refused. Everything before it was handled.

    The text names the event and the kind of its cause, whose own words may quote what is recorded.
    """

    def __init__(self, at: Envelope, cause: Exception) -> None:
        kind = type(cause.__cause__ if isinstance(cause, NoRows) and cause.__cause__ else cause).__name__
        what = "its rows cannot be made" if isinstance(cause, NoRows) else "a table cannot hold its rows"
        super().__init__(
            f"Event {at.version} of stream {at.stream_id} ({at.topic}) cannot be projected: {what} ({kind})."
        )
        self.position = at.position


class NoRows(ValueError):  # noqa: N818 - it says what came of it
    """An event of which the projection makes no rows: the fault that it raises instead is the cause."""


class ProblemKind(StrEnum):
    """Why a projection does not go on: at an event, for a backend, or for a fault of the code or its surroundings."""

    EVENT = "event"
    AWAY = "away"
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What keeps a projection from going on, in a sentence without anything that is recorded.

    `position` is that of the event it stands stopped at; None when it is not an event.
    """

    kind: ProblemKind
    text: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """An event at its place in the log."""

    event: object
    at: Envelope


Handle = Callable[[Sequence[Placed]], None]
"""Does something with a page of events. It may see a page again after a crash, and must not mind.

Raises `ValueError` or `OverflowError` for events that it can make nothing of, and then minds a part of the page as
little.
"""


class Log(Protocol):
    def read(self, after: int, limit: int, skipping: Collection[int] = ...) -> Sequence[Placed]: ...

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
    most: int = 0,
    stop: Callable[[], bool] = lambda: False,
    skipping: Collection[int] = frozenset(),
) -> int:
    """Handle all events after the checkpoint, page by page; returns how many events that were.

    Effect first, then the checkpoint: a crash in between repeats a page. Events at the positions `skipping` are passed
    over. Raises what reading or handling raises, with the checkpoint standing before the page that failed. Where an
    event is the cause, it stands right before that event: `Unwritable` when handling it fails, what the log raises
    when it cannot be read.

    A page has `page` events, and up to `most` when as many wait: what it costs for each table that it touches is the
    same however many of its events do, and several events of one row are one row to write.
    """
    handled = 0
    position = checkpoints.position(projection)
    while not stop():
        waiting = log.end() - position if most > page else 0
        events = log.read(position, max(page, min(waiting, most)), skipping)
        if not events:
            break
        for part in _handled(events, handle):
            end = part[-1].at.position
            checkpoints.advance(projection, position, end)
            position = end
            handled += len(part)
    return handled


def _handled(events: Sequence[Placed], handle: Handle) -> Iterator[Sequence[Placed]]:
    """Handle the events; yields the parts in which that succeeded, in order. Raises `Unwritable`."""
    try:
        handle(events)
    except _OF_ITS_DATA as error:
        # One stored event may be told as several, which stand and fall together.
        places = [list(group) for _, group in groupby(events, key=lambda placed: placed.at.position)]
        if len(places) == 1:
            raise Unwritable(events[0].at, error) from error
        half = len(places) // 2
        yield from _handled([placed for place in places[:half] for placed in place], handle)
        yield from _handled([placed for place in places[half:] for placed in place], handle)
    else:
        yield events


def rows_into(writer: RowWriter, scopes: Collection[Scope] = tuple(Scope)) -> Handle:
    """The handler that writes the rows of events, in tables of these scopes; a repeated page changes nothing."""

    def handle(events: Sequence[Placed]) -> None:
        changes: list[Change] = []
        for placed in events:
            try:
                changes += (c for c in changes_of(placed.event, placed.at) if c.row.table.scope in scopes)
            except _NO_ROWS as error:
                raise NoRows from error
        writer.write(changes)

    return handle
