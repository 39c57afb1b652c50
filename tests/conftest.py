"""The servers that tests share: for each xdist worker one PostgreSQL and one BigQuery emulator, once asked for."""

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from adapters.embedded.bigquery import EmbeddedBigQuery
from adapters.embedded.child import free_port
from adapters.embedded.postgres import EmbeddedPostgres
from tests.databases import drop


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: a long crash or load run, started by make soak")
    config.addinivalue_line("markers", "gcp: talks to a real Google Cloud project, started by make test-gcp")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[EmbeddedPostgres]:
    """A running server that does not wait for the disk."""
    directory = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(directory, durable=False) as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def migrated_template(postgres_server) -> str:
    """The name of the database that every test's own is a copy of. Override it where tests need a schema."""
    return "template1"


@pytest.fixture
def database_url(postgres_server, migrated_template) -> Iterator[str]:
    """A database of one's own, dropped afterwards together with any session that still uses it."""
    name = f"test_{uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(migrated_template))
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(create)
    yield urlsplit(postgres_server.dsn)._replace(path=f"/{name}").geturl()
    drop(postgres_server.dsn, name)


@pytest.fixture(scope="session")
def bigquery_emulator(tmp_path_factory) -> Iterator[str]:
    """The URL of a running emulator, for `api_endpoint`. Its datasets are shared: choose names of one's own."""
    directory = tmp_path_factory.mktemp("bigquery")
    with EmbeddedBigQuery(directory, free_port()) as emulator:
        yield emulator.url
    shutil.rmtree(directory)
