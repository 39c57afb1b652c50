"""Waking up: what is announced reaches who listens, and a listener that was cut off comes back by itself."""

import time
from collections.abc import Iterator
from queue import Queue
from threading import Event

import psycopg
import pytest

from adapters.postgres import channels
from adapters.postgres.listener import Listener
from tests.application.world import World, until


class Heard:
    """A listener on all channels, and what it heard."""

    def __init__(self, dsn: str) -> None:
        self.queue: Queue[tuple[str, str]] = Queue()
        names = (channels.LOG, channels.QUEUE, channels.SCHEDULES, channels.ENDED, channels.STOP)
        self.listener = Listener(dsn, {name: self._hear(name) for name in names})
        self.names = names

    def _hear(self, name: str):
        return lambda payload: self.queue.put((name, payload))

    def connected(self) -> None:
        """Returns when the listener listens: then it has called every handler once."""
        assert sorted(self.next() for _ in self.names) == sorted((name, "") for name in self.names)

    def next(self) -> tuple[str, str]:
        return self.queue.get(timeout=20)


@pytest.fixture
def heard(acme) -> Iterator[Heard]:
    made = Heard(acme.dsn)
    made.listener.start()
    made.connected()
    yield made
    made.listener.stop()


def collect(heard: Heard, world: World) -> set[tuple[str, str]]:
    """Everything announced so far: what is sent by `pg_notify` now arrives after it."""
    world.execute(f"SELECT pg_notify('{channels.LOG}', 'end')")
    found = set()
    while (message := heard.next()) != (channels.LOG, "end"):
        found.add(message)
    return found - {(channels.LOG, "")}


def test_what_happens_wakes_those_whom_it_concerns(acme, heard):
    run_id = acme.request()
    assert collect(heard, acme) == {(channels.QUEUE, "")}
    orders = acme.claim()
    assert collect(heard, acme) == set()
    acme.cancel(run_id)
    assert collect(heard, acme) == {(channels.STOP, run_id)}
    acme.report(orders, cancelled=True)
    assert collect(heard, acme) == {(channels.QUEUE, ""), (channels.ENDED, run_id)}
    acme.pipeline()
    assert collect(heard, acme) == {(channels.SCHEDULES, "")}
    acme.suspend()
    assert collect(heard, acme) == {(channels.QUEUE, "")}
    acme.reactivate()
    assert collect(heard, acme) == {(channels.SCHEDULES, ""), (channels.QUEUE, "")}


def test_more_places_wake_workers(acme, heard):
    acme.limits(max_concurrent_pipelines=9)
    assert collect(heard, acme) == {(channels.QUEUE, "")}
    # The control: what changes nothing for waiting runs wakes nobody.
    acme.onboard("other")
    assert (channels.QUEUE, "") not in collect(heard, acme)


def test_many_ends_fit_into_messages(acme, heard):
    acme.limits(max_pipelines_per_day=1000, max_concurrent_pipelines=1000)
    ids = {acme.request() for _ in range(210)}
    orders = acme.claim(limit=1000)
    orders += acme.claim(limit=1000)
    collect(heard, acme)
    acme.report(orders)
    ended = [payload for channel, payload in collect(heard, acme) if channel == channels.ENDED]
    assert len(ended) == 2
    assert {run_id for payload in ended for run_id in payload.split(",")} == ids


def test_what_is_rolled_back_wakes_nobody(acme, heard):
    class ChangedMindError(Exception):
        pass

    def announce_and_think_again() -> None:
        with acme.datastore.transaction_cursor() as cursor:
            cursor.execute(f"SELECT pg_notify('{channels.QUEUE}', '')")
            raise ChangedMindError

    with pytest.raises(ChangedMindError):
        announce_and_think_again()
    assert collect(heard, acme) == set()


def test_a_listener_that_was_cut_off_comes_back_and_says_so(acme, heard):
    """Whatever was announced meanwhile may be lost, so every handler is called once more."""
    for _ in range(2):
        with psycopg.connect(acme.dsn, autocommit=True) as connection:
            cut = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE '% listener@%'"
            ).fetchone()
        assert cut == (1,)
        heard.connected()
        acme.request()
        assert collect(heard, acme) == {(channels.QUEUE, "")}


def test_whose_keys_prove_something_else_is_announced(acme):
    heard: Queue[str] = Queue()
    listener = Listener(acme.dsn, {channels.KEYS: heard.put})
    listener.start()
    assert heard.get(timeout=20) == ""
    acme.request()
    acme.suspend()
    acme.onboard("other")
    assert [heard.get(timeout=20), heard.get(timeout=20)] == ["acme", "other"]
    listener.stop()


class Hasty(Listener):
    """The broken variant: believes to have heard everything before it has handed it over."""

    def _hand_over(self, connection, seconds, stop_after=None) -> None:
        if seconds > 0:
            super()._hand_over(connection, seconds, stop_after)


@pytest.mark.parametrize(("kind", "right"), [(Listener, True), (Hasty, False)], ids=["", "control"])
def test_what_was_announced_before_a_word_of_the_server_has_been_handed_over(acme, kind, right):
    handed: list[str] = []
    words: Queue[tuple[float, bool]] = Queue()
    busy, go = Event(), Event()

    def handle(payload: str) -> None:
        handed.append(payload)
        if payload == "first":
            busy.set()
            go.wait(20)

    listener = kind(
        acme.dsn, {channels.KEYS: handle}, heard=lambda at: words.put((at, "second" in handed)), ask_s=0.000_001
    )
    listener.start()
    words.get(timeout=20)
    acme.execute(f"SELECT pg_notify('{channels.KEYS}', 'first')")
    assert busy.wait(20)
    acme.execute(f"SELECT pg_notify('{channels.KEYS}', 'second')")
    announced = time.monotonic()
    go.set()
    while (word := words.get(timeout=20))[0] < announced:
        pass
    assert word[1] is right
    listener.stop()


def test_its_sign_is_taken_as_soon_as_whoever_had_it_is_gone(acme):
    """Its own connection from before, mostly, which the server takes for alive for a while."""
    taken = "SELECT count(*) FROM pg_locks WHERE classid = 4711 AND granted"
    connected = Event()
    listener = Listener(acme.dsn, {channels.HANDED: lambda _: connected.set()}, ask_s=60, sign=(4711, "me"))
    with psycopg.connect(acme.dsn, autocommit=True) as before:
        before.execute("SELECT pg_advisory_lock(4711, hashtext('me'))")
        listener.start()
        assert connected.wait(10)
        time.sleep(0.3)  # by then it has tried, and found it taken
    until(lambda: acme.scalar(taken) == 1, seconds=5)
    listener.stop()
    until(lambda: acme.scalar(taken) == 0, seconds=5)
