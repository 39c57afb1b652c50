"""API keys: whose a key is, what it may be used for, and when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from adapters.postgres.event_log import Reads

# A key that has expired is found all the same: whoever keeps what was found compares its end at every use.
_HOLDER: Final = (
    "SELECT k.customer_id, k.api_key_id, k.scopes, k.expires_at, p.status"
    " FROM customer_api_keys k JOIN customer_profiles p USING (customer_id)"
    " WHERE k.api_key_hash = %s AND k.is_active AND k.revoked_at IS NULL AND k.deleted_at IS NULL"
    " AND p.deleted_at IS NULL AND p.status <> 'ERASED'"
)
_LASTING: Final = (
    "SELECT DISTINCT ON (coalesce(name, '')) api_key_id, coalesce(name, '') AS name, last4, created_at, expires_at"
    " FROM customer_api_keys WHERE customer_id = %s AND is_active AND revoked_at IS NULL AND deleted_at IS NULL"
    " AND expires_at > %s"
    " ORDER BY coalesce(name, ''), expires_at DESC, created_at DESC"
)
# A key that another one of its name outlives was replaced: nobody needs to be told of its end.
_EXPIRING: Final = (
    "SELECT k.customer_id, k.api_key_id, coalesce(k.name, '') AS name, k.last4, k.expires_at FROM customer_api_keys k"
    " JOIN customer_profiles p USING (customer_id)"
    " WHERE k.is_active AND k.revoked_at IS NULL AND k.deleted_at IS NULL"
    " AND k.expires_at > %(now)s AND k.expires_at <= %(until)s"
    " AND (k.expires_at, k.api_key_id) > (%(after_at)s, %(after_id)s)"
    " AND p.deleted_at IS NULL AND p.status <> 'ERASED'"
    " AND NOT EXISTS (SELECT 1 FROM customer_api_keys o WHERE o.customer_id = k.customer_id"
    "  AND coalesce(o.name, '') = coalesce(k.name, '')"
    "  AND o.is_active AND o.revoked_at IS NULL AND o.deleted_at IS NULL"
    "  AND (o.expires_at, o.created_at, o.api_key_id) > (k.expires_at, k.created_at, k.api_key_id))"
    " ORDER BY k.expires_at, k.api_key_id LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key it is; `scopes` are what it may be used for, None for everything. It works before `expires_at`."""

    customer_id: str
    api_key_id: str
    status: str
    scopes: frozenset[str] | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ExpiringKey:
    """A key that ends soon, and that no other one replaces."""

    customer_id: str
    api_key_id: str
    name: str
    last4: str
    expires_at: datetime


def holder(reads: Reads, key_hash: str) -> Holder | None:
    """Who holds the key with that SHA-256 (in hex), if it was not revoked; it may have expired."""
    with reads.reading() as cursor:
        row = cursor.execute(_HOLDER, (key_hash,), prepare=True).fetchone()
    if row is None:
        return None
    scopes = None if row["scopes"] is None else frozenset(row["scopes"])
    return Holder(row["customer_id"], row["api_key_id"], row["status"], scopes, row["expires_at"])


def lasting(reads: Reads, customer_id: str, now: datetime) -> list[dict[str, Any]]:
    """Of the keys of each name that work at `now`, the one that lasts longest."""
    with reads.reading() as cursor:
        return cursor.execute(_LASTING, (customer_id, now), prepare=True).fetchall()


def expiring(
    reads: Reads, now: datetime, within: timedelta, *, after: ExpiringKey | None = None, limit: int = 500
) -> Sequence[ExpiringKey]:
    """The keys that end after `now` and no later than `within` from then, the first to end first.

    Goes on behind `after`, the last one of the page before; a page shorter than `limit` is the last.
    """
    place = {"after_at": after.expires_at if after else now, "after_id": after.api_key_id if after else ""}
    with reads.reading() as cursor:
        found = cursor.execute(
            _EXPIRING, {"now": now, "until": now + within, "limit": limit, **place}, prepare=True
        ).fetchall()
    return [ExpiringKey(**row) for row in found]
