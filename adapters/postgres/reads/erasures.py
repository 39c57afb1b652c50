"""Customers who were erased, as the log says now."""

from collections.abc import Mapping

from adapters.postgres.event_log import Datastore


def is_erased(datastore: Datastore, customer_id: str) -> bool:
    """Whether the customer was erased."""
    return customer_id in since(datastore, 0, customer_id)


def since(datastore: Datastore, position: int, customer_id: str | None = None) -> Mapping[str, int]:
    """The customers, or the one customer, who were erased after a position of the log: each with its erasure's own."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT customer_id, position FROM customer_profiles WHERE status = 'ERASED' AND position > %(position)s"
            " AND (%(customer_id)s::text IS NULL OR customer_id = %(customer_id)s)",
            {"position": position, "customer_id": customer_id},
        ).fetchall()
    return {row["customer_id"]: row["position"] for row in found}
