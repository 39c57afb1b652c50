"""Billing as operators see it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from adapters.postgres.event_log import Datastore
from adapters.postgres.reads import billing

Standing = Literal["unlinked", "good", "grace", "ending", "suspended"]

_REMEDIES: Final[Mapping[str, str]] = {
    "bad-customer-id": (
        "A paid checkout named no customer_id that can be. Onboard the customer with X-Admin-Key and this"
        " stripe_customer_id: it is linked by itself then."
    ),
    "customer-taken": (
        "A paid checkout named a customer that exists and is not provably its own. Find out who paid; refund it, or"
        " onboard another customer with X-Admin-Key and this stripe_customer_id."
    ),
    "other-checkout": (
        "Who paid is a customer already, and paid for another one with the same Stripe customer. Refund it, or have it"
        " paid as a new Stripe customer."
    ),
    "no-contact": (
        "A paid checkout came without an e-mail address that works. Onboard the customer with X-Admin-Key and this"
        " stripe_customer_id."
    ),
    "unknown-price": "Add the price to STRIPE_PRICES, restart, and send the event again from Stripe's dashboard.",
    "several-subscriptions": "The newest one that is paid counts. Cancel the others at Stripe.",
    "other-mode": "An event of the other mode was refused. Check STRIPE_LIVE, and which endpoint has the secret.",
    "unreadable": "An event has a shape that this version does not know. Update the service, and send it again.",
    "no-customer": "Somebody pays and is nobody's customer. Look at the checkout at Stripe.",
}


class BillingProblem(BaseModel):
    """Something that an operator has to look at. `subject` is Stripe's id of what it is about."""

    problem: str
    subject: str
    stripe_customer_id: str | None
    customer_id: str | None
    created_at: datetime
    remedy: str


class BillingAccountView(BaseModel):
    """A customer of Stripe's: whose it is, what is paid for, and when access ends."""

    stripe_customer_id: str
    customer_id: str | None
    live: bool
    stripe_subscription_id: str | None
    status: str | None = Field(description="Stripe's own word for the subscription's state.")
    plan: str | None = Field(description="The plan that is paid for; null where the price is none of STRIPE_PRICES.")
    standing: Standing
    grace_until: datetime | None = Field(description="When an unpaid customer is suspended.")
    cancel_at: datetime | None = Field(description="When the subscription ends, as the payer wishes.")
    ends_at: datetime | None = Field(description="When access ends, or ended, for whatever reason.")
    cause: str | None
    updated_at: datetime


class BillingView(BaseModel):
    """One customer's billing: empty where nothing at Stripe pays for it."""

    customer_id: str
    accounts: list[BillingAccountView]
    problems: list[BillingProblem]


def account_view(row: Mapping[str, Any]) -> BillingAccountView:
    """An account as it is shown."""
    unpaid = row["cause"] == "payment-failed"
    return BillingAccountView.model_validate(
        {
            **row,
            "standing": _standing(row, unpaid=unpaid),
            "grace_until": row["acts_at"] if unpaid and not row["is_suspended"] else None,
            "ends_at": row["acts_at"],
        }
    )


def _standing(row: Mapping[str, Any], *, unpaid: bool) -> Standing:
    if row["customer_id"] is None:
        return "unlinked"
    if row["is_suspended"]:
        return "suspended"
    if row["acts_at"] is not None:
        return "grace" if unpaid else "ending"
    return "ending" if row["cancel_at"] is not None else "good"


def problem_view(row: Mapping[str, Any]) -> BillingProblem:
    """A problem with what to do about it."""
    return BillingProblem.model_validate({**row, "remedy": _REMEDIES[row["problem"]]})


def billing_of(datastore: Datastore, customer_id: str) -> BillingView:
    """The customer's accounts and what is not solved about them."""
    return BillingView(
        customer_id=customer_id,
        accounts=[account_view(row) for row in billing.accounts(datastore, customer_id, limit=100)],
        problems=[problem_view(row) for row in billing.problems(datastore, customer_id, limit=100)],
    )
