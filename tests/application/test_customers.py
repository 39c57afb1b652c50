"""Customers on the real store: who may become one, what they may keep, and what every change leaves behind."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from pydantic import ValidationError

from adapters.kms.vault import EnvelopeVault
from application import customers, subscriptions
from application.customers import Issued
from application.ports import Away, Purpose, SealedFor
from domain import customer_events, subscription_events
from domain.refusals import Conflict, Forbidden, Invalid, NotFound
from tests.application.busy import Tables
from tests.application.test_belongings import issue, revoke
from tests.application.world import World, race


class Absent:
    """A holder of wrapping keys that does not answer."""

    def wrap(self, plaintext: bytes, owner: SealedFor) -> bytes:
        raise Away("gone")

    unwrap = wrap


class TestOnboarding:
    def test_leaves_profile_key_subscription_and_usage(self, world):
        issued = world.onboard(plan="SCALE")
        key = issued.api_key.get_secret_value()
        assert issued.new_customer
        assert key.startswith("acme_api_")
        assert len(key) == len("acme_api_") + 16
        profile = world.row("customer_profiles")
        assert (profile["customer_id"], profile["status"], profile["subscription_plan"]) == ("acme", "ACTIVE", "SCALE")
        assert profile["company_name"] == "ACME Corporation"
        row = world.row("customer_api_keys")
        assert row["api_key_hash"] == hashlib.sha256(key.encode()).hexdigest()
        assert row["last4"] == key[-4:]
        assert row["expires_at"] - row["created_at"] == timedelta(days=90)
        owner = SealedFor("acme", row["api_key_id"], Purpose.API_KEY)
        assert world.vault.open(bytes(row["encrypted_api_key"]), owner) == key.encode()
        subscription = world.row("customer_subscriptions")
        assert (subscription["max_pipelines_per_day"], subscription["max_concurrent_pipelines"]) == (100, 10)
        assert world.usage() == (0, 0, 0)

    def test_of_an_id_that_is_taken_is_refused_and_tells_nothing(self, acme):
        before = acme.kinds()
        with pytest.raises(Conflict, match="taken"):
            acme.onboard(company_name="Mallory", plan="SCALE")
        assert acme.kinds() == before

    @pytest.mark.parametrize("known_as", ["nobody", "owner", "admin"])
    def test_of_an_id_that_differs_in_case_is_refused(self, acme, known_as):
        """Also in a process that never had the customer's keys in hand."""
        acme.vault.forget("acme")
        before = acme.kinds()
        with pytest.raises(Conflict, match="taken"):
            acme.onboard("ACME", known_as=known_as)
        assert acme.kinds() == before

    def test_in_another_case_after_a_crash_between_keys_and_customer(self, world):
        world.vault.prepare("Acme")
        world.vault.forget("Acme")
        assert world.onboard("acme").new_customer

    def test_by_fifty_at_once_makes_one_customer(self, database_url, tmp_path):
        with World(database_url, tmp_path / "key", size=16) as world:
            answers = race(50, lambda _: world.onboard())
            assert sum(isinstance(a, Issued) for a in answers) == 1
            assert sum(isinstance(a, Conflict) for a in answers) == 49
            assert world.kinds() == ["Onboarded", "ApiKeyIssued", "Opened"]

    def test_again_by_its_owner_gives_another_key_and_keeps_the_plan(self, acme):
        first = acme.row("customer_api_keys")
        again = acme.onboard(plan="SCALE", known_as="owner", company_name="Other")
        assert not again.new_customer
        assert (again.plan, again.company_name) == ("PROFESSIONAL", "ACME Corporation")
        rows = {row["api_key_id"]: row for row in acme.rows("customer_api_keys")}
        assert rows[first["api_key_id"]]["expires_at"] == acme.at + timedelta(hours=24)
        assert rows[again.api_key_id]["expires_at"] == acme.at + timedelta(days=90)

    def test_again_by_the_admin_may_change_the_plan(self, acme):
        assert acme.onboard(plan="SCALE", known_as="admin").plan == "SCALE"
        assert acme.row("customer_subscriptions")["max_pipelines_per_day"] == 100
        assert acme.row("customer_profiles")["subscription_plan"] == "SCALE"

    def test_a_third_time_revokes_the_oldest_key(self, acme):
        for _ in range(2):
            acme.onboard(known_as="owner")
        states = [row["is_active"] for row in sorted(acme.rows("customer_api_keys"), key=lambda r: r["position"])]
        assert sorted(states) == [False, True, True]

    def test_while_suspended_is_refused(self, acme):
        acme.suspend()
        with pytest.raises(Forbidden, match="Account suspended"):
            acme.onboard(known_as="owner")

    def test_while_the_keys_are_away_leaves_nothing(self, world):
        vault = world.vault
        world.vault = EnvelopeVault(Absent(), world.data_keys)
        with pytest.raises(Away):
            world.onboard()
        assert world.kinds() == []
        world.vault = vault
        assert world.onboard().new_customer

    def test_never_repeats_a_key_in_anything_printed(self, acme):
        issued = acme.onboard(known_as="owner")
        command = customers.Onboard(**acme.stamp(), customer_id="a_b", company_name="A", admin_email="a@b.co")
        for text in (repr(issued), str(issued), repr(command), str(command)):
            assert issued.api_key.get_secret_value() not in text
            assert command.key_part.get_secret_value() not in text

    @pytest.mark.parametrize("wrong", [{"admin_email": "nobody"}, {"company_name": ""}, {"plan": "FREE"}, {"extra": 1}])
    def test_wrong_values_are_named_and_not_repeated(self, world, wrong):
        with pytest.raises(ValidationError) as raised:
            world.onboard(**wrong)
        assert "nobody" not in str(raised.value)
        assert "FREE" not in str(raised.value).replace("'STARTER', 'PROFESSIONAL' or 'SCALE'", "")


class TestProvisioning:
    def provision(self, world):
        command = customers.Provision(**world.stamp("service"), customer_id="acme")
        return customers.provision(command, world.platform, Tables())

    def test_records_the_tables_and_queues_one_check(self, acme):
        for _ in range(3):
            assert len(self.provision(acme)) == 3
        assert acme.kinds().count("DatasetProvisioned") == 1
        assert acme.row("customer_profiles")["dataset_created"]
        assert acme.row("scheduled_pipeline_runs")["trigger_type"] == "onboarding"

    def test_by_many_at_once(self, acme):
        race(8, lambda _: self.provision(acme))
        assert acme.kinds().count("DatasetProvisioned") == acme.kinds().count("RunScheduled") == 1


class TestSuspension:
    def test_stops_and_brings_back(self, acme):
        config_id = acme.pipeline()
        acme.suspend()
        assert acme.row("customer_profiles")["status"] == "SUSPENDED"
        assert acme.row("customer_subscriptions")["status"] == "SUSPENDED"
        assert acme.row("customer_pipeline_configs")["next_run_time"] is None
        with pytest.raises(Forbidden, match="Account suspended"):
            acme.request()
        acme.wait(days=3)
        acme.reactivate()
        assert acme.row("customer_profiles")["status"] == "ACTIVE"
        slot = acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"]
        assert slot == acme.at.replace(hour=2) + timedelta(days=1)
        acme.request()

    def test_twice_is_once(self, acme):
        for _ in range(2):
            acme.suspend()
        for _ in range(2):
            acme.reactivate()
        told = [type(event) for event in acme.events()]
        off = [customer_events.Suspended, subscription_events.Suspended]
        on = [customer_events.Reactivated, subscription_events.Reactivated]
        assert [kind for kind in told if kind in {*off, *on}] == [*off, *on]


class TestOperators:
    def test_a_plan_and_exceptions_land_in_every_table(self, acme):
        command = subscriptions.ChangePlan(**acme.stamp(), customer_id="acme", plan="SCALE", reason="upgrade")
        subscriptions.change_plan(command, acme.platform)
        acme.limits(max_pipelines_per_day=7, max_providers=1)
        acme.limits(max_providers=None)
        subscription = acme.row("customer_subscriptions")
        assert (subscription["plan_name"], subscription["max_pipelines_per_day"]) == ("SCALE", 7)
        assert subscription["max_providers"] == 10
        assert acme.row("customer_usage")["daily_limit"] == 7
        assert acme.row("customer_profiles")["subscription_plan"] == "SCALE"

    def test_reset_and_recount(self, acme):
        for _ in range(3):
            acme.request()
        orders = acme.claim()
        reset = subscriptions.ResetUsage(**acme.stamp(), customer_id="acme", reason="goodwill", monthly=True)
        subscriptions.reset_usage(reset, acme.platform)
        assert acme.usage() == (0, 0, 3)
        recount = subscriptions.RecountUsage(**acme.stamp(), customer_id="acme", reason="check")
        subscriptions.recount_usage(recount, acme.platform)
        assert acme.usage() == (0, 0, 3)
        acme.report(orders)
        subscriptions.recount_usage(recount, acme.platform)
        assert acme.usage() == (0, 0, 0)

    @pytest.mark.parametrize("wrong", [{"max_providers": -1}, {"max_pipelines_per_day": 1_000_001}])
    def test_limits_have_bounds(self, acme, wrong):
        with pytest.raises((ValidationError, Invalid)):
            acme.limits(**wrong)


UNKNOWN = [
    lambda w: w.request("nobody"),
    lambda w: w.pipeline("nobody"),
    lambda w: w.change("x", "nobody", is_active=False),
    lambda w: w.suspend("nobody"),
    lambda w: w.reactivate("nobody"),
    lambda w: w.limits("nobody", max_providers=1),
    lambda w: issue(w, "nobody"),
    lambda w: revoke(w, "x", "nobody"),
    lambda w: w.cancel("11111111-1111-4111-8111-111111111111", "nobody"),
    lambda w: w.retry("11111111-1111-4111-8111-111111111111", "nobody"),
    lambda w: customers.change_contact(customers.ChangeContact(**w.stamp(), customer_id="nobody"), w.platform),
]


@pytest.mark.parametrize("ask", UNKNOWN)
def test_a_customer_that_does_not_exist_is_not_found(acme, ask):
    before = acme.kinds()
    with pytest.raises(NotFound):
        ask(acme)
    assert acme.kinds() == before


def test_a_customer_is_not_found_under_another_spelling(acme):
    """Rows are looked up by the id as it was chosen: what is stored under another spelling would be lost."""
    for ask in (lambda: acme.request("ACME"), lambda: acme.pipeline("Acme"), lambda: acme.suspend("aCme")):
        with pytest.raises(NotFound):
            ask()


def test_contact(acme):
    command = customers.ChangeContact(**acme.stamp(), customer_id="acme", admin_email="new@acmecorp.com")
    customers.change_contact(command, acme.platform)
    profile = acme.row("customer_profiles")
    assert (profile["admin_email"], profile["company_name"]) == ("new@acmecorp.com", "ACME Corporation")


def test_customers_do_not_wait_for_each_other(acme):
    """A customer whose row is held for long holds up nobody else's commands."""
    acme.onboard("other")
    with ThreadPoolExecutor(1) as threads:
        with acme.store.transaction() as session:
            session.lock_customers(["acme"])
            waiting = threads.submit(acme.request, "acme")
            assert acme.request("other")
            assert not waiting.done()
        assert waiting.result(timeout=5)
