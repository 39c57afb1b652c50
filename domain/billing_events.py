"""What Stripe tells about its customers, and what followed. These shapes are the storage format.

They hold identifiers, instants and words of Stripe's own, and nothing that names a person.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Outcome(StrEnum):
    """Why an event of Stripe's says nothing about a customer here."""

    UNKNOWN = "unknown"
    """Of a type that nothing here follows from."""
    OTHER_MODE = "other-mode"
    """Of Stripe's test mode where live money is taken, or the other way round."""
    UNREADABLE = "unreadable"
    """Signed, and of a shape that is not understood."""


class Cause(StrEnum):
    """Why a customer's access ends for want of money."""

    PAYMENT_FAILED = "payment-failed"
    ENDED = "subscription-ended"
    PAUSED = "subscription-paused"


class Trouble(StrEnum):
    """What an operator has to look at."""

    BAD_CUSTOMER_ID = "bad-customer-id"
    CUSTOMER_TAKEN = "customer-taken"
    OTHER_CHECKOUT = "other-checkout"
    NO_CONTACT = "no-contact"
    UNKNOWN_PRICE = "unknown-price"
    SEVERAL_SUBSCRIPTIONS = "several-subscriptions"
    OTHER_MODE = "other-mode"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOpened:
    """Stripe told of this customer of its own for the first time; `live` is whether its money is real."""

    stripe_customer_id: str
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionReported:
    """What an event of Stripe's said of a subscription, at Stripe's own time `said_at`.

    `unpaid` says of one that ended that it did for want of payment.
    """

    event_id: str
    said_at: datetime
    type: str
    subscription_id: str
    status: str
    price_ids: tuple[str, ...]
    began_at: datetime
    period_start: datetime | None = None
    period_end: datetime | None = None
    cancel_at: datetime | None = None
    ended_at: datetime | None = None
    unpaid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceReported:
    """What an event of Stripe's said of an invoice; `failed` that an attempt to collect its money did."""

    event_id: str
    said_at: datetime
    type: str
    invoice_id: str
    status: str
    subscription_id: str | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutReported:
    """What an event of Stripe's said of a checkout.

    `names` is the customer that it is for, None where what stood there can be no customer_id. `vouched` says that
    whoever holds the platform's own key at Stripe put it there, and not the visitor who paid.
    """

    event_id: str
    said_at: datetime
    type: str
    session_id: str
    paid: bool
    names: str | None = None
    vouched: bool = False
    subscription_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNoted:
    """An event of Stripe's that nothing follows from."""

    event_id: str
    said_at: datetime
    type: str
    live: bool
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """Stripe's customer is this customer, because of what `because` names: a checkout, or the onboarding."""

    stripe_customer_id: str
    customer_id: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """What all that was reported comes to: the plan that is paid for, and when access ends, if nothing else is heard.

    `subscription_id` and `status` are Stripe's. A plan of None is no opinion: the customer keeps the one it has.
    """

    stripe_customer_id: str
    subscription_id: str | None = None
    status: str | None = None
    plan: str | None = None
    cancel_at: datetime | None = None
    suspend_at: datetime | None = None
    cause: Cause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSuspended:
    """The customer was suspended for want of money: it was the `suspension`-th time that it was suspended at all."""

    stripe_customer_id: str
    suspension: int
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRestored:
    """Nothing is owed any more. `reactivated` is False where it was active, or had come to be suspended otherwise."""

    stripe_customer_id: str
    reactivated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemFound:
    """An operator has to look at `subject`: a price, a checkout, a subscription or an event, by Stripe's name for it.

    `account` is Stripe's customer, or the event itself where it is about none that is known.
    """

    account: str
    problem: Trouble
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSolved:
    account: str
    problem: Trouble
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountClosed:
    """The customer was erased. What Stripe still tells is recorded, and nothing follows from it."""

    stripe_customer_id: str


Report = SubscriptionReported | InvoiceReported | CheckoutReported
BillingEvent = (
    AccountOpened
    | AccountClosed
    | SubscriptionReported
    | InvoiceReported
    | CheckoutReported
    | EventNoted
    | Linked
    | Assessed
    | AccessSuspended
    | AccessRestored
    | ProblemFound
    | ProblemSolved
)
