"""Whether the database is there and in this code's shape."""

from adapters.postgres.event_log import Datastore
from adapters.postgres.schema import is_current


def schema_is_current(datastore: Datastore) -> bool:
    """Raises `Away` when the database does not answer."""
    with datastore.reading() as cursor:
        return is_current(cursor.connection)
