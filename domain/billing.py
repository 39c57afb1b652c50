"""A customer of Stripe's: what was reported of it, which customer it is here, and what its money comes to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from domain.billing_events import (
    AccessRestored,
    AccessSuspended,
    AccountClosed,
    AccountOpened,
    Assessed,
    BillingEvent,
    Cause,
    CheckoutReported,
    EventNoted,
    InvoiceReported,
    Linked,
    Outcome,
    ProblemFound,
    ProblemSolved,
    Report,
    SubscriptionReported,
    Trouble,
)
from domain.billing_knowledge import ENDED, UNBEGUN, KnownInvoice, KnownSubscription, with_invoice, with_subscription
from domain.plans import Plan

Problem = tuple[Trouble, str]

_OF_CHECKOUTS: Final = frozenset(
    {Trouble.BAD_CUSTOMER_ID, Trouble.CUSTOMER_TAKEN, Trouble.NO_CONTACT, Trouble.OTHER_CHECKOUT}
)
_PLANS: Final = tuple(Plan)
_GOOD: Final = frozenset({"trialing", "active"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is sold: the plan of each price, and how long an invoice may stay unpaid before access ends."""

    prices: Mapping[str, Plan] = field(default_factory=dict)
    grace: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingAccount:
    """One customer of Stripe's, in live or in test mode. It is nobody's here until it is linked."""

    stripe_customer_id: str
    live: bool
    linked: str | None = None
    heard: frozenset[str] = frozenset()
    """The events of Stripe's that were taken in."""
    subscriptions: Mapping[str, KnownSubscription] = field(default_factory=dict)
    invoices: Mapping[str, KnownInvoice] = field(default_factory=dict)
    assessed: Assessed | None = None
    suspension: int | None = None
    """Which of the customer's suspensions was for want of money, while that lasts."""
    problems: frozenset[Problem] = frozenset()
    closed: bool = False

    @property
    def customer_id(self) -> str:
        """Its events are kept under no customer's name: they are told before anybody knows whose they are."""
        return ""

    # decisions

    def hear(self, report: Report) -> tuple[BillingEvent, ...]:
        """Take in what an event of Stripe's said; the same event again says nothing new."""
        return () if report.event_id in self.heard else (report,)

    def link(self, customer_id: str, because: str) -> tuple[BillingEvent, ...]:
        """It is this customer, for good; what stood in the way is solved."""
        if self.linked is not None:
            return ()
        solved = [self._solved(p) for p in sorted(self.problems) if p[0] in _OF_CHECKOUTS]
        return (
            Linked(stripe_customer_id=self.stripe_customer_id, customer_id=customer_id, because=because),
            *solved,
        )

    def close(self) -> tuple[BillingEvent, ...]:
        """Its customer was erased; no operator has to look at anything any more."""
        if self.closed:
            return ()
        solved = map(self._solved, sorted(self.problems))
        return (*solved, AccountClosed(stripe_customer_id=self.stripe_customer_id))

    def taken_in(self) -> tuple[BillingEvent, ...]:
        """Of an event that was noted: it was told again and is understood now, and nobody has to look at it."""
        return tuple(map(self._solved, sorted(self.problems)))

    def stumble(self, problem: Trouble, subject: str) -> tuple[BillingEvent, ...]:
        """Have an operator look at something, once. What stands in the way of one checkout is one problem."""
        if self.closed or (problem, subject) in self.problems:
            return ()
        before = [p for p in sorted(self.problems) if p[1] == subject and p[0] in _OF_CHECKOUTS]
        found = ProblemFound(account=self.stripe_customer_id, problem=problem, subject=subject)
        return (*map(self._solved, before), found)

    def assess(self, terms: Terms) -> tuple[BillingEvent, ...]:
        """Say what all reports together come to, where that differs from what was said last."""
        events: list[BillingEvent] = []
        if (assessed := self._assessed(terms)) != self.assessed:
            events.append(assessed)
        problems = self._doubts(terms)
        mine = frozenset(p for p in self.problems if p[0] not in _OF_CHECKOUTS)
        events += [
            ProblemFound(account=self.stripe_customer_id, problem=problem, subject=subject)
            for problem, subject in sorted(problems - mine)
        ]
        events += [self._solved(problem) for problem in sorted(mine - problems)]
        return tuple(events)

    def plan(self, terms: Terms) -> Plan | None:
        """The plan of the price that was last known to be paid; None where none was of those that are sold."""
        return next((plan for known in self._in_order() if (plan := _plan(known, terms))), None)

    def is_over(self, at: datetime) -> bool:
        """Whether access has to have ended at `at`, as was assessed last."""
        until = self.assessed.suspend_at if self.assessed else None
        return until is not None and until <= at

    def suspended(self, suspension: int) -> tuple[BillingEvent, ...]:
        """The customer was suspended just now, for the `suspension`-th time."""
        if self.assessed is None or self.assessed.cause is None:
            return ()
        cause = self.assessed.cause
        return (AccessSuspended(stripe_customer_id=self.stripe_customer_id, suspension=suspension, cause=cause),)

    def restored(self, *, reactivated: bool) -> tuple[BillingEvent, ...]:
        if self.suspension is None:
            return ()
        return (AccessRestored(stripe_customer_id=self.stripe_customer_id, reactivated=reactivated),)

    # rules

    def _solved(self, problem: Problem) -> ProblemSolved:
        return ProblemSolved(account=self.stripe_customer_id, problem=problem[0], subject=problem[1])

    def _in_order(self) -> list[KnownSubscription]:
        """The subscriptions, the one that counts first: one that is in order, one that lives, one that ended.

        Of each kind the newest. Who pays for one keeps access, whatever became of another.
        """

        def weight(known: KnownSubscription) -> tuple[int, datetime, str]:
            newest = known.newest
            alive = 0 if newest.status in UNBEGUN else 1 if newest.status in ENDED else 2 + (newest.status in _GOOD)
            return (alive, newest.began_at, newest.subscription_id)

        return sorted(self.subscriptions.values(), key=weight, reverse=True)

    def _assessed(self, terms: Terms) -> Assessed:
        ordered = self._in_order()
        nothing = Assessed(stripe_customer_id=self.stripe_customer_id, plan=self.plan(terms))
        if not ordered:
            return nothing
        newest = ordered[0].newest
        suspend_at, cause = self._end(newest, terms)
        return replace(
            nothing,
            subscription_id=newest.subscription_id,
            status=newest.status,
            cancel_at=None if newest.status in ENDED else newest.cancel_at,
            suspend_at=suspend_at,
            cause=cause,
        )

    def _end(self, newest: SubscriptionReported, terms: Terms) -> tuple[datetime | None, Cause | None]:
        """When access ends, and why, as far as is known now. A first payment that is still to come ends nothing."""
        match newest.status:
            case "canceled":
                # Who cancels has paid until the period's end; who does not pay has not.
                ended = newest.ended_at or newest.said_at
                paid_until = ended if newest.unpaid else max(ended, newest.period_end or ended)
                return paid_until, Cause.ENDED
            case "incomplete_expired":
                return newest.ended_at or newest.said_at, Cause.ENDED
            case "paused":
                return newest.said_at, Cause.PAUSED
        return self._unpaid(newest, terms)

    def _unpaid(self, newest: SubscriptionReported, terms: Terms) -> tuple[datetime | None, Cause | None]:
        """When the days of grace are over, where money is owed. Two states say so, whatever invoices were told of."""
        mine = [i for i in self.invoices.values() if i.subscription_id == newest.subscription_id]
        if owed := [i.failed_at for i in mine if i.is_owed and i.failed_at]:
            return min(owed) + terms.grace, Cause.PAYMENT_FAILED
        if newest.status in {"past_due", "unpaid"} and not any(i.paid_at and i.paid_at >= newest.said_at for i in mine):
            # Nobody told of the invoice: it was made as the period began.
            return (newest.period_start or newest.said_at) + terms.grace, Cause.PAYMENT_FAILED
        return None, None

    def _doubts(self, terms: Terms) -> frozenset[Problem]:
        alive = [k.newest for k in self._in_order() if k.newest.status not in ENDED | UNBEGUN]
        found = {
            (Trouble.UNKNOWN_PRICE, price)
            for newest in alive[:1]
            if not any(price in terms.prices for price in newest.price_ids)
            for price in newest.price_ids or ("none",)
        }
        if len(alive) > 1:
            found.add((Trouble.SEVERAL_SUBSCRIPTIONS, alive[0].subscription_id))
        return frozenset(found)


def _plan(known: KnownSubscription, terms: Terms) -> Plan | None:
    """The plan of the price that was paid last; of several at a time, the largest."""
    sold = [(rank, _PLANS.index(terms.prices[price])) for price, rank in known.priced.items() if price in terms.prices]
    return _PLANS[max(sold)[1]] if sold else None


def note(noted: EventNoted) -> tuple[BillingEvent, ...]:
    """Record an event that nothing follows from, and have an operator look at it where something should have."""
    match noted.outcome:
        case Outcome.UNKNOWN:
            return (noted,)
        case Outcome.OTHER_MODE:
            trouble = Trouble.OTHER_MODE
        case Outcome.UNREADABLE:
            trouble = Trouble.UNREADABLE
    return (noted, ProblemFound(account=noted.event_id, problem=trouble, subject=noted.event_id))


# --- fold ---------------------------------------------------------------------------------------------------------


def evolve(state: BillingAccount | None, event: BillingEvent) -> BillingAccount:  # noqa: C901, PLR0911 - one case an event
    """What the account is after `event`."""
    if isinstance(event, AccountOpened):
        return BillingAccount(stripe_customer_id=event.stripe_customer_id, live=event.live)
    if isinstance(event, EventNoted):
        return BillingAccount(stripe_customer_id=event.event_id, live=event.live, heard=frozenset({event.event_id}))
    assert state is not None, "an account begins with AccountOpened"  # noqa: S101 - the store keeps the order
    match event:
        case SubscriptionReported() | InvoiceReported() | CheckoutReported():
            return replace(_knowing(state, event), heard=state.heard | {event.event_id})
        case Linked(customer_id=customer_id):
            return replace(state, linked=customer_id)
        case Assessed():
            return replace(state, assessed=event)
        case AccessSuspended(suspension=suspension):
            return replace(state, suspension=suspension)
        case AccessRestored():
            return replace(state, suspension=None)
        case AccountClosed():
            return replace(state, closed=True, suspension=None)
        case ProblemFound(problem=problem, subject=subject):
            return replace(state, problems=state.problems | {(problem, subject)})
        case ProblemSolved(problem=problem, subject=subject):
            return replace(state, problems=state.problems - {(problem, subject)})


def _knowing(state: BillingAccount, report: Report) -> BillingAccount:
    match report:
        case SubscriptionReported(subscription_id=name):
            known = with_subscription(state.subscriptions.get(name), report)
            return replace(state, subscriptions={**state.subscriptions, name: known})
        case InvoiceReported(invoice_id=name):
            invoice = with_invoice(state.invoices.get(name), report)
            return replace(state, invoices={**state.invoices, name: invoice})
        case CheckoutReported():
            return state
