"""The central tables are written ahead of the customers' ones; what a checkpoint counts is written in all of them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from adapters.ahead import Ahead
from adapters.postgres.checkpoints import PostgresCheckpoints
from application.ports import Away
from projections.follow import Placed, Unwritable, catch_up
from tests.application.world import World, until
from tests.projections.test_poison import log_of, recording


class Gated:
    """Customers' tables: they take a page when they are let, and fail when they are told to."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.error: Exception | None = None

    def __call__(self, events: Sequence[Placed]) -> None:
        self.asked.set()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error
        self.written += [placed.at.position for placed in events]


@pytest.fixture
def told(world) -> World:
    world.onboard()
    world.request()
    return world


@contextmanager
def leading(ahead: Ahead, skipping: frozenset[int] = frozenset()) -> Iterator[None]:
    with ahead.leading(lambda: skipping):
        yield


def follow(world: World, ahead: Ahead, **more: object) -> int:
    return catch_up("p", ahead, ahead.handle, PostgresCheckpoints(world.datastore), **more)


def test_central_tables_do_not_wait_for_those_of_customers(told):
    central, write = recording()
    customers = Gated()
    ahead = Ahead(log_of(told), write, customers)
    checkpoints = PostgresCheckpoints(told.datastore)
    with leading(ahead):
        follow(told, ahead)
        first = log_of(told).end()
        customers.open.clear()
        customers.asked.clear()
        told.request()
        following = threading.Thread(target=follow, args=(told, ahead))
        following.start()
        assert customers.asked.wait(20)
        told.request()
        ahead.wake.set()
        end = log_of(told).end()
        until(lambda: ahead.position("p") == end)
        # What they are ahead by is not counted as done.
        assert checkpoints.position("p") == first
        assert (customers.written[-1], central[-1]) == (first, end)
        customers.open.set()
        following.join()
    assert checkpoints.position("p") == end
    # Each page once by each, however they overtake one another.
    assert central == customers.written == list(range(1, end + 1))


def test_nothing_is_ahead_before_a_page_is_handled(told):
    central, write = recording()
    customers = Gated()
    customers.error = Away("BigQuery is away")
    ahead = Ahead(log_of(told), write, customers)
    with leading(ahead):
        with pytest.raises(Away):
            follow(told, ahead, page=1)
        told.request()
        ahead.wake.set()
        until(lambda: not ahead.wake.is_set())
    assert central == [1]


def test_the_next_leader_begins_at_the_checkpoint(told):
    """A crash leaves no gap: what was ahead is not known any more, and is written again."""
    central, write = recording()
    customers = Gated()
    ahead = Ahead(log_of(told), write, customers)
    with leading(ahead):
        follow(told, ahead)
        before = log_of(told).end()
        told.request()
        ahead.wake.set()
        until(lambda: ahead.position("p") == log_of(told).end())
    central.clear()
    with leading(ahead):
        follow(told, ahead)
    assert central == list(range(before + 1, log_of(told).end() + 1)) == customers.written[before:]
    assert PostgresCheckpoints(told.datastore).position("p") == log_of(told).end()


class Forgetful(Ahead):
    """The control: it does not see that the checkpoint was put back."""

    def handle(self, events: Sequence[Placed]) -> None:
        self._handled = 0
        super().handle(events)


@pytest.mark.parametrize("kind", [Ahead, Forgetful])
def test_a_checkpoint_that_is_put_back_fills_every_table_again(told, kind):
    """An emulator's files are removed under a projector that goes on leading."""
    central, write = recording()
    customers = Gated()
    ahead = kind(log_of(told), write, customers)
    with leading(ahead):
        follow(told, ahead)
        central.clear()
        customers.written.clear()
        with told.datastore.reading() as cursor:
            cursor.execute("UPDATE checkpoints SET position = 0 WHERE projection = 'p'")
        follow(told, ahead)
    every = list(range(1, log_of(told).end() + 1))
    assert customers.written == every
    assert (central == every) is (kind is Ahead)


def test_what_keeps_central_tables_from_being_ahead_is_met_by_whoever_handles_the_page(told):
    poison = log_of(told).end() + 1
    central: list[int] = []

    def write(events: Sequence[Placed]) -> None:
        if any(placed.at.position == poison for placed in events):
            raise ValueError("no table holds that")
        central.extend(placed.at.position for placed in events)

    customers = Gated()
    ahead = Ahead(log_of(told), write, customers)
    with leading(ahead):
        follow(told, ahead)
        told.request()
        ahead.wake.set()
        with pytest.raises(Unwritable) as stopped:
            follow(told, ahead)
        assert stopped.value.position == poison
        assert PostgresCheckpoints(told.datastore).position("p") == poison - 1
    with leading(ahead, frozenset({poison})):
        follow(told, ahead, skipping=frozenset({poison}))
    assert central[-1] == customers.written[-1] == log_of(told).end() > poison
    assert poison not in central + customers.written


def test_nothing_is_written_after_the_lead(told):
    central, write = recording()
    ahead = Ahead(log_of(told), write, Gated())
    with leading(ahead):
        follow(told, ahead)
    written = list(central)
    told.request()
    ahead.wake.set()
    assert not [thread for thread in threading.enumerate() if thread.name == "central tables ahead"]
    assert central == written


def test_pages_end_where_the_central_tables_are_written(told):
    """A larger page would have its central tables written a second time."""
    log = log_of(told)
    ahead = Ahead(log, recording()[1], Gated())
    ahead.handle(log.read(0, 2))
    written = ahead.position("p")
    assert [page[-1].at.position for page in (ahead.read(0, 1000), ahead.read(1, 1000))] == [written, written]
    assert ahead.read(0, 1)[-1].at.position == 1
    # What it is not ahead of is read as the log has it.
    assert ahead.read(written, 1000)[-1].at.position == log.read(0, 1000)[-1].at.position == ahead.end() > written
