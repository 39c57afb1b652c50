"""Billing as operators look at it: one customer's, and everything that waits for them."""

from adapters.billing_views import BillingProblem, BillingView, billing_of, problem_view
from adapters.http.api import Parts
from adapters.http.auth import AdminActing, AdminCaller
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import admin_router, refusals
from adapters.postgres.reads import billing

router = admin_router("/admin", "Billing")


@router.get("/customers/{customer_id}/billing", summary="Read a customer's billing", responses=refusals(404))
def get_billing(api: Parts, caller: AdminActing) -> BillingView:
    """Which of Stripe's customers pays for it, the state of that, and until when an unpaid invoice is borne with."""
    return billing_of(api.service.datastore, caller.customer_id)


@router.get("/billing/problems", summary="List billing problems")
def list_problems(
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    paging: PageAsked,
) -> Page[BillingProblem]:
    """What Stripe told and nobody could act upon, newest first, each with what to do about it."""
    after = (paging.after.created_at, paging.after.key) if paging.after else None
    rows = billing.problems(api.service.datastore, None, after=after, limit=paging.more)
    return paging.page(rows, problem_view, ("created_at", "key"))
