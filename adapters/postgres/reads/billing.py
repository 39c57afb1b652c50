"""Stripe's customers, and what about them an operator has to look at."""

from datetime import datetime
from typing import Any, Final

from adapters.postgres.event_log import Datastore

_ACCOUNTS: Final = (
    "SELECT a.stripe_customer_id, a.customer_id, a.live, a.stripe_subscription_id, a.status, a.plan, a.cancel_at,"
    " a.acts_at, a.cause, a.is_suspended, a.created_at, a.updated_at FROM billing_accounts a"
    " WHERE a.deleted_at IS NULL AND (%(customer)s::text IS NULL OR a.customer_id = %(customer)s)"
    " ORDER BY a.created_at DESC, a.stripe_customer_id DESC LIMIT %(limit)s"
)
_PROBLEMS: Final = (
    "SELECT *, md5(problem || ' ' || subject) AS key FROM ("
    " SELECT p.problem, p.subject, p.created_at, CASE WHEN p.account LIKE 'evt\\_%%' THEN NULL ELSE p.account END"
    " AS stripe_customer_id, a.customer_id FROM billing_problems p"
    " LEFT JOIN billing_accounts a ON a.stripe_customer_id = p.account WHERE p.solved_at IS NULL"
    # Stripe repeats for three days what was refused. Whatever is still wrong then has been told by newer events.
    "  AND (p.problem <> 'other-mode' OR p.created_at > clock_timestamp() - interval '3 days')"
    " UNION ALL"
    " SELECT 'no-customer', a.stripe_customer_id, a.created_at, a.stripe_customer_id, NULL FROM billing_accounts a"
    " WHERE a.customer_id IS NULL AND a.deleted_at IS NULL"
    " AND a.stripe_subscription_id IS NOT NULL AND a.status NOT IN ('incomplete', 'incomplete_expired', 'canceled')"
    " AND a.created_at < clock_timestamp() - interval '1 hour'"
    ") AS open WHERE (%(customer)s::text IS NULL OR customer_id = %(customer)s)"
    " AND (%(at)s::timestamptz IS NULL OR (created_at, md5(problem || ' ' || subject)) < (%(at)s, %(key)s))"
    " ORDER BY created_at DESC, md5(problem || ' ' || subject) DESC LIMIT %(limit)s"
)


def accounts(datastore: Datastore, customer_id: str | None, *, limit: int) -> list[dict[str, Any]]:
    """Stripe's customers, the newest first; of one customer, if it is given."""
    with datastore.reading() as cursor:
        return cursor.execute(_ACCOUNTS, {"customer": customer_id, "limit": limit}, prepare=True).fetchall()


def problems(
    datastore: Datastore, customer_id: str | None, *, after: tuple[datetime, str] | None = None, limit: int
) -> list[dict[str, Any]]:
    """What is not solved, the newest first; also who pays for nobody, an hour after that was told first."""
    at, key = after or (None, None)
    wanted = {"customer": customer_id, "at": at, "key": key, "limit": limit}
    with datastore.reading() as cursor:
        return cursor.execute(_PROBLEMS, wanted, prepare=True).fetchall()
