"""The events of runs in the order of the log."""

from typing import Final

from eventsourcing.persistence import Notification

from adapters.postgres.event_log import Datastore
from adapters.postgres.reads.stored import notifications

_PAGE: Final = (
    "SELECT notification_id, originator_id, originator_version, topic,"
    " CASE WHEN topic LIKE 'run.%%' THEN state END AS state"
    " FROM stored_events WHERE notification_id > %s ORDER BY notification_id LIMIT %s"
)


def after(datastore: Datastore, position: int, *, limit: int) -> tuple[list[Notification], int]:
    """The events of runs among the next `limit` events of the log, and the position that they reach.

    No event comes later at a position that was passed: appends become visible in the order of their positions.
    """
    with datastore.reading() as cursor:
        found = cursor.execute(_PAGE, (position, limit), prepare=True).fetchall()
    events = notifications([row for row in found if row["state"] is not None])
    return events, found[-1]["notification_id"] if found else position
