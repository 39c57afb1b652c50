"""Customers are remembered between commands: faster, and never believed against the log."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID

import msgspec
import pytest
from eventsourcing.persistence import StoredEvent

from adapters.postgres.channels import DATA_KEYS
from adapters.postgres.listener import Listener
from adapters.postgres.store import PostgresSession, PostgresStore
from application.command import Command
from application.customers import ChangeContact, change_contact
from application.platform import Platform, Transaction
from application.remembered import Memory, Remembered
from application.session import From
from application.streams import Stream
from domain.customer import Customer, evolve
from domain.customer_events import CompanyRenamed, CustomerEvent
from domain.envelope import Origin
from domain.identity import customer_stream
from domain.refusals import Conflict
from tests.application.world import World, race, until
from tests.faults.evidence import as_owner

ACME = customer_stream("acme")
OF_ACME = f"originator_id = '{ACME}'"
LAST = f"{OF_ACME} AND originator_version = (SELECT max(originator_version) FROM stored_events WHERE {OF_ACME})"


class Watched(PostgresStore):
    """The store, with how many events were read in each transaction."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.read: list[int] = []

    @contextmanager
    def transaction(self) -> Iterator[PostgresSession]:
        with super().transaction() as session:
            load = session.load
            self.read.append(0)

            def counted(wanted: Mapping[UUID, From]) -> Sequence:
                found = load(wanted)
                self.read[-1] += len(found)
                return found

            session.load = counted
            yield session


@dataclass
class Process:
    """A process of its own on the world's database."""

    world: World
    remembered: Remembered = field(default_factory=Remembered)

    def __post_init__(self) -> None:
        self.store = Watched(self.world.datastore)
        self.platform = Platform(self.store, self.world.mapper, self.remembered)

    def rename(self, name: str) -> None:
        change_contact(ChangeContact(**self.world.stamp(), customer_id="acme", company_name=name), self.platform)

    def stream(self) -> Stream[Customer, CustomerEvent]:
        return self.platform.transact(Command(**self.world.stamp()), lambda tx: tx.customer("acme"))

    def customer(self) -> Customer:
        return self.stream().must("")

    @property
    def name(self) -> str:
        return self.customer().company_name


@pytest.fixture
def one(acme) -> Process:
    return Process(acme)


@pytest.fixture
def other(acme) -> Process:
    return Process(acme)


class TestMemory:
    def test_of_a_customer_spares_reading_its_story_again(self, one):
        for number in range(20):
            one.rename(f"Name {number}")
        assert one.name == "Name 19"
        assert one.store.read[-1] == 1

    def test_without_it_all_is_read(self, acme):
        """The control."""
        one = Process(acme, Remembered(ttl_s=0))
        for number in range(20):
            one.rename(f"Name {number}")
        assert one.name == "Name 19"
        assert one.store.read[-1] == 22

    def test_is_what_commands_decide_on(self, one):
        """The control: when it lies, the state is a lie."""
        assert one.name == "ACME Corporation"
        memory = one.remembered.find(ACME)
        one.remembered.keep(ACME, replace(memory, state=replace(memory.state, company_name="Lie")), since=0)
        assert one.name == "Lie"

    def test_tells_what_the_whole_story_tells(self, acme, one):
        one.rename("New")
        acme.pipeline()
        acme.suspend()
        assert one.customer() == Process(acme).customer()

    def test_knows_who_began_the_story_and_who_went_on_with_it(self, acme, one):
        one.rename("New")
        told, whole = one.stream(), Process(acme).stream()
        assert (told.began, told.latest) == (whole.began, whole.latest)
        assert told.began != told.latest
        one.rename("Newer")
        assert one.stream().latest == Process(acme).stream().latest

    def test_knows_what_other_processes_did(self, one, other):
        one.rename("One")
        other.rename("Two")
        assert one.name == "Two"
        one.rename("Three")
        assert other.name == "Three"
        assert other.store.read[-1] == 2

    def test_survives_many_at_once(self, acme, one, other):
        race(8, lambda n: (one if n % 2 else other).rename(f"Name {n}"))
        assert one.customer() == other.customer() == Process(acme).customer()


class TestTheLog:
    """Nothing remembered counts that the log does not bear out."""

    @pytest.fixture
    def renamed(self, one) -> Process:
        one.rename("First")
        one.rename("Second")
        return one

    def test_that_was_set_back(self, acme, renamed):
        """As when another server takes over that had not got the last events yet."""
        as_owner(acme, f"DELETE FROM stored_events WHERE {LAST}")
        assert renamed.name == "First"
        renamed.rename("Third")
        assert [e.company_name for e in acme.events() if isinstance(e, CompanyRenamed)] == ["First", "Third"]

    def test_that_was_set_back_and_went_on_otherwise(self, acme, renamed, other):
        as_owner(acme, f"DELETE FROM stored_events WHERE {LAST}")
        other.rename("Otherwise")
        assert renamed.name == "Otherwise"

    def test_that_went_on_beyond_what_is_remembered(self, acme, renamed, other):
        as_owner(acme, f"DELETE FROM stored_events WHERE {LAST}")
        other.rename("Otherwise")
        other.rename("And on")
        assert renamed.name == "And on"
        assert renamed.customer() == Process(acme).customer()

    def test_that_has_nothing_of_the_customer(self, acme, renamed):
        as_owner(acme, f"DELETE FROM stored_events WHERE {OF_ACME}")
        read = renamed.platform.transact(Command(**acme.stamp()), lambda tx: tx.customer("acme").exists)
        assert not read


class TestWhatIsNotStored:
    def test_is_not_remembered(self, acme, one):
        def work(tx: Transaction) -> None:
            tx.customer("acme").append([CompanyRenamed(company_name="x")])
            tx.flush()
            raise Conflict("on second thoughts")

        with pytest.raises(Conflict):
            one.platform.transact(Command(**acme.stamp()), work)
        assert one.remembered.find(ACME) is None
        assert one.name == "ACME Corporation"

    def test_nor_what_cannot_be_read(self, acme, one):
        as_owner(acme, f"UPDATE stored_events SET topic = 'customer.unheard-of@1' WHERE {LAST}")
        one.platform.transact(Command(**acme.stamp()), lambda tx: tx.customer("acme"), of_many=True)
        assert one.remembered.find(ACME) is None


class TestForgetting:
    @pytest.mark.parametrize("whom", ["ACME", ""])
    def test_drops_what_is_remembered(self, one, whom):
        assert one.name
        one.platform.forget(whom)
        assert one.remembered.find(ACME) is None

    def test_leaves_others(self, one):
        assert one.name
        one.platform.forget("other")
        assert one.remembered.find(ACME) is not None

    def test_is_not_undone_by_who_loaded_before(self, acme, one):
        def work(tx: Transaction) -> None:
            tx.customer("acme")
            one.platform.forget("acme")

        one.platform.transact(Command(**acme.stamp()), work)
        assert one.remembered.find(ACME) is None

    def test_comes_when_the_customers_data_keys_are_destroyed(self, acme, one, database_url):
        listening = Listener(database_url, {DATA_KEYS: one.platform.forget})
        listening.start()
        until(lambda: one.name and one.remembered.find(ACME))
        acme.vault.destroy("acme")
        until(lambda: one.remembered.find(ACME) is None)
        listening.stop()


def memory(state: object) -> Memory:
    somebody = Origin(actor="admin", command_id="c", correlation_id="c")
    return Memory(state, StoredEvent(ACME, 1, "topic", b""), somebody, somebody)


class TestBounds:
    def test_in_number(self):
        remembered = Remembered(size=2)
        for number in range(5):
            remembered.keep(UUID(int=number), memory(number), since=0)
        assert [n for n in range(5) if remembered.find(UUID(int=n))] == [3, 4]

    def test_in_time(self):
        clock = [0.0]
        remembered = Remembered(ttl_s=300, timer=lambda: clock[0])
        remembered.keep(ACME, memory("state"), since=0)
        clock[0] = 299
        assert remembered.find(ACME)
        clock[0] = 301
        assert remembered.find(ACME) is None


def test_states_are_not_changed_by_what_follows(acme):
    """What is remembered is shared by threads: a decision that changed it would be seen before it is stored."""
    config_id = acme.pipeline()
    acme.change(config_id, schedule_cron="0 3 * * *")
    acme.onboard(known_as="owner")
    acme.suspend()
    state, states = None, []
    for told in acme.platform.history(ACME):
        state = evolve(state, told.event)
        states.append((state, msgspec.json.encode(state)))
    assert len({text for _, text in states}) == len(states) >= 6
    assert [text for _, text in states] == [msgspec.json.encode(state) for state, _ in states]
