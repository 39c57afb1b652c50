"""A customer's runs as they stood at a position of the log: counted, and those that had not ended found."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final
from uuid import UUID

from eventsourcing.persistence import Notification

from adapters.postgres.event_log import Datastore
from adapters.postgres.reads.stored import COLUMNS, notifications

BEGUN: Final = "run.scheduled"
ENDED: Final = ("run.completed", "run.failed", "run.cancelled", "run.skipped")
"""The names of the events with which runs begin and end, in every version that is stored."""

_CHUNK: Final = 200
_PAGE: Final = 1_000
# Compared by both columns, so that no other customer's events are read: see events.py.
_COUNTS: Final = (
    "SELECT split_part(topic, '@', 1) AS name, count(*) AS events FROM stored_events"
    " WHERE (customer_id, notification_id) > (%(customer)s, 0)"
    " AND (customer_id, notification_id) <= (%(customer)s, %(position)s)"
    " AND split_part(topic, '@', 1) = ANY(%(names)s) GROUP BY 1"
)
# Newest first, and no further than to the last one that there is.
_ACTIVE: Final = (
    "SELECT s.originator_id, s.notification_id FROM stored_events s"
    " WHERE (s.customer_id, s.notification_id) > (%(customer)s, 0)"
    " AND (s.customer_id, s.notification_id) <= (%(customer)s, %(position)s)"
    " AND split_part(s.topic, '@', 1) = %(begun)s AND NOT EXISTS (SELECT FROM stored_events e"
    "  WHERE e.originator_id = s.originator_id AND e.notification_id <= %(position)s"
    "  AND split_part(e.topic, '@', 1) = ANY(%(ended)s))"
    " ORDER BY s.customer_id DESC, s.notification_id DESC LIMIT %(most)s"
)
_BETWEEN: Final = (
    COLUMNS + " WHERE (customer_id, notification_id) > (%(customer)s, %(after)s)"
    " AND (customer_id, notification_id) < (%(customer)s, %(behind)s)"
    " AND starts_with(topic, 'run.') ORDER BY customer_id, notification_id LIMIT %(page)s"
)
_OF: Final = (
    COLUMNS + " WHERE originator_id = ANY(%s) AND notification_id < %s ORDER BY originator_id, originator_version"
)


def counts(datastore: Datastore, customer_id: str, position: int) -> Mapping[str, int]:
    """How often runs of the customer began and ended up to that position, by the name of the event.

    Reads all of the customer's events up to there.
    """
    with datastore.reading() as cursor:
        wanted = {"customer": customer_id, "position": position, "names": [BEGUN, *ENDED]}
        rows = cursor.execute(_COUNTS, wanted, prepare=True).fetchall()
    return {row["name"]: row["events"] for row in rows}


def active(datastore: Datastore, customer_id: str, position: int, most: int) -> list[tuple[int, UUID]]:
    """The runs that had begun and not ended at that position, with those at which they began, the newest first."""
    if not most:
        return []
    wanted = {"customer": customer_id, "position": position, "begun": BEGUN, "ended": list(ENDED), "most": most}
    with datastore.reading() as cursor:
        rows = cursor.execute(_ACTIVE, wanted, prepare=True, binary=True).fetchall()
    return [(row["notification_id"], row["originator_id"]) for row in rows]


def between(datastore: Datastore, customer_id: str, after: int, behind: int) -> Iterator[Notification]:
    """All events of the customer's runs after one position and before another, in order."""
    full = True
    while full:
        with datastore.reading() as cursor:
            wanted = {"customer": customer_id, "after": after, "behind": behind, "page": _PAGE}
            found = notifications(cursor.execute(_BETWEEN, wanted, prepare=True, binary=True).fetchall())
        yield from found
        full = len(found) == _PAGE
        after = found[-1].id if found else after


def streams(datastore: Datastore, run_ids: Sequence[UUID], behind: int) -> Iterator[Sequence[Notification]]:
    """The events before a position of each of these runs, in order."""
    for start in range(0, len(run_ids), _CHUNK):
        with datastore.reading() as cursor:
            wanted = (list(run_ids[start : start + _CHUNK]), behind)
            found = notifications(cursor.execute(_OF, wanted, prepare=True, binary=True).fetchall())
        for _, stream in groupby(found, lambda event: event.originator_id):
            yield list(stream)
