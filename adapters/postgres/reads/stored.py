"""Rows of the log as the event store library knows them."""

from collections.abc import Sequence
from typing import Final, LiteralString

from eventsourcing.persistence import Notification
from psycopg.rows import DictRow

COLUMNS: Final[LiteralString] = (
    "SELECT originator_id, originator_version, topic, state, notification_id FROM stored_events"
)


def notifications(rows: Sequence[DictRow]) -> list[Notification]:
    """Rows with these columns as stored events, each with its position."""
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
