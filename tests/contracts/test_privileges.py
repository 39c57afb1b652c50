"""What the service may do in its database, and what it may not, whatever login it comes with."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from psycopg import errors, sql
from psycopg.rows import dict_row

from adapters.postgres import schema, seals
from adapters.postgres.beside import REBUILD, TEMPORARY, Beside
from adapters.postgres.maintenance import maintenance
from adapters.postgres.privileges import ROLE, may_change_events, take_role
from adapters.postgres.swap import swap
from projections.tables import CENTRAL
from tests.application.world import World, migrated
from tests.databases import drop
from tests.http.running import Quick, database, running

PASSWORD = "a fixture's"


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@contextmanager
def login(server_dsn: str, dsn: str, options: str = "") -> Iterator[str]:
    """Another login for the same database."""
    name = f"login_{uuid4().hex[:12]}"
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} " + options).format(sql.Identifier(name), sql.Literal(PASSWORD))
    with psycopg.connect(server_dsn, autocommit=True) as owner:
        owner.execute(create)
        url = urlsplit(dsn)
        yield url._replace(netloc=f"{name}:{quote(PASSWORD)}@{url.hostname}:{url.port}").geturl()
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(params=["INHERIT", "NOINHERIT"])
def member(request, postgres_server, database_url) -> Iterator[str]:
    """A login that is a member of the service's role and nothing else."""
    with login(postgres_server.dsn, database_url, f"{request.param} IN ROLE {ROLE}") as dsn:
        yield dsn


def connect(dsn: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn, row_factory=dict_row)


@contextmanager
def with_history(dsn: str, key_file: Path) -> Iterator[World]:
    """A world whose log has events and a seal."""
    with World(dsn, key_file) as world:
        world.onboard()
        with maintenance(dsn, name="test") as connection:
            seals.seal_next(connection, seals.last(connection))
        yield world


@pytest.fixture
def history(database_url, tmp_path) -> Iterator[World]:
    with with_history(database_url, tmp_path / "key") as world:
        yield world


@pytest.fixture(scope="module")
def untouched(postgres_server, migrated_template, tmp_path_factory) -> Iterator[World]:
    """For tests that leave it as it was."""
    key_file = tmp_path_factory.mktemp("privileges") / "key"
    with database(postgres_server.dsn, migrated_template) as dsn, with_history(dsn, key_file) as world:
        yield world


def events(count: int = 3) -> list[StoredEvent]:
    stream = uuid4()
    return [StoredEvent(stream, version, "topic", b"{}") for version in range(1, count + 1)]


def test_the_service_appends_and_reads_also_concurrently(history):
    """Through the library's recorder, and through its own transactions."""
    recorder = history.store.recorder
    before = history.scalar("SELECT count(*) FROM stored_events")
    assert history.scalar("SELECT current_user") == ROLE

    def append(number: int) -> None:
        if number % 2:
            recorder.insert_events(events())
        else:
            history.request()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(append, range(24)))
    assert history.scalar("SELECT count(*) FROM stored_events") == before + 60
    assert len(recorder.select_notifications(start=0, limit=1_000)) == before + 60


FORBIDDEN = [
    statement.format(table)
    for table in ("stored_events", "log_seals", "decryptions")
    for statement in (
        "DELETE FROM {}",
        "TRUNCATE {}",
        "DROP TABLE {} CASCADE",
        "ALTER TABLE {} DISABLE TRIGGER USER",
        "ALTER TABLE {} ADD COLUMN more text",
        "ALTER TABLE {} RENAME TO other",
        "ALTER TABLE {} OWNER TO CURRENT_USER",
        "ALTER TABLE {} SET SCHEMA rebuild",
        "CREATE RULE none AS ON INSERT TO {} DO INSTEAD NOTHING",
        "CREATE TABLE child () INHERITS ({})",
        "CREATE INDEX more ON {} ((1))",
        "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
    )
] + [
    "UPDATE stored_events SET state = '{}'",
    "UPDATE log_seals SET hash = ''",
    "INSERT INTO log_seals SELECT * FROM log_seals ON CONFLICT (last_position) DO UPDATE SET hash = ''",
    "SELECT 1 FROM stored_events FOR UPDATE",
    "SELECT setval('stored_events_notification_id_seq', 1)",
    "ALTER SEQUENCE stored_events_notification_id_seq RESTART",
    "INSERT INTO schema_migrations (name) VALUES ('0000_none')",
    "DELETE FROM schema_migrations",
]


def attempt(connection: psycopg.Connection[Any], statement: str) -> None:
    """The statement, undone."""
    with connection.transaction(force_rollback=True):
        connection.execute(statement)


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_the_service_may_not_change_what_was_appended(untouched, statement):
    with connect(untouched.dsn) as owner:
        attempt(owner, statement)  # the control: it would work
    with untouched.datastore.pool.connection() as connection, pytest.raises(errors.InsufficientPrivilege):
        attempt(connection, statement)


def test_there_is_no_way_back_to_more_for_a_mere_member(member, history):
    with connect(member) as connection:
        take_role(connection)
        assert connection.execute("SELECT current_user AS me").fetchone()["me"] == ROLE
        assert not may_change_events(connection)
        connection.execute("RESET ROLE")
        assert not may_change_events(connection)
        for way in ("SET ROLE convergence", "SET SESSION AUTHORIZATION convergence", "CREATE ROLE more SUPERUSER"):
            with pytest.raises(errors.InsufficientPrivilege):
                attempt(connection, way)
    with connect(history.dsn) as owner:
        assert may_change_events(owner)  # the control


def test_the_core_works_with_a_mere_member(member, tmp_path):
    with World(member, tmp_path / "key") as world:
        world.onboard()
        world.pipeline()
        world.wait(days=2)
        assert world.trigger().queued == 1
        run_id = world.request()
        assert world.run(run_id)["state"] == "PENDING"
        orders = world.claim()
        assert len(orders) == 2
        assert world.report(orders) == []
        assert world.states() == {"COMPLETED": 2}
        world.vault.destroy("acme")


def test_the_api_and_a_worker_work_with_a_mere_member(member, tmp_path):
    with running(member, tmp_path, engine=Quick()) as api:
        assert api.client().get("/readyz").json()["schema"] == "current"
        acme = api.onboard()
        with api.worker():
            answer = acme.run(prefer="wait=20")
        assert answer.json()["state"] == "COMPLETED", answer.text


def test_a_mere_member_seals_and_rebuilds(member, history, database_url):
    before = history.rows("customer_profiles")
    with maintenance(member, name="test") as connection:
        Beside(connection, TEMPORARY, CENTRAL).create()
    with maintenance(member, name="test") as connection:
        beside = Beside(connection, REBUILD, CENTRAL)
        beside.create()
        for table in CENTRAL:
            connection.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM {}").format(
                    beside.named(table.name), sql.Identifier(beside.live, table.name)
                )
            )
        swap(connection, beside, lambda: None, also=lambda: None)
    assert history.rows("customer_profiles") == before
    history.request()
    with connect(database_url) as owner:
        assert schema.migrate(owner) == []
    with maintenance(member, name="test") as connection:
        assert seals.seal_next(connection, seals.last(connection)).position == seals.end_of_log(connection)


def test_migrating_again_changes_nothing(history):
    query = (
        "SELECT relname, relowner::regrole::text, relacl::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
    )
    with connect(history.dsn) as owner:
        before = owner.execute(query).fetchall()
        assert schema.migrate(owner) == []
        assert owner.execute(query).fetchall() == before


def test_an_owner_without_the_right_to_make_roles(postgres_server, tmp_path, caplog):
    """It works, and says that events are only as safe as the service itself."""
    name = f"plain_{uuid4().hex}"
    url = urlsplit(postgres_server.dsn)._replace(path=f"/{name}").geturl()
    with login(postgres_server.dsn, url) as plain:
        user = urlsplit(plain).username
        with psycopg.connect(postgres_server.dsn, autocommit=True) as server:
            server.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(user)))
            server.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(user)))
        for applied in (schema.migrations(), []):
            with connect(plain) as owner:
                assert schema.migrate(owner) == applied
                assert may_change_events(owner)
            assert "The login may not make roles: the service can change events" in caplog.text
        with World(plain, tmp_path / "key") as world:
            world.onboard()
            world.request()
            assert world.report(world.claim()) == []
            assert world.scalar("SELECT current_user") == user
        drop(postgres_server.dsn, name)
