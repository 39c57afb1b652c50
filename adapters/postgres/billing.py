"""Customers of Stripe's as transactions find and hold them."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from psycopg import Cursor
from psycopg.rows import DictRow

from application.session import DueAccount

# There may be no row yet, so what is held is the name.
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 17))"
_DUE: Final = (
    "SELECT stripe_customer_id, live FROM ("
    " SELECT a.stripe_customer_id, a.live, coalesce(a.acts_at, a.created_at) AS since FROM billing_accounts a"
    " JOIN customer_profiles p ON p.customer_id = a.customer_id AND p.status = 'ACTIVE'"
    " WHERE a.acts_at <= %(now)s AND NOT a.is_suspended AND a.stripe_customer_id <> ALL(%(besides)s)"
    " UNION ALL"
    " SELECT a.stripe_customer_id, a.live, a.created_at AS since FROM billing_accounts a"
    " JOIN customer_profiles p ON p.customer_id = a.customer_id AND p.status = 'ERASED'"
    " WHERE a.stripe_customer_id <> ALL(%(besides)s)"
    " UNION ALL"
    " SELECT a.stripe_customer_id, a.live, a.created_at AS since FROM billing_accounts a"
    " JOIN customer_profiles p ON p.stripe_customer_id = a.stripe_customer_id AND p.status <> 'ERASED'"
    " WHERE a.customer_id IS NULL AND a.deleted_at IS NULL AND a.stripe_customer_id <> ALL(%(besides)s)"
    " ORDER BY since, stripe_customer_id LIMIT %(limit)s"
    ") AS due WHERE pg_try_advisory_xact_lock(hashtextextended(stripe_customer_id, 17))"
)
_NAMED: Final = (
    "SELECT customer_id FROM customer_profiles WHERE stripe_customer_id = %s AND deleted_at IS NULL"
    " ORDER BY created_at, customer_id LIMIT 20"
)


def lock(cursor: Cursor[DictRow], stripe_customer_id: str) -> None:
    """Hold this customer of Stripe's until the transaction ends."""
    cursor.execute(_LOCK, (stripe_customer_id,), prepare=True)


def lock_due(
    cursor: Cursor[DictRow], now: datetime, limit: int, besides: Collection[str] = frozenset()
) -> Sequence[DueAccount]:
    """Hold accounts whose access ends by `now`, whose customer was erased, or whom one names; see `Session`."""
    wanted = {"now": now, "limit": limit, "besides": list(besides)}
    found = cursor.execute(_DUE, wanted, prepare=True).fetchall()
    return [DueAccount(row["stripe_customer_id"], row["live"]) for row in found]


def onboarded_with(cursor: Cursor[DictRow], stripe_customer_id: str) -> Sequence[str]:
    """The customers that name this customer of Stripe's, the oldest first; at most 20."""
    found = cursor.execute(_NAMED, (stripe_customer_id,), prepare=True).fetchall()
    return [row["customer_id"] for row in found]
