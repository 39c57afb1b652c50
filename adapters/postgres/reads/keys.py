"""API keys: whose a key is, and when it ends."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from adapters.postgres.event_log import Datastore

_HOLDER: Final = (
    "SELECT k.customer_id, k.api_key_id, k.scopes, p.status"
    " FROM customer_api_keys k JOIN customer_profiles p USING (customer_id)"
    " WHERE k.api_key_hash = %s AND k.is_active AND k.revoked_at IS NULL AND k.deleted_at IS NULL"
    " AND k.expires_at > %s AND p.deleted_at IS NULL"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key it is."""

    customer_id: str
    api_key_id: str
    status: str
    scopes: frozenset[str] | None


def holder(datastore: Datastore, key_hash: str, now: datetime) -> Holder | None:
    """Who holds the key with that SHA-256 (in hex), if it works at `now`."""
    with datastore.reading() as cursor:
        row = cursor.execute(_HOLDER, (key_hash, now), prepare=True).fetchone()
    if row is None:
        return None
    scopes = None if row["scopes"] is None else frozenset(row["scopes"])
    return Holder(row["customer_id"], row["api_key_id"], row["status"], scopes)


def active(datastore: Datastore, customer_id: str, now: datetime) -> list[dict[str, Any]]:
    """The keys of a customer that work at `now`, the one that lasts longest first."""
    with datastore.reading() as cursor:
        return cursor.execute(
            "SELECT api_key_id, last4, created_at, expires_at FROM customer_api_keys WHERE customer_id = %s"
            " AND is_active AND deleted_at IS NULL AND expires_at > %s ORDER BY expires_at DESC, created_at DESC",
            (customer_id, now),
            prepare=True,
        ).fetchall()
