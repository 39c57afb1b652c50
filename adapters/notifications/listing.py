"""Notifications as they are looked at: newest first, each with what became of it at its receivers."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Cursor
from psycopg.sql import SQL

from adapters.notifications.outbox import MAIL
from adapters.postgres.event_log import Reads
from domain.notification import DeliveryState, Kind

_LIST: Final = SQL(
    "SELECT n.notification_id, n.customer_id, n.kind, n.about, n.occurred_at, n.created_at,"
    " coalesce(d.deliveries, '[]') AS deliveries FROM notifications n LEFT JOIN LATERAL ("
    "  SELECT jsonb_agg(jsonb_build_object("
    "  'by', CASE WHEN receiver = %(mail)s THEN 'mail' ELSE 'webhook' END,"
    "  'endpoint_id', CASE WHEN receiver = %(mail)s THEN NULL ELSE receiver END, 'state', state, 'attempts', attempts,"
    "  'last_error', last_error, 'next_attempt_at', CASE WHEN state = 'PENDING' THEN due_at END, 'ended_at', ended_at)"
    "  ORDER BY receiver = %(mail)s DESC, receiver) AS deliveries FROM notification_deliveries"
    "  WHERE notification_id = n.notification_id) d ON true"
    " WHERE (%(customer)s::text IS NULL OR n.customer_id = %(customer)s)"
    " AND (%(kind)s::text IS NULL OR n.kind = %(kind)s)"
    " AND (%(id)s::uuid IS NULL OR n.notification_id = %(id)s)"
    " AND (%(state)s::text IS NULL OR EXISTS (SELECT FROM notification_deliveries s"
    "  WHERE s.notification_id = n.notification_id AND s.state = %(state)s))"
    " AND (%(at)s::timestamptz IS NULL OR (n.created_at, n.notification_id) < (%(at)s, %(after)s::uuid))"
    " ORDER BY n.created_at DESC, n.notification_id DESC LIMIT %(limit)s"
)


def newest_first(
    reads: Reads,
    *,
    customer_id: str | None = None,
    kind: Kind | None = None,
    state: DeliveryState | None = None,
    notification_id: UUID | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """Notifications with their deliveries, of one customer or of all, that have a delivery in that state."""
    at, key = after or (None, None)
    values = {
        "mail": MAIL,
        "customer": customer_id,
        "kind": kind.value if kind else None,
        "state": state.value if state else None,
        "id": notification_id,
        "at": at,
        "after": key,
        "limit": limit,
    }
    with reads.reading() as cursor:
        return cursor.execute(_LIST, values).fetchall()


def is_endpoint(cursor: Cursor[Any], customer_id: str, endpoint_id: str) -> bool:
    """Whether the customer has that endpoint."""
    found = cursor.execute(
        "SELECT FROM customer_webhook_endpoints WHERE endpoint_id = %s AND customer_id = %s AND deleted_at IS NULL",
        (endpoint_id, customer_id),
    ).fetchone()
    return found is not None
