"""A database whose clock stands still until it is told what time it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import psycopg
from psycopg import Connection, sql

from adapters.postgres.privileges import ROLE
from tests.application.world import migrated
from tests.databases import drop

BEGINNING: Final = datetime(2026, 1, 1, tzinfo=UTC)

# Found before PostgreSQL's own, so that every statement of the service reads it without knowing.
_INSTALL: Final = (
    "CREATE SCHEMA virtual",
    "CREATE TABLE virtual.clock (at timestamptz NOT NULL)",
    "INSERT INTO virtual.clock VALUES ('2026-01-01T00:00:00Z')",
    (
        "CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql VOLATILE"
        " AS 'BEGIN RETURN (SELECT at FROM virtual.clock); END'"
    ),
    # The service's role would not see what it may not use, and read the real clock.
    f"GRANT USAGE ON SCHEMA virtual TO {ROLE}",
    f"GRANT SELECT ON virtual.clock TO {ROLE}",
)


@contextmanager
def virtual_database(server: str) -> Iterator[str]:
    """A migrated database of its own on the server at this DSN, with a virtual clock, for as long as the block."""
    name = migrated(server)
    dsn = urlsplit(server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in _INSTALL:
            connection.execute(statement)
        path = sql.SQL("ALTER DATABASE {} SET search_path = virtual, pg_catalog, public")
        connection.execute(path.format(sql.Identifier(name)))
    try:
        yield dsn
    finally:
        drop(server, name)


class VirtualClock:
    """The hands of a virtual database's clock, and the way to what only its operator can do."""

    def __init__(self, dsn: str, now: datetime = BEGINNING) -> None:
        self._connection: Connection = psycopg.connect(dsn, autocommit=True)
        self.now = now
        self.set(now)

    def close(self) -> None:
        self._connection.close()

    def set(self, now: datetime) -> None:
        self.now = now
        self._connection.execute("UPDATE virtual.clock SET at = %s", (now,))

    def empty(self) -> None:
        """Take every row out of every table but the clock's and the list of migrations."""
        names = self._connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
        ).fetchall()
        tables = sql.SQL(", ").join(sql.Identifier("public", name) for (name,) in names)
        self._connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))

    def cut(self, backend: int) -> None:
        """End a session of the service, whatever it is doing; returns when it is gone."""
        self._connection.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))
