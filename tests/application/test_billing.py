"""What Stripe tells has its effects on customers: in every order, each once, and never on somebody else's account."""

from dataclasses import replace
from itertools import permutations

import pytest

from application import customers, subscriptions
from application.erasure import Erase, erase
from application.team import AddTeamMember, add_team_member
from domain.billing import Terms
from domain.billing_events import CheckoutReported
from domain.plans import Plan
from domain.refusals import Forbidden
from tests.application.payer import CUS, TERMS, WHO, Payer
from tests.application.world import race


@pytest.fixture
def stripe(world):
    return Payer(world)


def standing(world, customer_id="acme"):
    profile = world.row("customer_profiles", customer_id=customer_id)
    paying = world.row("customer_subscriptions", customer_id=customer_id)
    assert profile["subscription_plan"] == paying["plan_name"]
    return profile["status"], paying["plan_name"]


def test_a_checkout_makes_a_customer_with_the_plan_of_its_price(world, stripe):
    stripe.tell(stripe.subscription("evt_1"), stripe.checkout())
    profile = world.row("customer_profiles", customer_id="acme")
    assert (profile["company_name"], profile["admin_email"]) == ("Example Works GmbH", "owner@example.com")
    assert (profile["stripe_customer_id"], profile["subscription_plan"]) == (CUS, "PROFESSIONAL")
    assert world.row("customer_subscriptions", customer_id="acme")["stripe_subscription_id"] == "sub_1"
    assert len(world.rows("customer_api_keys", customer_id="acme")) == 1
    assert stripe.account()["customer_id"] == "acme"
    log = world.scalar("SELECT string_agg(convert_from(state, 'UTF8'), '') FROM stored_events")
    assert "owner@example.com" not in log
    assert "Example Works" not in log


def test_every_order_and_repeats_end_the_same_with_one_effect_each(world, stripe):
    ends, effects = set(), set()
    life = [
        stripe.subscription("evt_1", 0, "incomplete", "price_x"),
        stripe.subscription("evt_2", 1),
        stripe.invoice("evt_3", 2, "open"),
        stripe.subscription("evt_4", 12, "canceled", ended_at=stripe.day(12), unpaid=True),
        stripe.checkout("evt_5"),
    ]
    world.wait(days=20)
    for number, order in enumerate(list(permutations(life))[::6]):
        name, cus = f"acme{number}", f"cus_{number}"
        told = [replace(r, names=name) if isinstance(r, CheckoutReported) else r for r in order]
        stripe.tell(*told, told[0], *told[2:4], cus=cus)
        account = stripe.account(cus)
        ends.add((*standing(world, name), account["is_suspended"], account["acts_at"], account["status"]))
        counts = {
            topic: world.scalar(
                "SELECT count(*) FROM stored_events WHERE topic LIKE %s AND customer_id = %s", f"{topic}@%", name
            )
            for topic in ("customer.onboarded", "customer.api-key-issued", "customer.suspended")
        }
        effects.add(tuple(counts.values()))
    assert ends == {("SUSPENDED", "PROFESSIONAL", True, stripe.day(12), "canceled")}
    assert effects == {(1, 1, 1)}


def test_sixteen_deliveries_of_one_event_have_one_effect(world, stripe):
    outcomes = race(16, lambda _: stripe.tell(stripe.checkout()))
    assert outcomes == [None] * 16
    kinds = world.kinds()
    assert [kinds.count(k) for k in ("Onboarded", "ApiKeyIssued", "CheckoutReported", "Linked")] == [1, 1, 1, 1]


def test_sixteen_different_events_at_once_are_all_taken_in(world, stripe):
    stripe.tell(stripe.checkout())
    race(16, lambda n: stripe.tell(stripe.subscription(f"evt_{n}", n, price="price_x" if n == 15 else "price_s")))
    assert world.kinds().count("SubscriptionReported") == 16
    assert standing(world) == ("ACTIVE", "SCALE")


def test_a_failed_payment_is_borne_with_and_then_suspends_and_paying_lifts_that(world, stripe):
    stripe.tell(stripe.subscription("evt_1"), stripe.checkout())
    world.pipeline()
    stripe.tell(stripe.invoice("evt_2", 1, "open"), stripe.subscription("evt_3", 1, "past_due"))
    assert (standing(world)[0], stripe.account()["acts_at"]) == ("ACTIVE", stripe.day(8))
    world.wait(days=7, hours=23)
    assert stripe.end() == []
    world.wait(hours=2)
    assert (stripe.end(), stripe.end()) == ([CUS], [])
    assert standing(world)[0] == "SUSPENDED"
    assert world.row("customer_subscriptions", customer_id="acme")["status"] == "SUSPENDED"
    with pytest.raises(Forbidden):
        world.request()
    stripe.tell(stripe.invoice("evt_4", 9, "paid"))
    assert standing(world)[0] == "ACTIVE"
    assert world.row("customer_pipeline_configs", customer_id="acme")["next_run_time"] > world.at
    assert world.request()
    assert world.kinds().count("AccessRestored") == 1


def test_many_processes_end_access_once(world, stripe):
    names = [f"acme{n}" for n in range(6)]
    for n, name in enumerate(names):
        stripe.tell(stripe.subscription("evt_1", status="paused"), stripe.checkout(names=name), cus=f"cus_{n}")
        stripe.tell(stripe.subscription("evt_2", 1), cus=f"cus_{n}")
        stripe.tell(stripe.subscription("evt_3", 2, "canceled", ended_at=stripe.day(2), unpaid=True), cus=f"cus_{n}")
    before = world.kinds().count("AccessSuspended")
    world.wait(days=3)
    race(8, lambda _: stripe.end(limit=2))
    while stripe.end(limit=2):
        pass
    assert world.kinds().count("AccessSuspended") - before == 6
    assert {standing(world, name)[0] for name in names} == {"SUSPENDED"}


def test_who_cancels_keeps_what_was_paid_for(world, stripe):
    stripe.tell(stripe.subscription("evt_1"), stripe.checkout())
    stripe.tell(stripe.subscription("evt_2", 5, "canceled", ended_at=stripe.day(5)))
    world.wait(days=29)
    assert (stripe.end(), standing(world)[0]) == ([], "ACTIVE")
    world.wait(days=2)
    assert (stripe.end(), standing(world)[0]) == ([CUS], "SUSPENDED")
    stripe.tell(stripe.subscription("evt_3", 31, name="sub_2", price="price_x", began_at=stripe.day(31)))
    assert standing(world) == ("ACTIVE", "SCALE")


def test_an_operators_suspension_is_not_lifted_by_a_payment(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1", 0, "past_due"), stripe.invoice("evt_2", 0, "open"))
    world.wait(days=8)
    stripe.end()
    world.suspend()
    stripe.tell(stripe.invoice("evt_3", 8, "paid"), stripe.subscription("evt_4", 8))
    assert standing(world)[0] == "SUSPENDED"
    world.reactivate()
    assert standing(world)[0] == "ACTIVE"
    stripe.tell(stripe.invoice("evt_3", 8, "paid"))
    assert standing(world)[0] == "ACTIVE"


def test_an_operator_who_suspended_first_and_reactivates_finds_the_money_still_owed(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1", 0, "past_due"), stripe.invoice("evt_2", 0, "open"))
    world.suspend()
    world.wait(days=8)
    assert stripe.end() == []
    world.reactivate()
    assert (stripe.end(), standing(world)[0]) == ([CUS], "SUSPENDED")


def test_an_operator_may_bear_with_a_customer_that_does_not_pay(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1", 0, "past_due"), stripe.invoice("evt_2", 0, "open"))
    world.wait(days=8)
    stripe.end()
    world.reactivate()
    assert (stripe.end(), standing(world)[0]) == ([], "ACTIVE")


def test_a_smaller_plan_keeps_what_there_is_and_takes_nothing_new(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1", price="price_p"))
    team = [{"email": f"p{n}@example.com", "name": "P", "role": "MEMBER"} for n in range(4)]

    def add(person):
        add_team_member(AddTeamMember(**world.stamp(), customer_id="acme", **person), world.platform)

    for person in team[:3]:
        add(person)
    stripe.tell(stripe.subscription("evt_2", 1, price="price_s"))
    assert standing(world)[1] == "STARTER"
    assert len(world.rows("customer_team_members", customer_id="acme", is_active=True)) == 3
    with pytest.raises(Forbidden, match="allows 2 team members"):
        add(team[3])


def test_an_operators_plan_lasts_until_stripe_tells_of_another_price(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1"))
    change = subscriptions.ChangePlan(**world.stamp(), customer_id="acme", plan=Plan.SCALE, reason="a gift")
    subscriptions.change_plan(change, world.platform)
    stripe.tell(stripe.subscription("evt_2", 1))
    assert standing(world)[1] == "SCALE"
    stripe.tell(stripe.subscription("evt_3", 2, price="price_s"))
    assert standing(world)[1] == "STARTER"


def test_an_unknown_price_is_a_problem_until_it_is_sold_and_told_again(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1"), stripe.subscription("evt_2", 1, price="price_new"))
    assert standing(world)[1] == "PROFESSIONAL"
    assert stripe.problems() == [("unknown-price", "price_new")]
    wider = Terms(prices={**TERMS.prices, "price_new": Plan.SCALE})
    stripe.tell(stripe.subscription("evt_2", 1, price="price_new"), terms=wider)
    assert (standing(world)[1], stripe.problems()) == ("SCALE", [])


@pytest.mark.parametrize(
    ("checkout", "contact", "problem"),
    [
        ({"names": None}, WHO, "bad-customer-id"),
        ({"names": "acme"}, WHO, "customer-taken"),
        ({"names": "ACME"}, WHO, "customer-taken"),
        ({"names": "ACME", "vouched": True}, WHO, "customer-taken"),
        ({"names": "other"}, None, "no-contact"),
    ],
)
def test_a_checkout_that_cannot_be_a_customers_is_kept_for_an_operator(world, stripe, checkout, contact, problem):
    world.onboard()
    stripe.tell(stripe.subscription("evt_1", price="price_x"), stripe.checkout(**checkout), contact=contact)
    assert stripe.problems() == [(problem, "cs_evt_c")]
    assert standing(world) == ("ACTIVE", "PROFESSIONAL")
    assert world.row("customer_profiles", customer_id="acme")["stripe_customer_id"] is None
    # The operator does it by hand, and what was reported takes effect.
    world.onboard("byhand", stripe_customer_id=CUS)
    stripe.end()
    assert (standing(world, "byhand"), stripe.problems()) == (("ACTIVE", "SCALE"), [])


def test_a_name_that_the_platform_put_there_links_a_customer_that_exists(world, stripe):
    world.onboard()
    stripe.tell(stripe.subscription("evt_1", price="price_x"), stripe.checkout(vouched=True))
    assert standing(world) == ("ACTIVE", "SCALE")
    # It is taken now, whoever vouches for another payer.
    stripe.tell(stripe.checkout("evt_d", vouched=True), cus="cus_2")
    assert stripe.problems() == [("customer-taken", "cs_evt_d")]
    assert world.row("customer_profiles", customer_id="acme")["stripe_customer_id"] == CUS


def test_nobody_takes_over_a_payer_by_naming_it(world, stripe):
    command = {"company_name": "Mallory", "admin_email": "m@example.com", "stripe_customer_id": CUS}
    onboard = customers.Onboard(**world.stamp("anyone"), customer_id="mallory", **command)
    customers.onboard(onboard, world.platform, world.vault)
    stripe.tell(stripe.subscription("evt_1", price="price_x"))
    stripe.end()
    assert (stripe.account()["customer_id"], standing(world, "mallory")[1]) == (None, "STARTER")


def test_an_unpaid_checkout_makes_nobody_until_it_is_paid(world, stripe):
    stripe.tell(stripe.checkout(paid=False))
    assert world.rows("customer_profiles") == []
    stripe.tell(stripe.checkout("evt_d", type="checkout.session.async_payment_succeeded"))
    assert standing(world)[0] == "ACTIVE"


def test_paying_for_another_with_the_same_payer_is_a_problem(world, stripe):
    stripe.tell(stripe.checkout(), stripe.checkout("evt_d", names="other"))
    assert stripe.problems() == [("other-checkout", "cs_evt_d")]
    assert [row["customer_id"] for row in world.rows("customer_profiles")] == ["acme"]


def test_who_did_it_and_because_of_what_is_in_the_log(world, stripe):
    stripe.tell(stripe.checkout(), stripe.subscription("evt_1", 0, "past_due"))
    world.wait(days=8)
    stripe.end()
    found = world.store.recorder.select_notifications(start=0, limit=1000)
    recorded = [r for n in found for r in world.mapper.to_domain_events(n)]
    onboarded = next(r for r in recorded if type(r.event).__name__ == "Onboarded")
    suspended = next(r for r in recorded if type(r.event).__name__ == "AccessSuspended")
    last = [r for r in recorded if type(r.event).__name__ == "SubscriptionReported"][-1]
    assert onboarded.envelope.by.actor == "stripe"
    assert suspended.envelope.by.actor == "service:s1"
    assert suspended.envelope.by.causation_id == last.envelope.by.command_id


@pytest.mark.parametrize("told_again", [True, False])
def test_of_who_was_erased_nothing_is_kept_and_nothing_follows(world, stripe, told_again):
    reports = stripe.subscription("evt_1", 0, price="price_new"), stripe.invoice("evt_2", 0, "open")
    stripe.tell(stripe.checkout(), *reports)
    erase(Erase(**world.stamp(), customer_id="acme", reason="asked for it"), world.platform)
    if told_again:
        stripe.tell(stripe.subscription("evt_3", 1, "past_due", price="price_x"), stripe.checkout("evt_4"))
        assert world.kinds().count("SubscriptionReported") == 2
    world.wait(days=30)
    stripe.end()
    assert stripe.end() == []
    account = stripe.account()
    told = ("customer_id", "stripe_subscription_id", "status", "plan", "acts_at", "cause")
    assert [account[column] for column in told] == [None] * len(told)
    assert stripe.problems() == []
    assert world.row("customer_profiles", customer_id="acme")["status"] == "ERASED"
    assert world.rows("customer_subscriptions") == []
    assert "Suspended" not in world.kinds()
