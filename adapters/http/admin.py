"""What operators do: the commands behind what would otherwise be SQL by hand. Each takes a reason that is recorded."""

from typing import Annotated, Any, Final

from fastapi import Body, Query, Response
from pydantic import Field

from adapters.http.api import Parts
from adapters.http.auth import AdminActing, AdminCaller
from adapters.http.customers import CustomerView, read_customer, view
from adapters.http.etags import Match
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, admin_router, refusals
from adapters.http.usage import UsageView, read_usage
from adapters.postgres.reads import profiles
from application.command import Line, Request
from application.customers import Reactivate, Suspend, reactivate, suspend
from application.subscriptions import (
    ChangePlan,
    OverrideLimits,
    RecountUsage,
    ResetUsage,
    change_plan,
    override_limits,
    recount_usage,
    reset_usage,
)
from domain.customer import Status
from domain.plans import MAX_LIMIT, Plan

router = admin_router("/admin/customers", "Administration")

CHANGES: Final = WITH_BODY | refusals(404)
Limit = Annotated[int | None, Field(ge=0, le=MAX_LIMIT)]


class Reason(Request):
    """Why, for the record."""

    reason: Line


class PlanChange(Reason):
    plan: Plan


class LimitsChange(Reason):
    """A limit that is given replaces the plan's own; null takes the exception back; others stay."""

    max_team_members: Limit = None
    max_providers: Limit = None
    max_pipelines_per_day: Limit = None
    max_pipelines_per_month: Limit = None
    max_concurrent_pipelines: Limit = None


class Reset(Reason):
    """Which counts start from zero again."""

    daily: bool = True
    monthly: bool = False


BecauseBody = Annotated[Reason, Body(examples=[{"reason": "Unpaid since October."}])]


def _customer(api: Parts, caller: AdminActing, response: Response) -> CustomerView:
    return read_customer(caller.reads, caller.customer_id, api.now(), response)


@router.get("", summary="List customers")
def list_customers(
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    paging: PageAsked,
    status: Annotated[Status | None, Query(description="Only customers in this state.")] = None,
) -> Page[CustomerView]:
    """Every customer with its plan and limits, newest first."""
    after = paging.after
    rows = profiles.profiles(
        api.service.datastore,
        status=status.value if status else None,
        after=(after.created_at, after.key) if after else None,
        limit=paging.more,
    )
    return paging.page(rows, view, ("created_at", "customer_id"))


@router.post("/{customer_id}/suspend", summary="Suspend a customer", responses=CHANGES)
def post_suspend(
    api: Parts,
    caller: AdminActing,
    name: RequestName,  # noqa: ARG001 - suspending twice is suspending once
    response: Response,
    body: BecauseBody,
) -> CustomerView:
    """Its keys, schedules and waiting runs stop at once; runs that started end by themselves."""
    suspend(Suspend(**caller.stamp, reason=body.reason), api.service.platform)
    return _customer(api, caller, response)


@router.post("/{customer_id}/reactivate", summary="Reactivate a customer", responses=CHANGES)
def post_reactivate(
    api: Parts,
    caller: AdminActing,
    name: RequestName,  # noqa: ARG001 - reactivating twice is reactivating once
    response: Response,
    body: BecauseBody,
) -> CustomerView:
    """The customer goes on; its pipelines run at their next slot, and what was missed stays missed."""
    command = Reactivate(**caller.stamp | {"at": api.slot_clock()}, reason=body.reason)
    reactivate(command, api.service.platform)
    return _customer(api, caller, response)


@router.put(
    "/{customer_id}/plan",
    summary="Change a customer's plan",
    responses=CHANGES | refusals(412),
)
def put_plan(
    api: Parts,
    caller: AdminActing,
    match: Match,
    response: Response,
    body: Annotated[PlanChange, Body(examples=[{"plan": "SCALE", "reason": "Upgrade of 17 November."}])],
) -> CustomerView:
    """Another plan from now on. What is over its limits stays; nothing new is accepted beyond them."""
    command = ChangePlan(**caller.stamp, plan=body.plan, reason=body.reason)
    change_plan(command, match.on(api.service.platform, caller.customer_id))
    return _customer(api, caller, response)


@router.patch(
    "/{customer_id}/limits",
    summary="Override a customer's limits",
    responses=CHANGES | refusals(412),
)
def patch_limits(
    api: Parts,
    caller: AdminActing,
    match: Match,
    response: Response,
    body: Annotated[LimitsChange, Body(examples=[{"max_pipelines_per_day": 1, "reason": "Testing the quota."}])],
) -> CustomerView:
    """Exceptions from the plan's limits for this customer, in force at once."""
    given: dict[str, Any] = body.model_dump(exclude_unset=True)
    override_limits(OverrideLimits(**caller.stamp, **given), match.on(api.service.platform, caller.customer_id))
    return _customer(api, caller, response)


@router.post("/{customer_id}/usage/reset", summary="Reset usage", responses=CHANGES)
def post_reset(
    api: Parts,
    caller: AdminActing,
    name: RequestName,  # noqa: ARG001 - it makes nothing that needs an id
    body: Annotated[Reset, Body(examples=[{"monthly": True, "reason": "Runs lost to our outage."}])],
) -> UsageView:
    """Count today's runs, this month's, or both, from zero again."""
    command = ResetUsage(**caller.stamp, reason=body.reason, daily=body.daily, monthly=body.monthly)
    reset_usage(command, api.service.platform)
    return read_usage(caller.reads, caller.customer_id, api.now())


@router.post("/{customer_id}/usage/recount", summary="Recount usage", responses=CHANGES)
def post_recount(
    api: Parts,
    caller: AdminActing,
    name: RequestName,  # noqa: ARG001 - it makes nothing that needs an id
    body: BecauseBody,
) -> UsageView:
    """Give back concurrent places that no running run holds."""
    recount_usage(RecountUsage(**caller.stamp, reason=body.reason), api.service.platform)
    return read_usage(caller.reads, caller.customer_id, api.now())
