"""A customer's own events, newest first."""

from collections.abc import Sequence

from eventsourcing.persistence import Notification
from psycopg.rows import DictRow

from adapters.postgres.event_log import Datastore

_PAGE = (
    "SELECT originator_id, originator_version, topic, state, notification_id FROM stored_events WHERE customer_id = %s"
    " AND (%s::bigint IS NULL OR notification_id < %s) ORDER BY notification_id DESC LIMIT %s"
)
_FOLLOWING = (
    "SELECT originator_id, originator_version, topic, state, notification_id FROM stored_events WHERE customer_id = %s"
    " AND notification_id > %s ORDER BY notification_id LIMIT %s"
)


def newest(datastore: Datastore, customer_id: str, *, before: int | None, limit: int) -> list[Notification]:
    """At most `limit` stored events of the customer, its subscription and its runs, before a position of the log."""
    with datastore.reading() as cursor:
        found = cursor.execute(_PAGE, (customer_id, before, before, limit), prepare=True).fetchall()
    return _notifications(found)


def following(datastore: Datastore, customer_id: str, *, after: int, limit: int) -> list[Notification]:
    """At most `limit` stored events of the customer, its subscription and its runs, after a position of the log."""
    with datastore.reading() as cursor:
        found = cursor.execute(_FOLLOWING, (customer_id, after, limit), prepare=True).fetchall()
    return _notifications(found)


def _notifications(rows: Sequence[DictRow]) -> list[Notification]:
    return [
        Notification(
            id=row["notification_id"],
            originator_id=row["originator_id"],
            originator_version=row["originator_version"],
            topic=row["topic"],
            state=bytes(row["state"]),
        )
        for row in rows
    ]
