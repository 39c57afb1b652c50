"""What a process remembers of API keys: a change anywhere is felt within a second, and guesses cost nothing.

Two servers stand for two processes: they share a database and nothing else.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from queue import Queue
from threading import Event

import psycopg
import pytest

from adapters.bootstrap import build
from adapters.http.key_cache import LEASE_S, Entry, KeyCache
from adapters.postgres.channels import KEYS
from adapters.postgres.listener import Listener
from adapters.postgres.reads.keys import Holder
from tests.application.world import until
from tests.faults.proxy import Proxy
from tests.http.running import Clock, Customer, Running

HOLDER = Holder("acme", "k1", "ACTIVE", None, datetime(2030, 1, 1, tzinfo=UTC))


class Deaf(KeyCache):
    """The broken variant: what is announced does not matter to it."""

    def announce(self, payload: str) -> None: ...

    def forget(self, customer_ids) -> None: ...


class ForgetsNothing(KeyCache):
    """The broken variant: that something may have been missed does not matter to it."""

    def announce(self, payload: str) -> None:
        if payload:
            super().announce(payload)


@contextmanager
def another(api: Running, keys: KeyCache | None = None, listens_at: str | None = None, **parts) -> Iterator[Running]:
    """A second server on the same database, which hears of changes by `listens_at`; it limits nobody."""
    unlimited = {"rate_limit_per_minute": 0, "source_rate_limit_per_minute": 0, "failed_keys_per_minute": 0}
    service = build(api.service.settings.model_copy(update=unlimited), api.service.dsn)
    try:
        with Running(replace(service, dsn=listens_at or service.dsn, **parts), Clock(), keys=keys) as server:
            yield server
    finally:
        service.close()


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def status(server: Running, acme: Customer, key: str | None = None) -> int:
    return server.client().get(acme.url, headers={"X-API-Key": key or acme.key}).status_code


def remembered(server: Running, acme: Customer, key: str | None = None) -> None:
    """Returns once the server answers this key out of its memory."""
    keys: KeyCache = server.app.state.api.keys
    given = key or acme.key

    def is_remembered() -> bool:
        return status(server, acme, given) == 200 and keys.find(digest(given)) is not None

    until(is_remembered)


def within_a_second(seen: Callable[[], bool]) -> bool:
    """Whether it is seen within a second from now; what is asked before may be answered after."""
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if seen():
            return True
    return False


def second_key(acme: Customer) -> tuple[str, str]:
    issued = acme.post(f"{acme.url}/api-keys").json()
    return issued["api_key"], issued["api_key_id"]


@pytest.mark.parametrize(("keys", "dies"), [(KeyCache, True), (Deaf, False)], ids=["", "control"])
def test_a_key_revoked_in_one_process_is_dead_in_the_other(api, acme, keys, dies):
    key, key_id = second_key(acme)
    with another(api, keys()) as other:
        remembered(other, acme, key)
        assert acme.delete(f"{acme.url}/api-keys/{key_id}").status_code == 204
        assert status(api, acme, key) == 401  # where it was revoked: at once
        assert within_a_second(lambda: status(other, acme, key) == 401) is dies


def test_a_suspension_is_felt_in_the_other_process(api, acme, admin):
    with another(api) as other:
        remembered(other, acme)
        for what, expected in (("suspend", 403), ("reactivate", 200)):
            admin.post(f"/api/v1/admin{acme.url[7:]}/{what}", json={"reason": "test"})
            assert status(api, acme) == expected
            assert within_a_second(lambda expected=expected: status(other, acme) == expected)


def test_the_key_of_an_erased_customer_is_dead_in_the_other_process(api, acme, admin):
    with another(api) as other:
        remembered(other, acme)
        erased = {"confirm": acme.id, "reason": "Asked for it."}
        assert admin.post(f"/api/v1/admin{acme.url[7:]}/erase", json=erased).status_code < 300
        assert within_a_second(lambda: status(other, acme) == 401)


def test_a_key_that_was_tried_before_it_was_issued_works(api, acme):
    """Nobody guesses a key; but what was remembered of it would be wrong."""
    with another(api) as other:
        remembered(other, acme)
        keys: KeyCache = other.app.state.api.keys
        bad = f"{acme.id}_api_AAAAAAAAAAAAAAAA"
        assert status(other, acme, bad) == 401
        assert keys.find(digest(bad)) is not None
        second_key(acme)
        until(lambda: keys.find(digest(bad)) is None)


@pytest.mark.parametrize(("lease_s", "dies"), [(LEASE_S, True), (3600, False)], ids=["", "control"])
def test_a_process_that_is_cut_off_from_announcements_believes_nothing_it_remembers(api, acme, lease_s, dies):
    key, key_id = second_key(acme)
    with Proxy(api.service.dsn) as proxy, another(api, KeyCache(lease_s=lease_s), proxy.dsn) as other:
        remembered(other, acme, key)
        proxy.fall_silent()
        acme.delete(f"{acme.url}/api-keys/{key_id}")
        assert within_a_second(lambda: status(other, acme, key) == 401) is dies
        proxy.speak()
        proxy.cut()


class Gated(Listener):
    """Comes back when it is let."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.away, self.gate = Event(), Event()
        self.gate.set()

    def _connect(self):
        if not self.gate.is_set():
            self.away.set()
            assert self.gate.wait(20)
        return super()._connect()


@pytest.mark.parametrize(("keys", "dies"), [(KeyCache, True), (ForgetsNothing, False)], ids=["", "control"])
def test_what_was_announced_while_nobody_listened_is_not_missed(api, acme, keys, dies):
    """The listener's connection is ended, and a key revoked before there is another one."""
    _, key_id = second_key(acme)
    made, words = keys(lease_s=3600), Queue()

    def hear(asked: float) -> None:
        made.hear(asked)
        words.put(asked)

    listener = Gated(api.service.dsn, {KEYS: made.announce}, heard=hear)
    listener.start()
    words.get(timeout=20)
    made.keep(b"key", Entry(replace(HOLDER, customer_id=acme.id), made.changes))
    listener.gate.clear()
    with psycopg.connect(api.service.dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE '% listener@%' AND datname = current_database()"
        )
    assert listener.away.wait(20)
    assert acme.delete(f"{acme.url}/api-keys/{key_id}").status_code == 204
    assert made.find(b"key") is not None, "nobody has told it"
    listener.gate.set()
    words.get(timeout=20)
    assert (made.find(b"key") is None) is dies
    listener.stop()


def test_a_key_ends_to_the_second_although_it_is_remembered(api, acme):
    remembered(api, acme)
    [row] = acme.get(f"{acme.url}/api-keys").json()["items"]
    ends = datetime.fromisoformat(row["expires_at"])
    clock = api.app.state.api.now

    def at(then: datetime) -> int:
        with clock.moved(seconds=(then - datetime.now(UTC)).total_seconds()):
            return status(api, acme)

    assert at(ends - timedelta(seconds=1)) == 200
    assert api.app.state.api.keys.find(digest(acme.key)) is not None
    assert at(ends) == 401
    assert at(ends - timedelta(seconds=1)) == 200


class Counting:
    """The datastore, and how often it was read."""

    def __init__(self, datastore) -> None:
        self.datastore = datastore
        self.reads = 0

    def reading(self):
        self.reads += 1
        return self.datastore.reading()

    def __getattr__(self, name: str):
        return getattr(self.datastore, name)


def test_every_bad_key_costs_the_same_work(api, acme, anyone):
    """One look into the database for the first try of each, none for the next: whatever is wrong with it."""
    revoked, key_id = second_key(acme)
    acme.delete(f"{acme.url}/api-keys/{key_id}")
    bad = {
        "unknown": f"{acme.id}_api_AAAAAAAAAAAAAAAA",
        "of nobody": "nobody_api_AAAAAAAAAAAAAAAA",
        "revoked": revoked,
        "malformed": "'; --",
        "long": "x" * 8_000,
    }
    counting = Counting(api.service.datastore)
    with another(api, datastore=counting) as other:
        remembered(other, acme)
        client = other.client()

        def work(key: str, ahead: float = 0) -> int:
            before = counting.reads
            with other.clock.moved(days=ahead):
                assert client.get(acme.url, headers={"X-API-Key": key}).status_code == 401
            return counting.reads - before

        assert {what: work(key) for what, key in bad.items()} == dict.fromkeys(bad, 1)
        assert {what: work(key) for what, key in bad.items()} == dict.fromkeys(bad, 0)
        expired = api.onboard().key
        assert [work(expired, 91), work(expired, 91)] == [1, 0]


class Timer:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def cache(timer: Timer, **options) -> KeyCache:
    made = KeyCache(timer=timer, **options)
    made.announce("")
    made.hear(timer())
    return made


def test_what_was_read_before_a_change_is_not_kept_after_it():
    keys = cache(Timer())
    for change in (lambda: keys.announce("other,acme"), lambda: keys.forget({"acme"}), lambda: keys.announce("")):
        before = keys.changes
        change()
        keys.keep(b"1", Entry(HOLDER, before))
        keys.keep(b"2", Entry(None, before))
        assert keys.find(b"1") is None
        assert keys.find(b"2") is None
    before = keys.changes
    keys.announce("other")
    keys.keep(b"1", Entry(HOLDER, before))
    assert keys.find(b"1") is not None, "it is nothing to acme what becomes of others"


def test_memory_ends_with_the_lease_and_begins_again_with_the_next():
    timer = Timer()
    keys = cache(timer)
    keys.keep(b"1", Entry(HOLDER, keys.changes))
    timer.at += LEASE_S - 0.001
    assert keys.find(b"1") is not None
    timer.at += 0.001
    assert keys.find(b"1") is None
    keys.hear(timer())
    assert keys.find(b"1") is not None
    timer.at += 61
    keys.hear(timer())
    assert keys.find(b"1") is None


def test_memory_is_bounded_and_guesses_drive_nobody_out():
    timer = Timer()
    keys = cache(timer, size=10)
    keys.keep(b"good", Entry(HOLDER, keys.changes))
    for number in range(20_000):
        keys.keep(b"%d" % number, Entry(None, keys.changes))
    assert keys.find(b"good") is not None
    for number in range(11):
        keys.keep(b"%d" % number, Entry(HOLDER, keys.changes))
    assert keys.find(b"good") is None
    for number in range(10_001):
        keys.forget({f"c{number}"})
    assert keys.find(b"10") is None, "rather everything than too little"
