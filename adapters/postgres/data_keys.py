"""Where customers' wrapped data keys are kept: beside the log, never in it."""

from typing import Final

from adapters.postgres.event_log import Datastore

_CONNECTIONS: Final = 2


class PostgresDataKeys:
    """Wrapped data keys by customer and purpose. Ids that differ only in case are the same customer.

    They have connections of their own: keys are read in the midst of transactions, and if each of those that have all
    other connections waited for one more, they would wait for each other.
    """

    def __init__(self, dsn: str) -> None:
        self._datastore = Datastore(dsn, size=_CONNECTIONS, name="keys")

    def close(self) -> None:
        self._datastore.close()

    def get(self, customer_id: str, purpose_group: str) -> bytes | None:
        with self._datastore.reading() as cursor:
            row = cursor.execute(
                "SELECT wrapped FROM data_keys WHERE customer_id = lower(%s) AND purpose = %s",
                (customer_id, purpose_group),
                prepare=True,
            ).fetchone()
        return None if row is None else bytes(row["wrapped"])

    def add(self, customer_id: str, purpose_group: str, wrapped: bytes) -> bytes:
        """Store it if there is none; returns the one that stands, so that concurrent callers agree."""
        with self._datastore.reading() as cursor:
            cursor.execute(
                "INSERT INTO data_keys (customer_id, purpose, wrapped) VALUES (lower(%s), %s, %s)"
                " ON CONFLICT DO NOTHING",
                (customer_id, purpose_group, wrapped),
                prepare=True,
            )
        standing = self.get(customer_id, purpose_group)
        if standing is None:
            raise LookupError("The data key was destroyed while it was made.")
        return standing

    def delete(self, customer_id: str) -> None:
        """Destroy the customer's data keys, and with them everything they sealed."""
        with self._datastore.reading() as cursor:
            cursor.execute("DELETE FROM data_keys WHERE customer_id = lower(%s)", (customer_id,))
