"""Rows of billing: Stripe's customers, and what about them an operator has to look at."""

from collections.abc import Iterator
from functools import singledispatch

from domain.billing_events import (
    AccessRestored,
    AccessSuspended,
    AccountClosed,
    AccountOpened,
    Assessed,
    BillingEvent,
    CheckoutReported,
    EventNoted,
    InvoiceReported,
    Linked,
    ProblemFound,
    ProblemSolved,
    SubscriptionReported,
)
from domain.envelope import Envelope
from projections.rows import Put, RowChange, Set
from projections.tables import BILLING_ACCOUNTS, BILLING_PROBLEMS


@singledispatch
def rows(event: BillingEvent, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - what every case takes
    """The rows of one billing event."""
    raise TypeError(f"No rows are defined for {type(event).__name__}.")


def _account(stripe_customer_id: str, at: Envelope, **values: object) -> Set:
    return Set(BILLING_ACCOUNTS, {"stripe_customer_id": stripe_customer_id, **values, "updated_at": at.at})


@rows.register
def _(event: AccountOpened, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        BILLING_ACCOUNTS,
        {
            "stripe_customer_id": event.stripe_customer_id,
            "customer_id": None,
            "live": event.live,
            "stripe_subscription_id": None,
            "status": None,
            "plan": None,
            "cancel_at": None,
            "acts_at": None,
            "cause": None,
            "is_suspended": False,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register(SubscriptionReported)
@rows.register(InvoiceReported)
@rows.register(CheckoutReported)
@rows.register(EventNoted)
def _(event: BillingEvent, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - what it comes to is assessed
    yield from ()


@rows.register
def _(event: Linked, at: Envelope) -> Iterator[RowChange]:
    yield _account(event.stripe_customer_id, at, customer_id=event.customer_id)


@rows.register
def _(event: Assessed, at: Envelope) -> Iterator[RowChange]:
    yield _account(
        event.stripe_customer_id,
        at,
        stripe_subscription_id=event.subscription_id,
        status=event.status,
        plan=event.plan,
        cancel_at=event.cancel_at,
        acts_at=event.suspend_at,
        cause=event.cause,
    )


@rows.register
def _(event: AccountClosed, at: Envelope) -> Iterator[RowChange]:
    told = ("customer_id", "stripe_subscription_id", "status", "plan", "cancel_at", "acts_at", "cause")
    yield _account(event.stripe_customer_id, at, **dict.fromkeys(told), deleted_at=at.at)


@rows.register
def _(event: AccessSuspended, at: Envelope) -> Iterator[RowChange]:
    yield _account(event.stripe_customer_id, at, is_suspended=True)


@rows.register
def _(event: AccessRestored, at: Envelope) -> Iterator[RowChange]:
    yield _account(event.stripe_customer_id, at, is_suspended=False)


@rows.register
def _(event: ProblemFound, at: Envelope) -> Iterator[RowChange]:
    named = {"account": event.account, "problem": event.problem, "subject": event.subject}
    yield Put(BILLING_PROBLEMS, {**named, "created_at": at.at, "solved_at": None})


@rows.register
def _(event: ProblemSolved, at: Envelope) -> Iterator[RowChange]:
    named = {"account": event.account, "problem": event.problem, "subject": event.subject}
    yield Set(BILLING_PROBLEMS, {**named, "solved_at": at.at})
