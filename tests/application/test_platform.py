"""The store as use cases see it: all or nothing, decided again when somebody was first, and fast to load."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import msgspec
import pytest

from application.command import Command
from application.customers import ChangeContact, change_contact
from application.platform import Platform, Transaction
from application.ports import Away
from application.session import Superseded
from application.streams import SNAPSHOT_EVERY
from domain import subscription
from domain.customer_events import CompanyRenamed
from domain.identity import customer_stream, subscription_stream
from domain.plans import Plan
from domain.refusals import Conflict
from tests.application.world import World, race


def rename(world: World, name: str) -> None:
    command = ChangeContact(**world.stamp(), customer_id="acme", company_name=name)
    change_contact(command, world.platform)


def folded(world: World, customer_id: str = "acme") -> subscription.Subscription:
    """The subscription told from its first event on."""
    state = None
    for recorded in world.platform.history(subscription_stream(customer_id)):
        state = subscription.evolve(state, recorded.event)
    assert state is not None
    return state


def loaded(world: World, customer_id: str = "acme") -> subscription.Subscription:
    """The subscription as a use case gets it."""
    return world.platform.transact(Command(**world.stamp()), lambda tx: tx.subscription(customer_id).must(""))


class TestSnapshots:
    @pytest.fixture
    def long(self, acme):
        acme.limits(max_pipelines_per_day=1000, max_concurrent_pipelines=4)
        for _ in range(SNAPSHOT_EVERY):
            acme.request()
            acme.report(acme.claim())
        acme.request()
        acme.claim()
        acme.suspend()
        return acme

    def test_tell_the_same_as_the_whole_story(self, long):
        assert long.scalar("SELECT version FROM snapshots") >= SNAPSHOT_EVERY * 3
        assert loaded(long) == folded(long)
        assert len(loaded(long).running) == 1

    def test_are_used(self, long):
        """The control: with a snapshot that lies, the state is a lie."""
        lie = replace(folded(long), plan=Plan.STARTER)
        long.execute("UPDATE snapshots SET state = %s", msgspec.json.encode(lie))
        assert loaded(long) == lie

    def test_of_another_shape_are_passed_over(self, long):
        long.execute("UPDATE snapshots SET shape = shape + 1, state = 'nonsense'")
        assert loaded(long) == folded(long)

    def test_that_are_lost_are_no_loss(self, long):
        long.execute("DELETE FROM snapshots")
        assert loaded(long) == folded(long)

    def test_hold_every_field_of_the_state(self, long):
        state = loaded(long)
        assert msgspec.json.decode(msgspec.json.encode(state), type=subscription.Subscription) == state


class TestTransactions:
    def test_a_refusal_stores_nothing(self, acme):
        def work(tx: Transaction) -> None:
            customer = tx.customer("acme")
            customer.append([CompanyRenamed(company_name="x")])
            tx.flush()
            raise Conflict("on second thoughts")

        before = acme.kinds()
        with pytest.raises(Conflict):
            acme.platform.transact(Command(**acme.stamp()), work)
        assert acme.kinds() == before
        assert acme.row("customer_profiles")["company_name"] == "ACME Corporation"

    def test_whoever_comes_second_decides_again(self, acme):
        tries = []

        def work(tx: Transaction) -> None:
            customer = tx.customer("acme")
            tries.append(customer.must("").company_name)
            if len(tries) == 1:
                rename(acme, "First")
            customer.append([CompanyRenamed(company_name=tries[-1] + " and Second")])

        acme.platform.transact(Command(**acme.stamp()), work)
        assert tries == ["ACME Corporation", "First"]
        assert acme.row("customer_profiles")["company_name"] == "First and Second"

    def test_who_is_always_second_is_told_to_come_back(self, acme):
        tries = []

        def work(tx: Transaction) -> None:
            customer = tx.customer("acme")
            tries.append(customer.must(""))
            rename(acme, f"Faster {len(tries)}")
            customer.append([CompanyRenamed(company_name="Late")])

        with pytest.raises(Away, match="Too many others"):
            acme.platform.transact(Command(**acme.stamp()), work)
        assert len(tries) == 10
        assert acme.row("customer_profiles")["company_name"] == "Faster 10"

    def test_a_version_that_is_taken_is_never_overwritten(self, acme):
        """The control: without deciding again, the second writer is refused by the store itself."""

        def work(tx: Transaction) -> None:
            customer = tx.customer("acme")
            rename(acme, "First")
            customer.append([CompanyRenamed(company_name="Second")])

        with pytest.raises(Superseded):
            acme.platform._once(Command(**acme.stamp()), work)
        assert acme.row("customer_profiles")["company_name"] == "First"

    def test_many_at_once_lose_nothing(self, acme):
        race(16, lambda n: rename(acme, f"Name {n}"))
        changed = [e.company_name for e in acme.events() if isinstance(e, CompanyRenamed)]
        assert sorted(changed) == sorted(f"Name {n}" for n in range(16))
        assert acme.row("customer_profiles")["company_name"] == changed[-1]


def test_every_event_says_who_asked_and_when(acme):
    rename(acme, "New")
    last = acme.platform.history(customer_stream("acme"))[-1].envelope
    assert (last.at, last.customer_id, last.by.actor) == (acme.at, "acme", "admin")
    assert (last.version, last.topic) == (3, "customer.company-renamed@1")


def test_a_stream_that_never_was_has_no_history(acme):
    assert Platform(acme.store, acme.mapper).history(customer_stream("nobody")) == []


def test_as_many_commands_as_connections_open_data_keys(database_url, tmp_path):
    """Each holds a connection while it reads its customer's data key: were that one of the same, all would wait."""
    with World(database_url, tmp_path / "key") as first:
        for number in range(4):
            first.onboard(f"cold{number}")
    with World(database_url, tmp_path / "key", size=4) as cold, ThreadPoolExecutor(4) as threads:
        meet = Barrier(4, timeout=30)

        def rename(number: int) -> str:
            def work(tx: Transaction) -> str:
                tx.lock([f"cold{number}"])
                meet.wait()
                return tx.customer(f"cold{number}").must("").company_name

            return cold.platform.transact(Command(**cold.stamp()), work)

        assert set(threads.map(rename, range(4))) == {"ACME Corporation"}
