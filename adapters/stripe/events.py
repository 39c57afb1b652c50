"""Stripe's events as the service understands them, from every version of Stripe's API that it knows.

What moved between versions is looked for in each of its places: a subscription's period stands on its items since
2025-03-31 (basil), and on itself before; an invoice's subscription stands in its parent since then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from adapters.stripe.signature import NotAnEvent
from application.billing import Contact
from domain import identity
from domain.billing_events import (
    CheckoutReported,
    EventNoted,
    InvoiceReported,
    Outcome,
    Report,
    SubscriptionReported,
)
from domain.refusals import Invalid

_SUBSCRIPTION: Final = "customer.subscription."
_INVOICES: Final = frozenset(
    {
        "invoice.paid",
        "invoice.payment_succeeded",
        "invoice.payment_failed",
        "invoice.voided",
        "invoice.marked_uncollectible",
    }
)
_CHECKOUTS: Final = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
    }
)
_COMPANY: Final = ("company_name", "company", "companyname")


def _id_of(given: Any) -> Any:  # noqa: ANN401 - what Stripe sent
    """An object that was expanded in place of its id."""
    return given.get("id") if isinstance(given, Mapping) else given


Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,255}$"), BeforeValidator(_id_of)]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.]{1,100}$")]
# What could not be compared with our instants, or not be added to, must not come into the log.
Instant = Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC))]


class _Shape(BaseModel):
    """What is read of one of Stripe's objects; it has more."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class _Data(_Shape):
    object: dict[str, Any]


class _Event(_Shape):
    id: Id
    type: Kind
    created: Instant
    livemode: bool
    data: _Data


class _Item(_Shape):
    price: Id
    current_period_start: Instant | None = None
    current_period_end: Instant | None = None


class _Items(_Shape):
    data: tuple[_Item, ...] = ()


class _Cancellation(_Shape):
    reason: Kind | None = None


class _Subscription(_Shape):
    id: Id
    customer: Id
    status: Kind
    created: Instant
    items: _Items
    cancel_at: Instant | None = None
    cancel_at_period_end: bool = False
    ended_at: Instant | None = None
    cancellation_details: _Cancellation | None = None
    current_period_start: Instant | None = None
    current_period_end: Instant | None = None


class _SubscriptionDetails(_Shape):
    subscription: Id | None = None


class _Parent(_Shape):
    subscription_details: _SubscriptionDetails | None = None


class _Invoice(_Shape):
    id: Id
    customer: Id
    status: Kind
    subscription: Id | None = None
    parent: _Parent | None = None


class _Text(_Shape):
    value: str | None = None


class _CustomField(_Shape):
    key: str
    text: _Text | None = None


class _Person(_Shape):
    email: str | None = None
    name: str | None = None
    business_name: str | None = None


class _Checkout(_Shape):
    id: Id
    mode: Kind
    payment_status: Kind
    customer: Id | None = None
    subscription: Id | None = None
    client_reference_id: str | None = None
    metadata: dict[str, str] | None = None
    customer_details: _Person | None = None
    customer_email: str | None = None
    custom_fields: tuple[_CustomField, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an event told: a report about one of Stripe's customers, or a note that nothing follows from it.

    `contact` is whom a checkout makes a customer, where it says so: kept out of the report, and of `repr`.
    """

    live: bool
    note: EventNoted
    """The event as it is recorded where it has no effect."""
    report: Report | None = None
    stripe_customer_id: str = ""
    contact: Contact | None = field(default=None, repr=False)


def told_by(event: Mapping[str, Any], *, central_dataset: str) -> Told:
    """What a verified event tells; one whose object has an unknown shape is noted as that.

    Raises `NotAnEvent` for what has not even an event's envelope.
    """
    try:
        envelope = _Event.model_validate(event)
    except ValidationError:
        raise NotAnEvent from None
    try:
        found = _report(envelope, central_dataset)
    except ValidationError:
        return Told(live=envelope.livemode, note=_note(envelope, Outcome.UNREADABLE))
    if found is None:
        return Told(live=envelope.livemode, note=_note(envelope, Outcome.UNKNOWN))
    customer, report, contact = found
    note = _note(envelope, Outcome.UNKNOWN)
    return Told(live=envelope.livemode, note=note, report=report, stripe_customer_id=customer, contact=contact)


def _note(event: _Event, outcome: Outcome) -> EventNoted:
    return EventNoted(event_id=event.id, said_at=event.created, type=event.type, live=event.livemode, outcome=outcome)


def _report(event: _Event, central_dataset: str) -> tuple[str, Report, Contact | None] | None:
    said, thing = {"event_id": event.id, "said_at": event.created, "type": event.type}, event.data.object
    if event.type.startswith(_SUBSCRIPTION):
        subscription = _Subscription.model_validate(thing)
        return subscription.customer, _subscription(subscription, said), None
    if event.type in _INVOICES:
        invoice = _Invoice.model_validate(thing)
        return invoice.customer, _invoice(invoice, said), None
    if event.type in _CHECKOUTS:
        checkout = _Checkout.model_validate(thing)
        if checkout.mode != "subscription" or checkout.customer is None:
            return None
        return checkout.customer, _checkout(checkout, said, central_dataset), _contact(checkout)
    return None


def _subscription(subscription: _Subscription, said: dict[str, Any]) -> SubscriptionReported:
    items = subscription.items.data
    starts = [at for item in items if (at := item.current_period_start or subscription.current_period_start)]
    ends = [at for item in items if (at := item.current_period_end or subscription.current_period_end)]
    period_end = max(ends, default=None)
    details = subscription.cancellation_details
    return SubscriptionReported(
        **said,
        subscription_id=subscription.id,
        status=subscription.status,
        price_ids=tuple(sorted({item.price for item in items})),
        began_at=subscription.created,
        period_start=max(starts, default=None),
        period_end=period_end,
        cancel_at=subscription.cancel_at or (period_end if subscription.cancel_at_period_end else None),
        ended_at=subscription.ended_at,
        unpaid=details is not None and details.reason == "payment_failed",
    )


def _invoice(invoice: _Invoice, said: dict[str, Any]) -> InvoiceReported:
    details = invoice.parent.subscription_details if invoice.parent else None
    return InvoiceReported(
        **said,
        invoice_id=invoice.id,
        status=invoice.status,
        subscription_id=(details.subscription if details else None) or invoice.subscription,
        failed=said["type"] == "invoice.payment_failed",
    )


def _checkout(checkout: _Checkout, said: dict[str, Any], central_dataset: str) -> CheckoutReported:
    vouched = (checkout.metadata or {}).get("customer_id")
    return CheckoutReported(
        **said,
        session_id=checkout.id,
        paid=checkout.payment_status in {"paid", "no_payment_required"},
        names=_customer_id(vouched or checkout.client_reference_id or "", central_dataset),
        vouched=bool(vouched),
        subscription_id=checkout.subscription,
    )


def _customer_id(text: str, central_dataset: str) -> str | None:
    """What cannot be a customer_id is not kept: it may be anything, an e-mail address too."""
    try:
        return identity.customer_id(text, central_dataset=central_dataset)
    except Invalid:
        return None


def _contact(checkout: _Checkout) -> Contact | None:
    """Whom the checkout is for, None where it does not say so in a form that could be written to."""
    person = checkout.customer_details or _Person()
    answers = {asked.key: asked.text.value for asked in checkout.custom_fields if asked.text and asked.text.value}
    company = next((answers[key] for key in _COMPANY if key in answers), None)
    company = company or (checkout.metadata or {}).get("company_name") or person.business_name or person.name
    try:
        return Contact.model_validate({"company_name": company, "admin_email": person.email or checkout.customer_email})
    except ValidationError:
        return None
