"""Rows of subscriptions: plan, limits, and usage by day."""

from collections.abc import Iterator
from functools import singledispatch

from domain.envelope import Envelope
from domain.plans import Limits
from domain.subscription_events import (
    AdmissionsReturned,
    Cancelled,
    LimitsOverridden,
    Opened,
    PlanChanged,
    Reactivated,
    RunRefused,
    RunsAdmitted,
    SlotReleased,
    SlotTaken,
    SubscriptionEvent,
    Suspended,
    UsageReset,
)
from domain.usage import Usage
from projections.rows import Put, RowChange, Set
from projections.tables import CUSTOMER_PROFILES, CUSTOMER_SUBSCRIPTIONS, CUSTOMER_USAGE


@singledispatch
def rows(event: SubscriptionEvent, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - what every case takes
    """The rows of one subscription event."""
    raise TypeError(f"No rows are defined for {type(event).__name__}.")


def _limits(limits: Limits) -> dict[str, int]:
    return {
        "max_team_members": limits.max_team_members,
        "max_providers": limits.max_providers,
        "max_pipelines_per_day": limits.max_pipelines_per_day,
        "max_pipelines_per_month": limits.max_pipelines_per_month,
        "max_concurrent_pipelines": limits.max_concurrent_pipelines,
    }


def _usage(usage: Usage, limits: Limits, at: Envelope) -> Put:
    return Put(
        CUSTOMER_USAGE,
        {
            "customer_id": at.customer_id,
            "usage_date": usage.day,
            "pipelines_run_today": usage.admitted,
            "pipelines_succeeded_today": usage.succeeded,
            "pipelines_failed_today": usage.failed,
            "pipelines_run_month": usage.month_admitted,
            "concurrent_pipelines_running": usage.running,
            "daily_limit": limits.max_pipelines_per_day,
            "monthly_limit": limits.max_pipelines_per_month,
            "concurrent_limit": limits.max_concurrent_pipelines,
            "last_updated": at.at,
        },
    )


@rows.register
def _(event: Opened, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_SUBSCRIPTIONS,
        {
            "subscription_id": str(at.stream_id),
            "customer_id": event.customer_id,
            "plan_name": event.plan,
            "status": "ACTIVE",
            **_limits(event.limits),
            "stripe_subscription_id": None,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )
    yield _usage(event.usage, event.limits, at)


def _subscription(at: Envelope, **values: object) -> Set:
    return Set(CUSTOMER_SUBSCRIPTIONS, {"customer_id": at.customer_id, **values, "updated_at": at.at})


@rows.register
def _(event: PlanChanged, at: Envelope) -> Iterator[RowChange]:
    yield _subscription(at, plan_name=event.plan, **_limits(event.limits))
    values = {"customer_id": at.customer_id, "subscription_plan": event.plan, "updated_at": at.at}
    yield Set(CUSTOMER_PROFILES, values)
    yield _usage(event.usage, event.limits, at)


@rows.register
def _(event: LimitsOverridden, at: Envelope) -> Iterator[RowChange]:
    yield _subscription(at, **_limits(event.limits))
    yield _usage(event.usage, event.limits, at)


@rows.register(RunsAdmitted)
@rows.register(SlotTaken)
@rows.register(SlotReleased)
@rows.register(UsageReset)
def _(event: RunsAdmitted | SlotTaken | SlotReleased | UsageReset, at: Envelope) -> Iterator[RowChange]:
    yield _usage(event.usage, event.limits, at)


@rows.register
def _(event: AdmissionsReturned, at: Envelope) -> Iterator[RowChange]:
    if event.day != event.usage.day:
        values = {"customer_id": at.customer_id, "usage_date": event.day}
        yield Set(CUSTOMER_USAGE, {**values, "pipelines_run_today": event.admitted_that_day, "last_updated": at.at})
    yield _usage(event.usage, event.limits, at)


@rows.register
def _(event: RunRefused, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - it is in the log, and in no table
    yield from ()


@rows.register
def _(event: Suspended, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the reason is in the log
    yield _subscription(at, status="SUSPENDED")


@rows.register
def _(event: Reactivated, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the reason is in the log
    yield _subscription(at, status="ACTIVE")


@rows.register
def _(event: Cancelled, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the reason is in the log
    yield _subscription(at, status="CANCELLED")
