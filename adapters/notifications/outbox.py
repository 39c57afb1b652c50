"""The outbox: one row for each occasion to tell a customer something, and one for each receiver of it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from psycopg import Cursor

from adapters.postgres.channels import NOTIFICATIONS
from adapters.postgres.checkpoints import PostgresCheckpoints, move_on
from adapters.postgres.event_log import Datastore
from adapters.postgres.json_rows import json_of
from domain.notification import POSTED, STALE_AFTER, Occasion
from projections.follow import NoRows, Placed
from projections.notifications import ends, occasions

MAIL: Final = "mail"
"""The receiver of what is mailed. Every other receiver is the id of an endpoint."""

# One statement: a row that is there already gets no receivers a second time.
_ADD: Final = (
    "WITH told AS (SELECT * FROM json_to_recordset(%(occasions)s) AS o(notification_id uuid, dedupe_key text,"
    "  customer_id text, kind text, about jsonb, occurred_at timestamptz)),"
    " added AS (INSERT INTO notifications (notification_id, dedupe_key, customer_id, kind, about, occurred_at)"
    "  SELECT * FROM told ON CONFLICT (dedupe_key) DO NOTHING RETURNING notification_id, customer_id, kind),"
    " received AS ("
    "  SELECT notification_id, %(mail)s::text AS receiver, customer_id FROM added WHERE %(receiver)s::text IS NULL"
    "  UNION ALL SELECT a.notification_id, e.endpoint_id, a.customer_id FROM added a"
    "   JOIN customer_webhook_endpoints e USING (customer_id) WHERE e.is_active AND e.deleted_at IS NULL"
    "   AND e.kinds ? a.kind AND a.kind = ANY(%(posted)s) AND %(receiver)s::text IS NULL"
    "  UNION ALL SELECT notification_id, %(receiver)s, customer_id FROM added WHERE %(receiver)s::text IS NOT NULL)"
    " INSERT INTO notification_deliveries (notification_id, receiver, customer_id) SELECT * FROM received"
)
_FORGET: Final = "DELETE FROM notifications WHERE customer_id = ANY(%s)"
_WAKE: Final = "SELECT pg_notify(%s, '')"


def add(cursor: Cursor[Any], told: Sequence[Occasion], *, receiver: str | None = None) -> int:
    """Add occasions, each with all of its receivers or the given one; how many deliveries that makes.

    An occasion that is there already stays as it is. Deliverers are woken when the transaction commits.
    """
    if not told:
        return 0
    rows = [
        {
            "notification_id": occasion.notification_id,
            "dedupe_key": occasion.dedupe_key,
            "customer_id": occasion.customer_id,
            "kind": occasion.kind,
            "about": dict(occasion.about),
            "occurred_at": occasion.occurred_at,
        }
        for occasion in told
    ]
    values = {"occasions": json_of(rows), "mail": MAIL, "posted": list(POSTED), "receiver": receiver}
    cursor.execute(_ADD, values, prepare=True)
    added = cursor.rowcount
    if added:
        cursor.execute(_WAKE, (NOTIFICATIONS,), prepare=True)
    return added


class Outbox:
    """Follows the log: what is to be told and how far it has come are stored in one transaction.

    It handles a page and then advances over that page, as `catch_up` does. What happened longer than `STALE_AFTER` ago
    is passed over, and what was added once is not added again: reading the whole log anew sends nothing.
    """

    def __init__(self, datastore: Datastore, now: Callable[[], datetime]) -> None:
        self._datastore = datastore
        self._now = now
        self._told: list[Occasion] = []
        self._gone: list[str] = []

    def handle(self, events: Sequence[Placed]) -> None:
        """Find what these events are occasions for. Nothing is stored yet."""
        oldest = self._now() - STALE_AFTER
        told: list[Occasion] = []
        gone: list[str] = []
        for placed in events:
            try:
                found = list(occasions(placed.event, placed.at))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise NoRows from error
            told += [occasion for occasion in found if occasion.occurred_at > oldest]
            if ends(placed.event):
                gone.append(placed.at.customer_id)
        self._told = [occasion for occasion in told if occasion.customer_id not in gone]
        self._gone = gone

    def position(self, projection: str) -> int:
        """Where the projection stands."""
        return PostgresCheckpoints(self._datastore).position(projection)

    def advance(self, projection: str, expected: int, to: int) -> None:
        """Store what was found and move on from `expected`, or neither; raises `Overtaken` as checkpoints do."""
        with self._datastore.transaction_cursor() as cursor:
            move_on(cursor, projection, expected, to)
            if self._gone:
                cursor.execute(_FORGET, (self._gone,))
            add(cursor, self._told)
        self._told, self._gone = [], []
