"""Databases that live as long as one measurement."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg

from adapters.bootstrap import Service, build
from adapters.postgres.schema import migrate
from adapters.process import settle
from adapters.settings import Settings
from tests.databases import drop


@contextmanager
def database(server: str) -> Iterator[str]:
    """An empty database on this server."""
    name = f"bench_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    drop(server, name)


@contextmanager
def service_on(server: str) -> Iterator[Service]:
    """A migrated service on a database and a directory of its own; its BigQuery is away."""
    with database(server) as dsn, tempfile.TemporaryDirectory() as directory:
        service = build(Settings(data_dir=Path(directory), bigquery_emulator_host="127.0.0.1:1"), dsn)
        settle()
        with service.datastore.reading() as cursor:
            migrate(cursor.connection)
        try:
            yield service
        finally:
            service.close()


def rested(service: Service) -> None:
    """Statistics and visibility as autovacuum would have left them, had there been time."""
    with service.datastore.reading() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("RESET statement_timeout")
