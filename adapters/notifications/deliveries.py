"""Deliveries: claimed by one process for a while, tried, and settled; replayed by hand where they were given up."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.sql import SQL

from adapters.notifications.outbox import MAIL
from adapters.postgres.channels import NOTIFICATIONS
from adapters.postgres.event_log import Datastore
from domain.notification import KEPT_FOR, DeliveryState, Kind
from domain.refusals import Conflict, NotFound

LEASE: Final = timedelta(minutes=2)
"""For how long one process has a delivery: longer than any attempt takes. After that another one repeats it."""

# Who claims a delivery moves its instant to the end of the lease: nobody else finds it due until then.
_TAKE: Final = SQL(
    " UPDATE notification_deliveries d SET attempts = d.attempts + 1, claim = %(claim)s,"
    " due_at = clock_timestamp() + %(lease)s FROM due JOIN notifications n USING (notification_id)"
    " WHERE d.notification_id = due.notification_id AND d.receiver = due.receiver"
    " RETURNING d.notification_id, d.receiver, d.customer_id, d.attempts, d.claim, n.kind, n.about, n.occurred_at"
)
_CLAIM_MAIL: Final = (
    SQL(
        "WITH due AS MATERIALIZED (SELECT notification_id, receiver FROM notification_deliveries"
        "  WHERE state = 'PENDING' AND receiver = %(mail)s AND due_at <= statement_timestamp()"
        "  AND customer_id <> ALL(%(full)s)"
        "  ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)"
    )
    + _TAKE
).as_bytes(None)
# From endpoint to endpoint, whose oldest deliveries are compared: what one of them has heaped up is not read.
_CLAIM_WEBHOOK: Final = (
    SQL(
        "WITH RECURSIVE waiting AS ("
        "  SELECT min(receiver) AS receiver FROM notification_deliveries"
        "   WHERE state = 'PENDING' AND receiver <> %(mail)s"
        "  UNION ALL SELECT (SELECT min(d.receiver) FROM notification_deliveries d"
        "   WHERE d.state = 'PENDING' AND d.receiver > w.receiver AND d.receiver <> %(mail)s)"
        "  FROM waiting w WHERE w.receiver IS NOT NULL),"
        " oldest AS MATERIALIZED (SELECT d.* FROM waiting w CROSS JOIN LATERAL ("
        "  SELECT receiver, due_at, customer_id FROM notification_deliveries WHERE state = 'PENDING'"
        "   AND receiver = w.receiver ORDER BY due_at LIMIT 1) d"
        "  WHERE d.receiver <> ALL(%(busy)s) AND d.customer_id <> ALL(%(full)s) AND d.due_at <= statement_timestamp()),"
        " due AS MATERIALIZED (SELECT d.* FROM (SELECT receiver FROM oldest ORDER BY due_at) o CROSS JOIN LATERAL ("
        "  SELECT notification_id, receiver FROM notification_deliveries WHERE state = 'PENDING'"
        "   AND receiver = o.receiver AND due_at <= statement_timestamp()"
        "   ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED) d LIMIT 1)"
    )
    + _TAKE
).as_bytes(None)
_SETTLE: Final = (
    "UPDATE notification_deliveries SET state = %(state)s, last_error = %(error)s, claim = NULL,"
    " due_at = CASE WHEN %(wait)s::interval IS NULL THEN due_at ELSE clock_timestamp() + %(wait)s END,"
    " ended_at = CASE WHEN %(state)s = 'PENDING' THEN NULL ELSE clock_timestamp() END"
    " WHERE notification_id = %(id)s AND receiver = %(receiver)s AND claim = %(claim)s"
)
_REPLAY: Final = (
    "UPDATE notification_deliveries SET state = 'PENDING', attempts = 0, due_at = clock_timestamp(), ended_at = NULL"
    " WHERE notification_id = %s AND state = 'DEAD'"
)
_PURGE: Final = (
    "DELETE FROM notifications WHERE notification_id IN (SELECT notification_id FROM notifications n"
    " WHERE created_at < %s AND NOT EXISTS (SELECT FROM notification_deliveries d"
    "  WHERE d.notification_id = n.notification_id AND d.state = 'PENDING') ORDER BY created_at LIMIT %s)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery that this process has for a while; `attempts` counts this one."""

    notification_id: UUID
    receiver: str
    customer_id: str
    attempts: int
    claim: UUID
    kind: Kind
    about: Mapping[str, Any]
    occurred_at: datetime


def claim(
    datastore: Datastore,
    *,
    mailed: bool,
    busy: Collection[str] = (),
    full: Collection[str] = (),
    lease: timedelta = LEASE,
) -> Claimed | None:
    """Claim the delivery that has been due for longest, by mail or to an endpoint that is not `busy`; None if none is.

    Those of customers that are `full` are left alone. Of several claimants at the same moment each gets another one.
    How long it takes follows how many endpoints wait for something, not how much waits for each.
    """
    values = {"claim": uuid4(), "lease": lease, "mail": MAIL, "busy": list(busy), "full": list(full)}
    with datastore.reading() as cursor:
        row = cursor.execute(_CLAIM_MAIL if mailed else _CLAIM_WEBHOOK, values, prepare=True).fetchone()
    return None if row is None else Claimed(**{**row, "kind": Kind(row["kind"])})


def settle(
    datastore: Datastore,
    claimed: Claimed,
    state: DeliveryState,
    error: str | None = None,
    wait: timedelta | None = None,
) -> bool:
    """Say what came of an attempt, and for how long to wait before the next; False when the claim had ended.

    `error` is a sentence without anything that the receiver, or the database, has said.
    """
    values = {
        "state": state.value,
        "error": error,
        "wait": wait,
        "id": claimed.notification_id,
        "receiver": claimed.receiver,
        "claim": claimed.claim,
    }
    with datastore.reading() as cursor:
        return cursor.execute(_SETTLE, values, prepare=True).rowcount > 0


def replay(datastore: Datastore, notification_id: UUID) -> int:
    """Have the deliveries of a notification that were given up tried again from the beginning; how many they are.

    Raises `NotFound`, and `Conflict` when none was given up.
    """
    with datastore.transaction_cursor() as cursor:
        if cursor.execute(_REPLAY, (notification_id,)).rowcount:
            replayed = cursor.rowcount
            cursor.execute("SELECT pg_notify(%s, '')", (NOTIFICATIONS,))
            return replayed
        there = cursor.execute("SELECT FROM notifications WHERE notification_id = %s", (notification_id,)).fetchone()
    if there is None:
        raise NotFound("No such notification.")
    raise Conflict("No delivery of this notification was given up: there is nothing to replay.")


def purge(datastore: Datastore, now: datetime, *, most: int = 10_000) -> int:
    """Delete what was told more than `KEPT_FOR` ago, at most so many notifications; how many they were."""
    with datastore.reading() as cursor:
        return cursor.execute(_PURGE, (now - KEPT_FOR, most)).rowcount


def next_due(datastore: Datastore, *, mailed: bool) -> float | None:
    """In how many seconds the next mail or webhook is due, negative when one is overdue; None if none waits."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 AS seconds"
            " FROM notification_deliveries WHERE state = 'PENDING' AND (receiver = %s) = %s",
            (MAIL, mailed),
            prepare=True,
        ).fetchone()
    return row["seconds"] if row else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many deliveries wait, were given up, and were given up within the last day."""

    pending: int
    dead: int
    dead_today: int


def counts_on(connection: Connection[DictRow]) -> Counts:
    """The counts now. They follow two small indexes, not how much was ever delivered."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM notification_deliveries WHERE state = 'PENDING') AS pending, count(*) AS dead,"
        " count(*) FILTER (WHERE ended_at > clock_timestamp() - interval '1 day') AS dead_today"
        " FROM notification_deliveries WHERE state = 'DEAD'"
    ).fetchone()
    return Counts(**row) if row else Counts(pending=0, dead=0, dead_today=0)


def counts(datastore: Datastore) -> Counts:
    """The counts now; raises `Away`."""
    with datastore.reading() as cursor:
        return counts_on(cursor.connection)
