"""Following runs: every change of state, once and in order, also of those that came while nobody listened."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import psycopg
import pytest

from adapters.postgres.listener import Listener
from adapters.run_feed import Feed, one
from tests.application.world import World, until

_CUSTOMERS_STREAM = "SELECT originator_id::text FROM stored_events WHERE topic LIKE 'customer.%%' LIMIT 1"
STATES = {
    "RunScheduled": "PENDING",
    "RunClaimed": "RUNNING",
    "RunCompleted": "COMPLETED",
    "RunCancelled": "CANCELLED",
    "RunRequeued": "PENDING",
}


def logged(world: World) -> list[tuple[str, str]]:
    """Every change of state in the log: of which run, to which state."""
    found = world.store.recorder.select_notifications(start=0, limit=100_000)
    recorded = [r for notification in found for r in world.mapper.to_domain_events(notification)]
    return [
        (str(r.envelope.stream_id), STATES[type(r.event).__name__])
        for r in recorded
        if type(r.event).__name__ in STATES
    ]


class Followed:
    """A feed in a thread, and what it told."""

    def __init__(self, world: World, position: int = 0, **parts: Any) -> None:
        self.told: list[tuple[str, str]] = []
        self.feed = Feed(world.datastore, world.dsn, position, **parts)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for change in self.feed:
            self.told.append((change.row["run_id"], change.row["state"]))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_tells_what_the_log_says(acme):
    with Followed(acme) as followed:
        completed, cancelled = acme.request(), acme.request()
        acme.cancel(cancelled)
        acme.report(acme.claim())
        until(lambda: len(followed.told) == 5)
    assert followed.told == [
        (completed, "PENDING"),
        (cancelled, "PENDING"),
        (cancelled, "CANCELLED"),
        (completed, "RUNNING"),
        (completed, "COMPLETED"),
    ]
    assert followed.told == logged(acme)


def test_begins_after_a_position(acme):
    acme.request()
    position = acme.scalar("SELECT max(notification_id) FROM stored_events")
    with Followed(acme, position) as followed:
        second = acme.request()
        until(lambda: followed.told)
    assert followed.told == [(second, "PENDING")]


def test_shows_the_columns_as_of_the_change(acme):
    run_id = acme.request()
    acme.report(acme.claim())
    changes = []
    feed = Feed(acme.datastore, acme.dsn, 0)
    for change in feed:
        changes.append(change)
        if change.row["state"] == "COMPLETED":
            feed.stop()
    assert [change.row["attempt"] for change in changes] == [0, 1, 1]
    assert [change.row["rows_processed"] for change in changes] == [None, None, 3]
    assert changes[-1].text == "Completed, 3 rows."
    assert {change.row["run_id"] for change in changes} == {run_id}


def test_stops_from_another_thread_while_nothing_happens(acme):
    with Followed(acme):
        pass


def test_writers_of_four_threads(world):
    names = [f"c{number}" for number in range(4)]
    for name in names:
        world.onboard(name, "SCALE")

    def work(name: str) -> None:
        for _ in range(15):
            world.cancel(world.request(name), name)

    with Followed(world) as followed, ThreadPoolExecutor(4) as pool:
        list(pool.map(work, names))
        until(lambda: len(followed.told) >= 120)
    assert followed.told == logged(world)


class Cut(Listener):
    """A listener that is cut off when the test says, and comes back when it says so."""

    def __init__(self, dsn: str, handlers: Any) -> None:
        super().__init__(dsn, handlers)
        self.may_connect, self.connected = threading.Event(), threading.Event()
        self.may_connect.set()

    def _connect(self) -> psycopg.Connection:
        while not self.may_connect.wait(0.05):
            if self._stop.is_set():
                raise psycopg.OperationalError("stopped")
        return super()._connect()

    def _listen(self, connection: psycopg.Connection) -> None:
        self.connected.set()
        super()._listen(connection)

    @contextmanager
    def deaf(self, world: World):
        """Cut off from here to the end of the block."""
        self.connected.wait(20)
        self.may_connect.clear()
        self.connected.clear()
        world.tamper(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'convergence listener%%'"
        )
        until(lambda: not listeners(world))
        yield
        self.may_connect.set()
        assert self.connected.wait(20)


class Trusting(Cut):
    """One that does not say that it may have missed something."""

    def _listen(self, connection: psycopg.Connection) -> None:
        self.connected.set()
        while not self._stop.is_set():
            for notification in connection.notifies(timeout=0.1, stop_after=1):
                self._handlers[notification.channel](notification.payload)


def listeners(world: World) -> int:
    return world.scalar(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'convergence listener%%'"
    )


@pytest.mark.parametrize("kind", [Cut, Trusting])
def test_what_happened_while_nobody_listened_is_not_missed(acme, kind: Callable[..., Cut]):
    """The other listener shows that this test would notice."""
    made: list[Cut] = []

    def listen(dsn: str, handlers: Any) -> Cut:
        made.append(kind(dsn, handlers))
        return made[0]

    with Followed(acme, listen=listen) as followed:
        until(lambda: made)
        acme.request()
        until(made[0].connected.is_set)
        with made[0].deaf(acme):
            # What was announced just before the cut has been looked for, or was lost with the connection.
            until(lambda: not followed.feed._wake.is_set())
            acme.request()
        missed = False
        try:
            until(lambda: followed.told == logged(acme), seconds=3 if kind is Trusting else 20)
        except AssertionError:
            missed = True
        assert missed == (kind is Trusting)


def test_a_run_in_full_needs_no_keys(acme):
    run_id = acme.request()
    acme.report(acme.claim())
    run = one(acme.datastore, run_id)
    assert (run.state, run.rows, run.timeline[-1].text) == ("COMPLETED", 3, "Completed, 3 rows.")
    assert one(acme.datastore, "no-such") is None
    assert one(acme.datastore, acme.scalar(_CUSTOMERS_STREAM)) is None
