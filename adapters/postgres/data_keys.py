"""Where customers' wrapped data keys are kept: beside the log, never in it."""

from collections.abc import Sequence
from typing import Any, Final

from psycopg import Cursor

from adapters.kms.vault import StoredKey
from adapters.postgres.channels import DATA_KEYS
from adapters.postgres.event_log import Datastore
from application.ports import KeyDestroyed, Wrapped

_CONNECTIONS: Final = 2

_LOCK: Final = "SELECT pg_advisory_xact_lock(%s, hashtext(lower(%s)))"
_LOCK_CLASS: Final = 0x0DA7_A4E5
"""Advisory locks on a customer's data keys: between a key's being made and all of them being deleted."""
_ALL: Final = (
    "SELECT purpose, wrapped, name, retired_at IS NOT NULL AS retired, seals_personal FROM data_keys"
    " WHERE customer_id = lower(%s) ORDER BY created_at DESC"
)
_CURRENT: Final = "SELECT wrapped FROM data_keys WHERE customer_id = lower(%s) AND purpose = %s AND retired_at IS NULL"
_ADD: Final = (
    "INSERT INTO data_keys (customer_id, purpose, wrapped, version, name, seals_personal)"
    " SELECT lower(%(customer)s), %(purpose)s, %(wrapped)s, %(version)s, %(name)s, %(personal)s"
    # An erasure is noted before its keys are deleted, so that none is made that would not be.
    " WHERE NOT EXISTS (SELECT FROM erasures WHERE lower(customer_id) = lower(%(customer)s))"
    " ON CONFLICT (customer_id, purpose) WHERE retired_at IS NULL DO NOTHING"
)
_RETIRE: Final = (
    "UPDATE data_keys SET retired_at = clock_timestamp()"
    " WHERE customer_id = lower(%s) AND purpose = %s AND retired_at IS NULL"
)
_TELL: Final = "SELECT pg_notify(%s, lower(%s))"


class PostgresDataKeys:
    """Wrapped data keys by customer and purpose. Ids that differ only in case are the same customer.

    They have connections of their own: keys are read in the midst of transactions, and if each of those that have all
    other connections waited for one more, they would wait for each other.
    """

    def __init__(self, dsn: str) -> None:
        self.datastore = Datastore(dsn, size=_CONNECTIONS, name="keys")

    def close(self) -> None:
        self.datastore.close()

    def keys(self, customer_id: str) -> Sequence[StoredKey]:
        """All keys of the customer, the newest first."""
        with self.datastore.reading() as cursor:
            rows = cursor.execute(_ALL, (customer_id,), prepare=True).fetchall()
        return [
            StoredKey(
                purpose=row["purpose"],
                wrapped=bytes(row["wrapped"]),
                name=None if row["name"] is None else bytes(row["name"]),
                retired=row["retired"],
                seals_personal=row["seals_personal"],
            )
            for row in rows
        ]

    def get(self, customer_id: str, purpose: str) -> bytes | None:
        """The wrapped key that seals for the purpose."""
        with self.datastore.reading() as cursor:
            row = cursor.execute(_CURRENT, (customer_id, purpose), prepare=True).fetchone()
        return None if row is None else bytes(row["wrapped"])

    def add(
        self, customer_id: str, purpose: str, wrapped: Wrapped, name: bytes | None = None, *, personal: bool = False
    ) -> bytes:
        """Store it if none seals; returns the one that stands, so that concurrent callers agree.

        Raises `KeyDestroyed` for a customer who was erased.
        """
        with self.datastore.transaction_cursor() as cursor:
            cursor.execute(_LOCK, (_LOCK_CLASS, customer_id))
            cursor.execute(_ADD, _made(customer_id, purpose, wrapped, name, personal=personal))
        standing = self.get(customer_id, purpose)
        if standing is None:
            raise KeyDestroyed("The customer's data keys were destroyed while one was made.")
        return standing

    def replace(
        self,
        customer_id: str,
        purpose: str,
        wrapped: Wrapped,
        name: bytes,
        *,
        instead_of: bytes | None,
        personal: bool = False,
    ) -> bool:
        """Have this key seal from now on, and retire the one before it, if that is (still) `instead_of`.

        Never for a customer that has no keys: what was erased stays erased. Tells all processes.
        """
        with self.datastore.transaction_cursor() as cursor:
            cursor.execute(_LOCK, (_LOCK_CLASS, customer_id))
            standing = cursor.execute(_CURRENT, (customer_id, purpose)).fetchone()
            if (None if standing is None else bytes(standing["wrapped"])) != instead_of:
                return False
            if cursor.execute(_ALL, (customer_id,)).fetchone() is None:
                return False
            cursor.execute(_RETIRE, (customer_id, purpose))
            cursor.execute(_ADD, _made(customer_id, purpose, wrapped, name, personal=personal))
            tell(cursor, customer_id)
        return True

    def delete(self, customer_id: str) -> None:
        """Destroy the customer's data keys, and with them everything they sealed; tells all processes."""
        with self.datastore.transaction_cursor() as cursor:
            # A key that is being made at this moment is there, or will not be.
            cursor.execute(_LOCK, (_LOCK_CLASS, customer_id))
            cursor.execute("DELETE FROM data_keys WHERE customer_id = lower(%s)", (customer_id,))
            tell(cursor, customer_id)


def _made(customer_id: str, purpose: str, wrapped: Wrapped, name: bytes | None, *, personal: bool) -> dict[str, Any]:
    return {
        "customer": customer_id,
        "purpose": purpose,
        "wrapped": bytes(wrapped),
        "version": wrapped.version,
        "name": name,
        "personal": personal,
    }


def tell(cursor: Cursor[Any], customer_id: str) -> None:
    """Have all processes forget the customer's unwrapped keys once the transaction commits."""
    cursor.execute(_TELL, (DATA_KEYS, customer_id))
