"""What a rotation of keys finds and changes: data keys by their wrapping, by their age, and what they have sealed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg.sql import SQL

from adapters.postgres.data_keys import tell
from adapters.postgres.event_log import Datastore
from application.ports import Purpose, Wrapped
from application.resealing import Sealed

SERVICE: Final = ":%"
"""Ids that no customer can have: keys of the service itself."""

UNKNOWN: Final = "(not recorded)"
"""In the place of a version: the key was wrapped before versions were kept."""

_WRAPPED: Final = (
    "SELECT customer_id, purpose, created_at, wrapped FROM data_keys"
    " WHERE version IS DISTINCT FROM CASE purpose WHEN 'api-keys' THEN %(api_keys)s ELSE %(others)s END"
    " AND (customer_id, purpose, created_at) > (%(customer)s, %(purpose)s, %(at)s)"
    " ORDER BY customer_id, purpose, created_at LIMIT %(limit)s"
)
_REWRAP: Final = (
    "UPDATE data_keys SET wrapped = %s, version = %s, name = coalesce(name, %s)"
    " WHERE customer_id = %s AND purpose = %s AND created_at = %s AND wrapped = %s"
)
_BY_VERSION: Final = (
    "SELECT coalesce(version, %s) AS version, count(*) AS keys, min(created_at) AS oldest FROM data_keys"
    " GROUP BY 1 ORDER BY 1"
)
_BY_GROUP: Final = (
    "SELECT purpose, count(*) FILTER (WHERE retired_at IS NULL) AS sealing,"
    " min(created_at) FILTER (WHERE retired_at IS NULL) AS oldest_sealing,"
    " count(*) FILTER (WHERE retired_at IS NOT NULL AND seals_personal) AS kept_for_the_log,"
    " count(*) FILTER (WHERE retired_at IS NOT NULL AND NOT seals_personal) AS to_be_destroyed"
    " FROM data_keys GROUP BY 1 ORDER BY 1"
)
# A key without a name is the only one of its customer and purpose, or the first: nothing was sealed under another.
_STALE: Final = SQL(
    "SELECT s.* FROM ("
    "  SELECT 'api-key' AS purpose, 'api-keys' AS key, customer_id, api_key_id AS record_id,"
    "  encrypted_api_key AS sealed FROM customer_api_keys"
    "  WHERE is_active AND deleted_at IS NULL AND expires_at > clock_timestamp()"
    "  UNION ALL SELECT 'credential', 'credentials', customer_id, credential_id, encrypted_credentials"
    "  FROM customer_cloud_credentials WHERE is_active AND deleted_at IS NULL"
    "  UNION ALL SELECT 'webhook', 'credentials', customer_id, endpoint_id, encrypted_secret"
    "  FROM customer_webhook_endpoints WHERE is_active AND deleted_at IS NULL) AS s"
    " JOIN data_keys k ON k.customer_id = lower(s.customer_id) AND k.purpose = s.key AND k.retired_at IS NULL"
    " WHERE k.name IS NOT NULL AND substring(s.sealed FROM 2 FOR 4) <> k.name"
)
_STALE_OF: Final = SQL("SELECT purpose, record_id, sealed FROM ({}) AS stale WHERE customer_id = %s").format(_STALE)
_STALE_COUNT: Final = SQL("SELECT purpose, count(*) AS secrets FROM ({}) AS stale GROUP BY 1 ORDER BY 1").format(_STALE)
# Customers by the id that they chose: that is what their secrets are bound to.
_TO_RENEW: Final = (
    "SELECT p.customer_id, array_agg(k.purpose) AS purposes FROM data_keys k"
    " JOIN customer_profiles p ON lower(p.customer_id) = k.customer_id"
    " WHERE k.retired_at IS NULL AND k.created_at < %(before)s"
    " AND (%(customer)s::text IS NULL OR p.customer_id = %(customer)s) GROUP BY 1 ORDER BY 1"
)
_UNFINISHED: Final = SQL(
    "SELECT p.customer_id FROM customer_profiles p WHERE (%(customer)s::text IS NULL OR p.customer_id = %(customer)s)"
    " AND (EXISTS (SELECT FROM data_keys k WHERE k.customer_id = lower(p.customer_id) AND k.retired_at IS NOT NULL"
    "   AND NOT k.seals_personal) OR p.customer_id IN (SELECT customer_id FROM ({}) AS stale)) ORDER BY 1"
).format(_STALE)
_DESTROY: Final = SQL(
    "DELETE FROM data_keys k WHERE k.customer_id = lower(%(customer)s) AND NOT k.seals_personal"
    " AND k.retired_at < clock_timestamp() - %(after)s"
    " AND NOT EXISTS (SELECT FROM ({}) AS stale WHERE customer_id = %(customer)s AND key = k.purpose)"
).format(_STALE)
_WAITING: Final = "SELECT count(*) AS keys FROM data_keys WHERE retired_at IS NOT NULL AND NOT seals_personal"


@dataclass(frozen=True, slots=True)
class Key:
    """A wrapped data key, and which one it is."""

    customer_id: str
    purpose: str
    created_at: datetime
    wrapped: bytes = field(repr=False)


def wrapped_otherwise(datastore: Datastore, primary: Mapping[str, str], after: Key | None, limit: int) -> Sequence[Key]:
    """Data keys that are not wrapped under the primary version of their wrapping key, in the order of their ids.

    `primary` names the versions: of `api-keys`, and of all `others`.
    """
    place = (
        ("", "", datetime.min.replace(tzinfo=UTC))
        if after is None
        else (after.customer_id, after.purpose, after.created_at)
    )
    wanted = {**primary, "customer": place[0], "purpose": place[1], "at": place[2], "limit": limit}
    with datastore.reading() as cursor:
        rows = cursor.execute(_WRAPPED, wanted).fetchall()
    return [Key(row["customer_id"], row["purpose"], row["created_at"], bytes(row["wrapped"])) for row in rows]


def keep_rewrapped(datastore: Datastore, key: Key, wrapped: Wrapped, name: bytes | None) -> bool:
    """Put the key's new wrapping in the place of the one that was read; False when it is another one by now."""
    place = (key.customer_id, key.purpose, key.created_at, key.wrapped)
    with datastore.reading() as cursor:
        return cursor.execute(_REWRAP, (bytes(wrapped), wrapped.version, name, *place)).rowcount == 1


def by_version(datastore: Datastore) -> list[dict[str, Any]]:
    """How many data keys each version of the wrapping keys has wrapped."""
    with datastore.reading() as cursor:
        return cursor.execute(_BY_VERSION, (UNKNOWN,)).fetchall()


def by_group(datastore: Datastore) -> list[dict[str, Any]]:
    """How many data keys there are, by what they guard."""
    with datastore.reading() as cursor:
        return cursor.execute(_BY_GROUP).fetchall()


def to_reseal(datastore: Datastore) -> list[dict[str, Any]]:
    """How many secrets that are in use are sealed under a data key that does not seal any more."""
    with datastore.reading() as cursor:
        return cursor.execute(_STALE_COUNT).fetchall()


def stale(datastore: Datastore, customer_id: str) -> Sequence[Sealed]:
    """Those of one customer."""
    with datastore.reading() as cursor:
        rows = cursor.execute(_STALE_OF, (customer_id,)).fetchall()
    return [Sealed(row["record_id"], Purpose(row["purpose"]), bytes(row["sealed"])) for row in rows]


def to_renew(datastore: Datastore, before: datetime, customer_id: str | None) -> Sequence[tuple[str, list[str]]]:
    """Customers with data keys that seal and were made before this, and what these guard."""
    with datastore.reading() as cursor:
        rows = cursor.execute(_TO_RENEW, {"before": before, "customer": customer_id}).fetchall()
    return [(row["customer_id"], row["purposes"]) for row in rows]


def unfinished(datastore: Datastore, customer_id: str | None) -> Sequence[str]:
    """Customers with secrets to seal again, or retired keys to destroy."""
    with datastore.reading() as cursor:
        return [row["customer_id"] for row in cursor.execute(_UNFINISHED, {"customer": customer_id})]


def destroy_retired(datastore: Datastore, customer_id: str, after: timedelta) -> int:
    """Destroy retired keys under which nothing in use is sealed, and that were retired so long ago; how many."""
    with datastore.transaction_cursor() as cursor:
        gone = cursor.execute(_DESTROY, {"customer": customer_id, "after": after}).rowcount
        if gone:
            tell(cursor, customer_id)
    return gone


def waiting(datastore: Datastore) -> int:
    """How many retired keys are still to be destroyed."""
    with datastore.reading() as cursor:
        row = cursor.execute(_WAITING).fetchone()
    return row["keys"] if row else 0
