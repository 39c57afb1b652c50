"""The database's shape: numbered migrations for what the service keeps, and the projected tables from their one place.

`migrate` is the only code that creates tables, one process at a time under a lock: processes that create tables
together die of PostgreSQL's "tuple concurrently updated".
"""

import logging
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, LiteralString

from psycopg import Connection
from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres import privileges
from projections.rows import Table, Type
from projections.tables import CENTRAL

logger = logging.getLogger(__name__)

_LOCK: Final = 0x0C0F_FEE0
TYPES: Final = {
    Type.STRING: SQL("text"),
    Type.INT64: SQL("bigint"),
    Type.BOOL: SQL("boolean"),
    Type.TIMESTAMP: SQL("timestamptz"),
    Type.DATE: SQL("date"),
    Type.BYTES: SQL("bytea"),
    Type.JSON: SQL("jsonb"),
}

_PARTIAL_INDEXES: Final[Mapping[str, tuple[LiteralString, ...]]] = {
    "pipeline_execution_queue": (
        (
            "CREATE INDEX IF NOT EXISTS queue_waiting ON pipeline_execution_queue (coalesce(date_bin("
            "interval '10 seconds', not_before, timestamptz '2000-01-01 00:00Z'), timestamptz '-infinity'),"
            " hashtext(customer_id), customer_id, priority, coalesce(not_before, timestamptz '-infinity'),"
            " scheduled_time, run_id) WHERE state = 'PENDING' AND deleted_at IS NULL AND priority > 0"
        ),
        (
            "CREATE INDEX IF NOT EXISTS queue_first ON pipeline_execution_queue (scheduled_time, run_id)"
            " WHERE state = 'PENDING' AND deleted_at IS NULL AND priority = 0"
        ),
        (
            "CREATE INDEX IF NOT EXISTS queue_not_before ON pipeline_execution_queue (not_before)"
            " WHERE state = 'PENDING' AND deleted_at IS NULL AND not_before IS NOT NULL"
        ),
        (
            "CREATE INDEX IF NOT EXISTS queue_running ON pipeline_execution_queue (customer_id)"
            " WHERE state = 'RUNNING' AND deleted_at IS NULL"
        ),
        (
            "CREATE INDEX IF NOT EXISTS queue_scheduled ON pipeline_execution_queue (config_id)"
            " WHERE deleted_at IS NULL AND priority IN (30, 40)"
        ),
    ),
    "customer_pipeline_configs": (
        (
            "CREATE INDEX IF NOT EXISTS pipelines_due_of ON customer_pipeline_configs (next_run_time, customer_id)"
            " WHERE is_active AND deleted_at IS NULL AND next_run_time IS NOT NULL"
        ),
    ),
    "scheduled_pipeline_runs": (
        (
            "CREATE INDEX IF NOT EXISTS runs_of_backfill ON scheduled_pipeline_runs (backfill_id)"
            " WHERE backfill_id IS NOT NULL"
        ),
    ),
    "customer_profiles": (
        "CREATE INDEX IF NOT EXISTS profiles_unprovisioned ON customer_profiles (created_at) WHERE NOT dataset_created",
        "CREATE UNIQUE INDEX IF NOT EXISTS profiles_any_case ON customer_profiles (lower(customer_id))",
    ),
}


def migrate(connection: Connection[Any]) -> list[str]:
    """Bring the database to this code's shape; returns the names of the migrations applied now.

    Idempotent, safe to call from several processes at once, all or nothing.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        done = {row["name"] for row in connection.execute("SELECT name FROM schema_migrations")}
        applied = [name for name in migrations() if name not in done]
        for name in applied:
            text = (files("adapters.postgres") / "migrations" / f"{name}.sql").read_text()
            connection.execute(text.encode())
            connection.execute("INSERT INTO schema_migrations (name) VALUES (%s)", (name,))
        for table in CENTRAL:
            connection.execute(create_table(table))
            for statement in (*_new_columns(table), *indexes(table)):
                connection.execute(statement)
        if not privileges.grant(connection):
            logger.warning("The login may not make roles: the service can change events. See docs/operating.md.")
        if not privileges.grant_tenant(connection):
            logger.warning("The login may not make roles: no row-level security for customers. See docs/operating.md.")
    return applied


def migrations() -> list[str]:
    """The names of all migrations, in order."""
    folder = files("adapters.postgres") / "migrations"
    return sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))


def is_current(connection: Connection[Any]) -> bool:
    """Whether `migrate` has nothing to do."""
    there = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL AS there").fetchone()
    if not there or not there["there"]:
        return False
    done = {row["name"] for row in connection.execute("SELECT name FROM schema_migrations")}
    columns = {
        (row["table_name"], row["column_name"])
        for row in connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        )
    }
    wanted = {(table.name, name) for table in CENTRAL for name in table.names}
    return done.issuperset(migrations()) and columns.issuperset(wanted)


def create_table(table: Table) -> Composed:
    """The statement that makes a projected table, if it is not there, in the first schema of the search path.

    Projected tables can be dropped and filled from the log.
    """
    columns = [SQL("{} {}").format(Identifier(c.name), TYPES[c.type]) for c in table.columns]
    key = SQL(", ").join(map(Identifier, table.key))
    create = SQL("CREATE TABLE IF NOT EXISTS {} ({}, position bigint NOT NULL, PRIMARY KEY ({})) WITH (fillfactor=80)")
    return create.format(Identifier(table.name), SQL(", ").join(columns), key)


def _new_columns(table: Table) -> list[Composed]:
    add = SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}")
    return [add.format(Identifier(table.name), Identifier(c.name), TYPES[c.type]) for c in table.columns]


def indexes(table: Table) -> list[Composed]:
    """The statements that make a projected table's indexes beside its key, where they are not there."""
    plain = [
        SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})").format(
            Identifier("_".join((table.name, *index))[:63]),
            Identifier(table.name),
            SQL(", ").join(map(Identifier, index)),
        )
        for index in table.indexes
    ]
    return [*plain, *(SQL(index).format() for index in _PARTIAL_INDEXES.get(table.name, ()))]
