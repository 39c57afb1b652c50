"""The seals of the log: events as they are stored, read in order, and what was seen of them, written once."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, tuple_row

from adapters.postgres.event_log import Datastore, translated
from application.chain import START, STRETCH, digest, entry, link
from projections.follow import Overtaken

_LOCK: Final = 0x0C0F_FEE2
"""Held while a seal is added, so that two processes that both believe to lead cannot seal the same events."""

_EVENTS: Final = (
    "SELECT notification_id, originator_id, originator_version, topic, state, customer_id FROM stored_events"
    " WHERE notification_id > %s AND notification_id <= %s ORDER BY notification_id LIMIT %s"
)
_LAST: Final = (
    "SELECT last_position AS position, hash, (SELECT sum(events)::bigint FROM log_seals) AS events"
    " FROM log_seals ORDER BY last_position DESC LIMIT 1"
)
_ADD: Final = (
    "INSERT INTO log_seals (last_position, first_position, events, digests, hash)"
    " SELECT %s, %s, %s, %s, %s WHERE coalesce((SELECT max(last_position) FROM log_seals), 0) = %s"
)
_SEALS: Final = (
    "SELECT first_position, last_position, events, digests, hash FROM log_seals"
    " WHERE last_position > %s AND last_position <= %s ORDER BY last_position LIMIT %s"
)
_UNSEALED: Final = (
    "WITH newest AS (SELECT last_position AS position, sealed_at AS at FROM log_seals"
    "  ORDER BY last_position DESC LIMIT 1),"
    " sealed AS (SELECT coalesce((SELECT position FROM newest), 0) AS position, (SELECT at FROM newest) AS at)"
    " SELECT position, at, (SELECT count(*) FROM ("
    "  SELECT FROM stored_events WHERE notification_id > position LIMIT %s) AS few) AS events FROM sealed"
)
_FOREVER: Final = 2**62
_EVENTS_PAGE: Final = 5_000
_SEALS_PAGE: Final = 50


class Stored(NamedTuple):
    """One event as it is stored. It is never decoded here: an event that nobody can read is sealed as well."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    state: bytes
    customer_id: str | None

    def digest(self) -> bytes:
        return digest(self.stream_id, self.version, self.topic, self.customer_id, self.state)


@dataclass(frozen=True, slots=True)
class Sealed:
    """How far the log is sealed: so many events up to this position, which hash to this."""

    position: int = 0
    hash: bytes = START
    events: int = 0


@dataclass(frozen=True, slots=True)
class Seal:
    """What one stretch of the log looked like when it was sealed."""

    first_position: int
    last_position: int
    events: int
    digests: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What no seal covers yet."""

    position: int
    """The last sealed event's."""
    at: datetime | None
    """When the newest seal was made; None while there is none."""
    events: int
    """Events after that, counted as far as was asked."""


def last(connection: Connection[Any]) -> Sealed:
    """How far the log is sealed, as the seals say."""
    with translated(), connection.cursor(row_factory=class_row(Sealed)) as cursor:
        return cursor.execute(_LAST).fetchone() or Sealed()


def seal_next(connection: Connection[Any], after: Sealed) -> Sealed | None:
    """Seal the events that follow, at most `STRETCH`; None when there are none. All or nothing.

    Raises `Overtaken` when somebody sealed further than `after` meanwhile, `Away` when the database is.
    """
    stretch = _events(connection, after.position, _FOREVER, STRETCH)
    if not stretch:
        return None
    end = after.hash
    digests = bytearray()
    for event in stretch:
        seen = event.digest()
        end = link(end, event.position, seen)
        digests += entry(event.position, seen)
    first, until = stretch[0].position, stretch[-1].position
    with translated(), connection.transaction():
        # A statement of its own: the next one sees what those before us committed.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        done = connection.execute(_ADD, (until, first, len(stretch), bytes(digests), end, after.position))
        if done.rowcount == 0:
            raise Overtaken("seal")
    return Sealed(until, end, after.events + len(stretch))


def hash_at(connection: Connection[Any], position: int) -> bytes | None:
    """The hash over the log up to the seal that ends at this position, None when no seal does."""
    with translated(), connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT hash FROM log_seals WHERE last_position = %s", (position,)).fetchone()
    return row[0] if row else None


def end_of_log(connection: Connection[Any]) -> int:
    """The position of the newest event, 0 for an empty log."""
    with translated(), connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT coalesce(max(notification_id), 0) FROM stored_events").fetchone()
    return row[0] if row else 0


def events_to(connection: Connection[Any], end: int) -> Iterator[Stored]:
    """Every event up to position `end`, in order, page by page: memory stays flat, and nothing is held in between."""
    position = 0
    while page := _events(connection, position, end, _EVENTS_PAGE):
        yield from page
        position = page[-1].position


def seals_to(connection: Connection[Any], end: int) -> Iterator[Seal]:
    """Every seal that ends at position `end` or before, in order, page by page."""
    position = 0
    while page := _seals(connection, position, end):
        yield from page
        position = page[-1].last_position


def unsealed(datastore: Datastore, *, most: int = 100_000) -> Unsealed:
    """How much of the log no seal covers; counts `most` events and no more. Raises `Away`."""
    with datastore.reading() as cursor:
        [row] = cursor.execute(_UNSEALED, (most,)).fetchall()
    return Unsealed(**row)


def _events(connection: Connection[Any], after: int, end: int, limit: int) -> list[Stored]:
    with translated(), connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        found = cursor.execute(_EVENTS, (after, end, limit), prepare=True)
        return [Stored._make(row) for row in found]


def _seals(connection: Connection[Any], after: int, end: int) -> list[Seal]:
    with translated(), connection.cursor(row_factory=class_row(Seal), binary=True) as cursor:
        return cursor.execute(_SEALS, (after, end, _SEALS_PAGE), prepare=True).fetchall()
