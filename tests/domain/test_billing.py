"""What Stripe reports comes to the same thing in every order, and to what was paid for."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from domain import billing
from domain.billing import BillingAccount, Terms
from domain.billing_events import (
    AccountOpened,
    Cause,
    EventNoted,
    InvoiceReported,
    Outcome,
    ProblemFound,
    SubscriptionReported,
    Trouble,
)
from domain.plans import Plan

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
TERMS = Terms(prices={"price_s": Plan.STARTER, "price_p": Plan.PROFESSIONAL, "price_x": Plan.SCALE})
STATUSES = ("incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused")
DAYS = st.integers(0, 40)


def day(number):
    return NOON + timedelta(days=number)


def subscription(event_id, said, status="active", price="price_p", name="sub_1", **more):
    kind = {0: "created"}.get(said, "deleted" if status == "canceled" else "updated")
    given = {"began_at": NOON, "period_start": NOON, "period_end": day(30), "type": f"customer.subscription.{kind}"}
    return SubscriptionReported(
        event_id=event_id,
        said_at=day(said),
        subscription_id=name,
        status=status,
        **{"price_ids": (price,) if price else (), **given, **more},
    )


def invoice(event_id, said, status, name="in_1", of="sub_1"):
    failed = status == "open"
    kind = "payment_failed" if failed else "paid"
    return InvoiceReported(
        event_id=event_id,
        said_at=day(said),
        type=f"invoice.{kind}",
        invoice_id=name,
        status=status,
        subscription_id=of,
        failed=failed,
    )


def told(reports, evolve=billing.evolve, terms=TERMS):
    """The account after these reports, assessed after each as they come in; and the plan that its customer has."""
    state = evolve(None, AccountOpened(stripe_customer_id="cus_1", live=False))
    plan = None
    for report in reports:
        for event in state.hear(report):
            state = evolve(state, event)
        for event in state.assess(terms):
            state = evolve(state, event)
        plan = state.assessed.plan or plan
    return state, plan


def ends(reports, evolve=billing.evolve):
    """What every order of these reports comes to."""
    return {_comparable(*told(order, evolve)) for order in permutations(reports)}


def _comparable(state, plan):
    return state.assessed, state.problems, frozenset(state.heard), plan


def by_arrival(state: BillingAccount | None, event):
    """What is told last counts: the mistake that order-independence is there to exclude."""
    known = billing.evolve(state, event)
    match event:
        case SubscriptionReported():
            last = replace(known.subscriptions[event.subscription_id], newest=event)
            return replace(known, subscriptions={**known.subscriptions, event.subscription_id: last})
        case InvoiceReported():
            last = replace(known.invoices[event.invoice_id], status=event.status)
            return replace(known, invoices={**known.invoices, event.invoice_id: last})
    return known


A_LIFE = [
    subscription("evt_1", 0, "incomplete", "price_p"),
    subscription("evt_2", 1, "active", "price_p"),
    invoice("evt_3", 2, "open"),
    subscription("evt_4", 2, "past_due", "price_p"),
    invoice("evt_5", 4, "paid"),
    subscription("evt_6", 4, "active", "price_x"),
]


def test_every_order_of_a_life_ends_the_same():
    assert len(ends(A_LIFE)) == 1
    state, plan = told(A_LIFE)
    assert (plan, state.assessed.status, state.assessed.suspend_at) == (Plan.SCALE, "active", None)


def test_what_counts_by_arrival_is_found_out():
    assert len(ends(A_LIFE, by_arrival)) > 1


@st.composite
def _reports(draw):
    found = []
    for number in range(draw(st.integers(1, 7))):
        event_id, said = f"evt_{number}", draw(DAYS)
        if draw(st.booleans()):
            name = draw(st.sampled_from(("sub_1", "sub_2")))
            found.append(
                subscription(
                    event_id,
                    said,
                    draw(st.sampled_from(STATUSES)),
                    draw(st.sampled_from((*TERMS.prices, "price_unknown", None))),
                    name,
                    began_at=day(0 if name == "sub_1" else 3),
                    period_end=draw(st.none() | DAYS.map(day)),
                    ended_at=draw(st.none() | DAYS.map(day)),
                    unpaid=draw(st.booleans()),
                )
            )
        else:
            status = draw(st.sampled_from(("open", "paid", "void", "uncollectible")))
            name = draw(st.sampled_from(("in_1", "in_2")))
            found.append(invoice(event_id, said, status, name, of=draw(st.sampled_from(("sub_1", "sub_2", None)))))
    return found


@st.composite
def _two_orders(draw):
    reports = draw(_reports())
    return [draw(st.permutations(reports + draw(st.lists(st.sampled_from(reports), max_size=5)))) for _ in range(2)]


@settings(max_examples=100, deadline=None)
@given(_two_orders())
def test_any_order_and_any_repeat_end_the_same(orders):
    one, other = (_comparable(*told(order)) for order in orders)
    assert one == other


@settings(max_examples=300, deadline=None, database=None, phases=(Phase.generate,))
@given(_two_orders())
def _by_arrival(orders):
    one, other = (_comparable(*told(order, by_arrival)) for order in orders)
    assert one == other


def test_the_property_catches_what_counts_by_arrival():
    with pytest.raises(AssertionError):
        _by_arrival()


@pytest.mark.parametrize(
    ("reports", "ends_on", "cause"),
    [
        ([subscription("e", 0, "trialing")], None, None),
        ([subscription("e", 0, "incomplete")], None, None),
        ([subscription("e", 0, "incomplete_expired", ended_at=day(1))], 1, Cause.ENDED),
        ([subscription("e", 5, "paused")], 5, Cause.PAUSED),
        # Whoever cancels has paid until the end of the period, and whoever is cancelled for not paying has not.
        ([subscription("e", 5, "canceled", ended_at=day(5))], 30, Cause.ENDED),
        ([subscription("e", 30, "canceled", ended_at=day(30))], 30, Cause.ENDED),
        ([subscription("e", 5, "canceled", ended_at=day(5), unpaid=True)], 5, Cause.ENDED),
        # The days of grace begin with the first failure, and do not begin again with the next one.
        ([invoice("e", 2, "open"), subscription("f", 2, "past_due"), invoice("g", 6, "open")], 9, Cause.PAYMENT_FAILED),
        ([invoice("e", 2, "open"), subscription("f", 2, "unpaid")], 9, Cause.PAYMENT_FAILED),
        # Nobody told of the invoice, or not of this subscription's.
        ([subscription("e", 3, "past_due")], 7, Cause.PAYMENT_FAILED),
        ([subscription("e", 3, "active"), invoice("f", 4, "open", of="sub_2")], None, None),
        ([subscription("e", 3, "active"), invoice("f", 4, "open", of=None)], None, None),
        # Paid, before Stripe tells that the subscription is active again.
        ([subscription("e", 2, "past_due"), invoice("f", 2, "open"), invoice("g", 4, "paid")], None, None),
        # The newest that lives counts, else the newest that ended.
        ([subscription("e", 2, "canceled"), subscription("f", 3, name="sub_2", began_at=day(2))], None, None),
        # Who pays for one keeps access, whatever became of a newer one.
        ([subscription("e", 1), subscription("f", 9, "paused", name="sub_2", began_at=day(2))], None, None),
        ([subscription("e", 1), subscription("f", 9, "past_due", name="sub_2", began_at=day(2))], None, None),
    ],
)
def test_when_access_ends(reports, ends_on, cause):
    assessed = told(reports)[0].assessed
    assert assessed.suspend_at == (None if ends_on is None else day(ends_on))
    assert assessed.cause is cause


def test_within_a_second_the_better_state_counts():
    first = subscription("evt_z", 0, "incomplete")
    paid = subscription("evt_a", 0, "active", type="customer.subscription.updated")
    assert told([first, paid])[0].assessed.status == told([paid, first])[0].assessed.status == "active"


def test_an_unknown_price_keeps_the_plan_and_is_a_problem_until_it_is_known():
    reports = [subscription("e", 0, price="price_p"), subscription("f", 1, price="price_new")]
    state, plan = told(reports)
    assert plan == Plan.PROFESSIONAL
    assert state.problems == {(Trouble.UNKNOWN_PRICE, "price_new")}
    wider = Terms(prices={**TERMS.prices, "price_new": Plan.SCALE})
    for event in state.assess(wider):
        state = billing.evolve(state, event)
    assert (state.assessed.plan, state.problems) == (Plan.SCALE, frozenset())


def test_of_several_items_the_largest_plan_counts_and_others_are_no_problem():
    report = subscription("e", 0, price_ids=("price_s", "price_seats", "price_x"), price=None)
    state, plan = told([report])
    assert (plan, state.problems) == (Plan.SCALE, frozenset())


def test_a_subscription_that_was_never_paid_says_nothing_about_the_plan():
    assert told([subscription("e", 0), subscription("f", 2, "incomplete", "price_x", "sub_2")])[1] == Plan.PROFESSIONAL


def test_two_that_live_are_a_problem():
    two = [subscription("e", 0), subscription("f", 1, name="sub_2", began_at=day(1))]
    assert told(two)[0].problems == {(Trouble.SEVERAL_SUBSCRIPTIONS, "sub_2")}


def test_cancelling_at_the_periods_end_is_shown_and_ends_nothing_yet():
    assessed = told([subscription("e", 0, cancel_at=day(30))])[0].assessed
    assert (assessed.cancel_at, assessed.suspend_at) == (day(30), None)


@pytest.mark.parametrize(("outcome", "problems"), [("unknown", 0), ("other-mode", 1), ("unreadable", 1)])
def test_an_event_that_nothing_follows_from(outcome, problems):
    noted = EventNoted(event_id="evt_1", said_at=NOON, type="x.y", live=True, outcome=Outcome(outcome))
    events = billing.note(noted)
    assert len([e for e in events if isinstance(e, ProblemFound)]) == problems
    assert billing.evolve(None, events[0]).heard == {"evt_1"}
