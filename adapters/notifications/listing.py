"""Notifications as they are looked at: newest first, each with what became of it at its receivers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Cursor
from psycopg.sql import SQL, Composable, Literal

from adapters.notifications.outbox import MAIL
from adapters.postgres.event_log import Reads
from domain.notification import DeliveryState, Kind

_LIST: Final = SQL(
    "SELECT n.notification_id, n.customer_id, n.kind, n.about, n.occurred_at, n.created_at,"
    " coalesce(d.deliveries, '[]') AS deliveries FROM (SELECT * FROM notifications WHERE {}"
    "  ORDER BY created_at DESC, notification_id DESC LIMIT %(limit)s) n LEFT JOIN LATERAL ("
    "  SELECT jsonb_agg(jsonb_build_object("
    "  'by', CASE WHEN receiver = %(mail)s THEN 'mail' ELSE 'webhook' END,"
    "  'endpoint_id', CASE WHEN receiver = %(mail)s THEN NULL ELSE receiver END, 'state', state, 'attempts', attempts,"
    "  'last_error', last_error, 'next_attempt_at', CASE WHEN state = 'PENDING' THEN due_at END, 'ended_at', ended_at)"
    "  ORDER BY receiver = %(mail)s DESC, receiver) AS deliveries FROM notification_deliveries"
    "  WHERE notification_id = n.notification_id) d ON true"
    " ORDER BY n.created_at DESC, n.notification_id DESC"
)
_IN_STATE: Final = SQL("notification_id IN (SELECT notification_id FROM notification_deliveries WHERE state = {})")
_CONDITIONS: Final = {
    "customer": SQL("customer_id = %(customer)s"),
    "kind": SQL("kind = %(kind)s"),
    "id": SQL("notification_id = %(id)s"),
    "at": SQL("(created_at, notification_id) < (%(at)s, %(after)s)"),
}


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
        return cursor.execute(_LIST.format(_where(values)), values).fetchall()


def _where(values: Mapping[str, Any]) -> Composable:
    # Only what is asked for, and the state as a constant: there are indexes of single states.
    asked: list[Composable] = [condition for name, condition in _CONDITIONS.items() if values[name] is not None]
    if values["state"] is not None:
        asked.append(_IN_STATE.format(Literal(values["state"])))
    return SQL(" AND ").join(asked) if asked else SQL("true")


def is_endpoint(cursor: Cursor[Any], customer_id: str, endpoint_id: str) -> bool:
    """Whether the customer has that endpoint."""
    found = cursor.execute(
        "SELECT FROM customer_webhook_endpoints WHERE endpoint_id = %s AND customer_id = %s AND deleted_at IS NULL",
        (endpoint_id, customer_id),
    ).fetchone()
    return found is not None
