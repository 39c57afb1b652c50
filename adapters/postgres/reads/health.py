"""Whether the database is there, in this code's shape, and how far projections have come."""

from typing import Any

from adapters.postgres.event_log import Datastore
from adapters.postgres.schema import is_current


def schema_is_current(datastore: Datastore) -> bool:
    """Raises `Away` when the database does not answer."""
    with datastore.reading() as cursor:
        return is_current(cursor.connection)


def checkpoints(datastore: Datastore) -> list[dict[str, Any]]:
    """Every projection that has a checkpoint."""
    with datastore.reading() as cursor:
        return cursor.execute(
            "SELECT projection, position, updated_at FROM checkpoints ORDER BY projection", prepare=True
        ).fetchall()
