"""Where in the log something lies: by position, by version in its stream, and by time.

Positions say in which order events came to be. Their instants nearly do: they are stamped by machines whose clocks
differ. As long as they differ by no more than `CLOCKS`, nothing is missed that lies in a span of time.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from eventsourcing.persistence import Notification

from adapters.postgres.event_log import Datastore, Reads
from adapters.postgres.reads.stored import COLUMNS, notifications
from application.mapper import envelope_of

CLOCKS: Final = timedelta(minutes=15)
_PAGE: Final = 1_000
_FEW: Final = 8

_FROM: Final = COLUMNS + " WHERE notification_id >= %s ORDER BY notification_id LIMIT %s"
_STREAM: Final = COLUMNS + " WHERE originator_id = %s AND originator_version > %s ORDER BY originator_version LIMIT %s"


def end(datastore: Datastore) -> int:
    """The position of the newest event, 0 for an empty log."""
    with datastore.reading() as cursor:
        row = cursor.execute("SELECT max(notification_id) AS position FROM stored_events", prepare=True).fetchone()
    return row["position"] or 0 if row else 0


def stream(reads: Reads, stream_id: UUID, *, after: int = 0) -> Iterator[Notification]:
    """The stored events of one stream after a version, in order, read page by page as they are asked for."""
    full = True
    while full:
        with reads.reading() as cursor:
            rows = cursor.execute(_STREAM, (stream_id, after, _PAGE), prepare=True, binary=True).fetchall()
        found = notifications(rows)
        yield from found
        full = len(found) == _PAGE
        after = found[-1].originator_version if found else after


def first(datastore: Datastore, stream_id: UUID) -> Notification | None:
    """The event with which a stream begins; None for a stream that never was."""
    with datastore.reading() as cursor:
        rows = cursor.execute(_STREAM, (stream_id, 0, 1), prepare=True, binary=True).fetchall()
    return notifications(rows)[0] if rows else None


def span(
    datastore: Datastore, since: datetime | None, until: datetime | None, *, clocks: timedelta = CLOCKS
) -> tuple[int, int]:
    """The first position at which an event of that span of time may lie, and the first behind it.

    Costs some twenty looks, however long the log is.
    """
    behind = end(datastore) + 1
    first_position = 1 if since is None else _position(datastore, since - clocks, behind)
    return first_position, behind if until is None else _position(datastore, until + clocks, behind)


def _position(datastore: Datastore, at: datetime, behind: int) -> int:
    """A position such that the event before it is of before `at` and the one there is not."""
    low, high = 1, behind
    while low < high:
        middle = (low + high) // 2
        found = _dated(datastore, middle, high)
        if found is None or found[1] >= at:
            high = middle
        else:
            low = found[0] + 1
    return low


def _dated(datastore: Datastore, position: int, behind: int) -> tuple[int, datetime] | None:
    """The first event from there on whose instant can be read."""
    while position < behind:
        with datastore.reading() as cursor:
            found = notifications(cursor.execute(_FROM, (position, _FEW), prepare=True, binary=True).fetchall())
        for event in found:
            if event.id < behind and (envelope := envelope_of(event)) is not None:
                return event.id, envelope.at
        position = found[-1].id + 1 if found else behind
    return None


def owner(reads: Reads, stream_id: UUID) -> str | None:
    """Whose stream it is; None for one that never was."""
    with reads.reading() as cursor:
        row = cursor.execute(
            "SELECT customer_id FROM stored_events WHERE originator_id = %s ORDER BY originator_version LIMIT 1",
            (stream_id,),
            prepare=True,
        ).fetchone()
    return row["customer_id"] if row else None


def length(reads: Reads, stream_id: UUID) -> int:
    """How many events a stream has."""
    with reads.reading() as cursor:
        row = cursor.execute(
            "SELECT max(originator_version) AS version FROM stored_events WHERE originator_id = %s",
            (stream_id,),
            prepare=True,
        ).fetchone()
    return row["version"] or 0 if row else 0


def version(reads: Reads, stream_id: UUID, position: int) -> int:
    """How many events a stream had at a position of the log. Costs some twenty looks, however long it is."""
    low, high = 0, length(reads, stream_id)
    with reads.reading() as cursor:
        while low < high:
            middle = (low + high + 1) // 2
            row = cursor.execute(
                "SELECT notification_id FROM stored_events WHERE originator_id = %s AND originator_version >= %s"
                " ORDER BY originator_version LIMIT 1",
                (stream_id, middle),
                prepare=True,
            ).fetchone()
            if row is not None and row["notification_id"] <= position:
                low = middle
            else:
                high = middle - 1
    return low
