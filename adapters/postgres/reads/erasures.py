"""Customers who were erased, as the log says now."""

from collections.abc import Mapping

from adapters.postgres.event_log import Datastore


def since(datastore: Datastore, position: int) -> Mapping[str, int]:
    """The customers who were erased after a position of the log, each with the position of its erasure."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT customer_id, position FROM customer_profiles WHERE status = 'ERASED' AND position > %s",
            (position,),
        ).fetchall()
    return {row["customer_id"]: row["position"] for row in found}
