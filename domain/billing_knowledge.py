"""What is known of Stripe's subscriptions and invoices, however often and in whatever order it was told.

Taking in a report is a join: the same reports come to the same knowledge in every order, and twice is once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from domain.billing_events import InvoiceReported, SubscriptionReported

ENDED: Final = frozenset({"canceled", "incomplete_expired"})
"""What a subscription never comes back from."""
UNBEGUN: Final = frozenset({"incomplete", "incomplete_expired"})
"""The first payment was never made: it says nothing about a plan."""

_TYPES: Final = ("customer.subscription.created", "customer.subscription.updated", "customer.subscription.deleted")
_BEST: Final = ("active", "trialing", "past_due", "unpaid", "paused", "incomplete")
_PAYABLE: Final = ("draft", "open", "uncollectible", "void", "paid")

Rank = tuple[bool, datetime, int, int, str]


def rank(report: SubscriptionReported) -> Rank:
    """Which of two reports of one subscription is the later one.

    An end is final. Then Stripe's clock counts, which shows whole seconds: within one, what is created comes before
    what is updated, and the better state wins, as paying right after subscribing makes it.
    """
    kind = _TYPES.index(report.type) if report.type in _TYPES else 1
    good = -_BEST.index(report.status) if report.status in _BEST else -len(_BEST)
    return (report.status in ENDED, report.said_at, kind, good, report.event_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSubscription:
    """A subscription: its newest report, and for each price when it was last the one to pay."""

    newest: SubscriptionReported
    priced: Mapping[str, Rank] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownInvoice:
    """An invoice: how far it got, when collecting it first failed, and when it was last said to be paid."""

    status: str
    subscription_id: str | None = None
    failed_at: datetime | None = None
    paid_at: datetime | None = None

    @property
    def is_owed(self) -> bool:
        """Somebody tried to collect it in vain, and it was neither paid nor taken back since."""
        return self.failed_at is not None and self.status not in {"paid", "void"}


def with_subscription(known: KnownSubscription | None, report: SubscriptionReported) -> KnownSubscription:
    """What is known of the subscription after this report of it."""
    now = known or KnownSubscription(newest=report)
    priced = dict(now.priced)
    if report.status not in UNBEGUN:
        this = rank(report)
        for price in report.price_ids:
            priced[price] = max(this, priced.get(price, this))
    return replace(now, newest=max(now.newest, report, key=rank), priced=priced)


def with_invoice(known: KnownInvoice | None, report: InvoiceReported) -> KnownInvoice:
    """What is known of the invoice after this report of it. What was paid stays paid, whenever a failure is told."""
    now = known or KnownInvoice(status=report.status)
    failed = [at for at in (now.failed_at, report.said_at if report.failed else None) if at]
    paid = [at for at in (now.paid_at, report.said_at if report.status == "paid" else None) if at]
    return replace(
        now,
        status=max(now.status, report.status, key=_progress),
        subscription_id=max(now.subscription_id or "", report.subscription_id or "") or None,
        failed_at=min(failed, default=None),
        paid_at=max(paid, default=None),
    )


def _progress(status: str) -> tuple[int, str]:
    return (_PAYABLE.index(status) if status in _PAYABLE else -1, status)
