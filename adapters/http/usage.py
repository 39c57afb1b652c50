"""What a customer has used: today, this month, now; and day by day."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import UsageReader
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import customer_router
from adapters.postgres.event_log import Reads
from adapters.postgres.reads import profiles
from domain.refusals import NotFound
from domain.usage import Usage, first_of_next_month

router = customer_router("/customers/{customer_id}/usage", "Usage")


class UsageDay(BaseModel):
    """One UTC day, with the columns of customer_usage."""

    customer_id: str
    usage_date: date
    pipelines_run_today: int
    pipelines_succeeded_today: int
    pipelines_failed_today: int
    pipelines_run_month: int
    concurrent_pipelines_running: int
    daily_limit: int
    monthly_limit: int
    concurrent_limit: int
    last_updated: datetime


class UsageView(UsageDay):
    """Today, and what is left of it. Days and months are UTC."""

    daily_remaining: int
    monthly_remaining: int
    concurrent_remaining: int
    quota_reset_time: datetime = Field(description="When the day's count starts again.")
    quota_reset_date: date = Field(description="When the month's count starts again.")


def read_usage(reads: Reads, customer_id: str, now: datetime) -> UsageView:
    """The customer's usage at `now`: a new day or month has started from zero, whether or not anything ran in it."""
    row = profiles.usage(reads, customer_id)
    if row is None:
        raise NotFound("No such customer.")
    return _at(row, now)


def _at(row: Mapping[str, Any], now: datetime) -> UsageView:
    usage = Usage(
        day=row["usage_date"],
        admitted=row["pipelines_run_today"],
        succeeded=row["pipelines_succeeded_today"],
        failed=row["pipelines_failed_today"],
        month_admitted=row["pipelines_run_month"],
        running=row["concurrent_pipelines_running"],
    ).at(now)
    return UsageView(
        customer_id=row["customer_id"],
        usage_date=usage.day,
        pipelines_run_today=usage.admitted,
        pipelines_succeeded_today=usage.succeeded,
        pipelines_failed_today=usage.failed,
        pipelines_run_month=usage.month_admitted,
        concurrent_pipelines_running=usage.running,
        daily_limit=row["daily_limit"],
        monthly_limit=row["monthly_limit"],
        concurrent_limit=row["concurrent_limit"],
        last_updated=row["last_updated"],
        daily_remaining=max(0, row["daily_limit"] - usage.admitted),
        monthly_remaining=max(0, row["monthly_limit"] - usage.month_admitted),
        concurrent_remaining=max(0, row["concurrent_limit"] - usage.running),
        quota_reset_time=datetime.combine(usage.day + timedelta(days=1), time(0), UTC),
        quota_reset_date=first_of_next_month(usage.day),
    )


@router.get("", summary="Read usage")
def get_usage(api: Parts, caller: UsageReader) -> UsageView:
    """Runs today and this month, runs going on now, the limits, what is left, and when counting starts again."""
    return read_usage(caller.reads, caller.customer_id, api.now())


@router.get("/history", summary="Read usage day by day")
def get_usage_history(caller: UsageReader, paging: PageAsked) -> Page[UsageDay]:
    """The days on which something was counted, newest first, with the limits of each day."""
    rows = profiles.usage_history(caller.reads, caller.customer_id, before=paging.before_day, limit=paging.more)
    return paging.page(rows, UsageDay.model_validate, ("usage_date",))
