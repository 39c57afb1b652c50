"""Keys that are about to end: an occasion that no event makes, so it is looked for now and then."""

from datetime import datetime, timedelta
from typing import Final

from adapters.notifications import outbox
from adapters.postgres.event_log import Datastore
from domain.customer import KEY_WARNING
from domain.notification import Kind, Occasion

EARLY: Final = KEY_WARNING
LATE: Final = timedelta(days=3)
"""How long before a key's end its customer is told, and told again."""

_EXPIRING: Final = (
    "SELECT k.api_key_id, k.customer_id, k.last4, k.expires_at FROM customer_api_keys k"
    " JOIN customer_profiles p USING (customer_id)"
    " WHERE k.is_active AND k.revoked_at IS NULL AND k.deleted_at IS NULL AND p.status = 'ACTIVE'"
    " AND k.expires_at > %(now)s AND k.expires_at <= %(now)s + %(early)s"
    # Who has one of the same name that lasts longer has seen to it.
    " AND NOT EXISTS (SELECT FROM customer_api_keys o WHERE o.customer_id = k.customer_id AND o.is_active"
    "  AND o.name IS NOT DISTINCT FROM k.name"
    "  AND o.revoked_at IS NULL AND o.deleted_at IS NULL AND o.expires_at > k.expires_at)"
    " AND NOT EXISTS (SELECT FROM notifications n WHERE n.dedupe_key = %(kind)s || '/' || k.customer_id || '/'"
    "  || k.api_key_id || CASE WHEN k.expires_at <= %(now)s + %(late)s THEN '/late' ELSE '/early' END)"
    " LIMIT %(limit)s"
)


def add_expiring_keys(datastore: Datastore, now: datetime, *, limit: int = 1000) -> int:
    """Tell customers whose last key ends soon, once early and once late; how many deliveries that makes.

    At most `limit` keys at once. May be called by several processes at the same time. Raises `Away`.
    """
    values = {"now": now, "early": EARLY, "late": LATE, "kind": Kind.KEY_EXPIRING.value, "limit": limit}
    with datastore.reading() as cursor:
        keys = cursor.execute(_EXPIRING, values).fetchall()
    told = [
        Occasion(
            kind=Kind.KEY_EXPIRING,
            customer_id=key["customer_id"],
            name=f"{key['api_key_id']}/{'late' if key['expires_at'] <= now + LATE else 'early'}",
            occurred_at=now,
            about={"api_key_id": key["api_key_id"], "last4": key["last4"], "expires_at": key["expires_at"].isoformat()},
        )
        for key in keys
    ]
    if not told:
        return 0
    with datastore.transaction_cursor() as cursor:
        return outbox.add(cursor, told)
