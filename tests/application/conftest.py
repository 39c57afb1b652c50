"""A migrated database, empty for every test, and the core upon it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.application.world import World, migrated


@pytest.fixture(scope="session")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture(scope="session")
def shared_database(postgres_server) -> str:
    return urlsplit(postgres_server.dsn)._replace(path=f"/{migrated(postgres_server.dsn)}").geturl()


@pytest.fixture
def database_url(shared_database) -> str:
    """The same database for every test of a process, emptied: ten times as fast as a new one."""
    with psycopg.connect(shared_database) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
        ).fetchall()
        names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in tables)
        connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))
    return shared_database


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    """The use cases on a database of their own."""
    with World(database_url, tmp_path / "key") as made:
        yield made


@pytest.fixture
def acme(world) -> World:
    """A world with one PROFESSIONAL customer, `acme`."""
    world.onboard()
    return world
