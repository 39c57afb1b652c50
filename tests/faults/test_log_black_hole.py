"""A network that takes everything and brings nothing: errors within ten seconds, and all goes on once it is over."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import DictRow
from psycopg_pool import ConnectionPool

from adapters.bootstrap import origin
from adapters.postgres import leases
from adapters.postgres.checkpoints import leading
from adapters.postgres.silence import ANSWER_S, QUIET_S, AttentiveConnection
from adapters.scheduler import run_scheduler, trigger_now
from adapters.worker import run_worker
from application.ports import Away
from tests.application.world import World, migrated, until
from tests.faults.proxy import Proxy, Way
from tests.http.running import ADMIN, Quick, Running, database, running

LONGEST_S = 10.0
UP, DOWN = pytest.param(Way.UP, id="up"), pytest.param(Way.DOWN, id="down")
LONG = [pytest.param(way, id=str(way.name).lower(), marks=pytest.mark.soak) for way in (Way.BOTH, Way.UP, Way.DOWN)]


@pytest.fixture(scope="module")
def template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def dsn(postgres_server, template) -> Iterator[str]:
    with database(postgres_server.dsn, template) as made:
        yield made


@pytest.fixture
def proxy(dsn) -> Iterator[Proxy]:
    with Proxy(dsn) as made:
        yield made


@pytest.fixture
def api(proxy, tmp_path) -> Iterator[Running]:
    with running(proxy.dsn, tmp_path, engine=Quick()) as made:
        try:
            yield made
        finally:
            # What waits for an answer that was swallowed need not wait to its end.
            proxy.speak()
            proxy.cut()


def timed(ask: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return ask(), time.monotonic() - began


def told_in_time(ask: Callable[[], Any]) -> None:
    answer, seconds = timed(ask)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    assert seconds < LONGEST_S


def heal(proxy: Proxy, ask: Callable[[], Any]) -> float:
    """Seconds until it works again."""
    proxy.speak()
    began = time.monotonic()
    until(lambda: ask().status_code < 300, seconds=30)
    return time.monotonic() - began


@pytest.mark.parametrize("way", [DOWN, *LONG[:2]])
def test_requests_are_told_in_time(api, proxy, way):
    acme, admin = api.onboard(), api.client(ADMIN)
    member = {"email": "jo@acmecorp.com", "name": "Jo"}
    name = {"Idempotency-Key": uuid4().hex}
    asked = [
        lambda: acme.post(f"{acme.url}/team-members", json=member, headers=name),
        lambda: acme.get(acme.url),
        acme.run,
        lambda: admin.post("/api/v1/scheduler/trigger"),
        lambda: admin.get("/api/v1/scheduler/status"),
        lambda: api.client().get("/readyz"),
    ]
    proxy.fall_silent(way)
    with ThreadPoolExecutor(len(asked) + 10) as threads:
        crowd = [threads.submit(told_in_time, acme.run) for _ in range(10)]
        waiting = [threads.submit(told_in_time, ask) for ask in asked]
        alive, seconds = timed(lambda: api.client().get("/livez"))
        for one in [*waiting, *crowd]:
            one.result()
    assert (alive.status_code, seconds < 2) == (200, True)
    assert heal(proxy, lambda: acme.post(f"{acme.url}/team-members", json=member, headers=name)) < 10
    assert len(acme.get(f"{acme.url}/team-members").json()["items"]) == 1


@pytest.mark.parametrize("way", LONG)
def test_a_command_is_cut_off_as_it_is_stored(api, proxy, way):
    """Stored or not, nobody knows: the caller is told in time, and sending it again has one effect."""
    acme = api.onboard()
    name = {"Idempotency-Key": uuid4().hex}

    def ask() -> Any:
        return acme.run(headers=name)

    proxy.fall_silent_at_commit(way)
    told_in_time(ask)
    assert heal(proxy, ask) < 30
    proxy.speak()
    assert acme.get(f"{acme.url}/usage").json()["pipelines_run_today"] == 1


@pytest.mark.parametrize("way", [UP, LONG[2]])
def test_roles_go_on(api, proxy, way, dsn, caplog):
    """The worker, the scheduler and the listeners notice, wait, and come back by themselves."""
    caplog.set_level(logging.INFO)
    stop, acme = threading.Event(), api.onboard()
    service = replace(api.service, settings=api.service.settings.model_copy(update={"poll_interval_seconds": 1.0}))
    roles = [threading.Thread(target=role, args=(service, stop)) for role in (run_worker, run_scheduler)]
    for role in roles:
        role.start()
    try:
        assert acme.run(prefer="wait=20").json()["state"] == "COMPLETED"
        began = time.monotonic()
        proxy.fall_silent(way)
        until(lambda: "the worker waits" in caplog.text, seconds=LONGEST_S + 1)
        with pytest.raises(Away):
            trigger_now(service, origin("admin"))
        with pytest.raises(Away):
            leases.renew(service.datastore, "w1", [], 60)
        until(lambda: "the listener was cut off" in caplog.text, seconds=15)
        assert time.monotonic() - began < 30
        assert heal(proxy, lambda: acme.get(acme.url)) < 10
        assert acme.run(prefer="wait=20").json()["state"] == "COMPLETED"
        until(lambda: listening(dsn) >= 3, seconds=20)
    finally:
        proxy.speak()
        stop.set()
        for role in roles:
            role.join()


def listening(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'convergence listener%'"
        return connection.execute(query + " AND datname = current_database()").fetchone()[0]


def test_a_lead_notices(proxy):
    def ask() -> None:
        with leading(proxy.dsn, "p") as lead:
            assert not lead.wanted()
            proxy.fall_silent()
            lead.wanted()

    began = time.monotonic()
    with pytest.raises(Away):
        ask()
    assert time.monotonic() - began < LONGEST_S


@pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_process_that_stood_still_is_told(dsn, tmp_path, limit):
    """The server has ended its transaction meanwhile: that is no fault of the request, which can be sent again."""

    def stand_still(world: World) -> None:
        with world.datastore.transaction_cursor() as cursor:
            cursor.execute("SELECT 1")
            time.sleep(0.5)
            cursor.execute("SELECT 1")

    with World(dsn, tmp_path / "key", size=1) as world:
        world.execute("SELECT set_config(%s, '100ms', false)", limit)
        with pytest.raises(Away):
            stand_still(world)
        assert world.scalar("SELECT 1") == 1


def test_a_server_that_only_reads_is_away_for_commands(dsn, tmp_path):
    """As in the moment before another one takes its place."""
    with World(dsn, tmp_path / "key") as world:
        world.onboard()
    name = dsn.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with World(dsn, tmp_path / "key") as world:
        with pytest.raises(Away):
            world.request()
        assert world.usage() == (0, 0, 0)


def test_a_server_that_works_for_long_is_waited_for(dsn, tmp_path):
    """A slow statement is no black hole."""
    with World(dsn, tmp_path / "key") as world:
        answer, seconds = timed(lambda: world.scalar("SELECT 1 FROM pg_sleep(5)"))
    assert answer == 1
    assert seconds >= 5


class Deaf(psycopg.Connection[DictRow]):
    """The control: waits for whatever was asked, and asks nothing."""

    check = staticmethod(ConnectionPool.check_connection)


def told_of_silence(dsn, key_file, kind: type[psycopg.Connection[DictRow]]) -> bool:
    """Whether a statement ends in time when the network falls silent before it."""
    with Proxy(dsn) as proxy, World(proxy.dsn, key_file) as world, ThreadPoolExecutor(1) as threads:
        world.datastore.pool.connection_class = kind
        assert world.scalar("SELECT 1") == 1
        proxy.fall_silent()
        asked = threads.submit(world.scalar, "SELECT 1")
        try:
            away = asked.exception(timeout=QUIET_S + ANSWER_S + 2)
        except TimeoutError:
            return False
        finally:
            proxy.speak()
            proxy.cut()
        return isinstance(away, Away)


def test_a_connection_that_only_waits_is_not_told(dsn, tmp_path):
    assert told_of_silence(dsn, tmp_path / "key", AttentiveConnection[DictRow])
    assert not told_of_silence(dsn, tmp_path / "key", Deaf)


@pytest.mark.parametrize("way", LONG)
def test_what_was_held_is_let_go(api, proxy, way, dsn):
    """Also while the network stays dark: others, on another network, do not wait for ever for somebody cut off."""
    acme = api.onboard()
    proxy.fall_silent_at_commit(way)
    told_in_time(acme.run)
    began = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT 1 FROM customer_subscriptions WHERE customer_id = %s FOR UPDATE", (acme.id,))
    assert time.monotonic() - began < 35
