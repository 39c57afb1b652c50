"""Customers with their subscriptions and usage."""

from datetime import date, datetime
from typing import Any, Final

from psycopg.sql import SQL

from adapters.postgres.event_log import Datastore, Reads

_PROFILE: Final = SQL(
    "SELECT p.customer_id, p.tenant_id, p.tenant_dataset_id, p.company_name, p.admin_email, p.status,"
    " p.subscription_plan, p.stripe_customer_id, p.dataset_created, p.schedules_paused, p.created_at, p.updated_at,"
    " s.plan_name, s.status AS subscription_status, s.max_team_members, s.max_providers, s.max_pipelines_per_day,"
    " s.max_pipelines_per_month, s.max_concurrent_pipelines"
    " FROM customer_profiles p JOIN customer_subscriptions s USING (customer_id)"
)
_USAGE: Final = (
    "SELECT u.customer_id, u.usage_date, u.pipelines_run_today, u.pipelines_succeeded_today,"
    " u.pipelines_failed_today, u.pipelines_run_month, u.concurrent_pipelines_running, u.last_updated,"
    " s.max_pipelines_per_day AS daily_limit, s.max_pipelines_per_month AS monthly_limit,"
    " s.max_concurrent_pipelines AS concurrent_limit"
    " FROM customer_usage u JOIN customer_subscriptions s USING (customer_id)"
    " WHERE u.customer_id = %s ORDER BY u.usage_date DESC LIMIT 1"
)


def exists(datastore: Datastore, customer_id: str) -> bool:
    """Whether there is a customer of exactly that id."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT 1 FROM customer_profiles WHERE customer_id = %s AND deleted_at IS NULL",
            (customer_id,),
            prepare=True,
        ).fetchone()
    return found is not None


def profile(reads: Reads, customer_id: str) -> dict[str, Any] | None:
    """One customer with its plan and limits."""
    with reads.reading() as cursor:
        return cursor.execute(
            _PROFILE + SQL(" WHERE p.customer_id = %s AND p.deleted_at IS NULL"), (customer_id,), prepare=True
        ).fetchone()


def profiles(
    datastore: Datastore, *, status: str | None, after: tuple[datetime, str] | None, limit: int
) -> list[dict[str, Any]]:
    """Customers with their plans and limits, newest first."""
    created_at, key = after or (None, None)
    with datastore.reading() as cursor:
        return cursor.execute(
            _PROFILE
            + SQL(
                " WHERE p.deleted_at IS NULL AND (%(status)s::text IS NULL OR p.status = %(status)s)"
                " AND (%(at)s::timestamptz IS NULL OR (p.created_at, p.customer_id) < (%(at)s, %(key)s))"
                " ORDER BY p.created_at DESC, p.customer_id DESC LIMIT %(limit)s"
            ),
            {"status": status, "at": created_at, "key": key, "limit": limit},
            prepare=True,
        ).fetchall()


def usage(reads: Reads, customer_id: str) -> dict[str, Any] | None:
    """The newest day on which something was counted, with the limits that are in force now."""
    with reads.reading() as cursor:
        return cursor.execute(_USAGE, (customer_id,), prepare=True).fetchone()


def usage_history(reads: Reads, customer_id: str, *, before: date | None, limit: int) -> list[dict[str, Any]]:
    """Days on which something was counted, newest first, each with the limits of that day."""
    with reads.reading() as cursor:
        return cursor.execute(
            "SELECT customer_id, usage_date, pipelines_run_today, pipelines_succeeded_today, pipelines_failed_today,"
            " pipelines_run_month, concurrent_pipelines_running, daily_limit, monthly_limit, concurrent_limit,"
            " last_updated FROM customer_usage WHERE customer_id = %(c)s"
            " AND (%(before)s::date IS NULL OR usage_date < %(before)s) ORDER BY usage_date DESC LIMIT %(limit)s",
            {"c": customer_id, "before": before, "limit": limit},
            prepare=True,
        ).fetchall()
