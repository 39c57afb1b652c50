"""What the service may do in its own database: append and read events, never change them.

`migrate` makes the role and says what it may. Connections of the service take it as they are made, where it is there
and they may: on a laptop the login is the server's owner. In production the service's login is best a member of the
role and nothing else; then there is no way back to more.
"""

from typing import Any, Final

from psycopg import Connection, errors
from psycopg.sql import SQL, Identifier

from projections.tables import CENTRAL

ROLE: Final = "convergence_service"
APPEND_ONLY: Final = ("stored_events", "log_seals")
"""Tables whose rows stay as they are."""

_TAKE: Final = (
    "SELECT set_config('role', rolname, false) FROM pg_roles WHERE rolname = %s AND pg_has_role(oid, %s)"
    " AND to_regclass('stored_events') IS NOT NULL AND has_table_privilege(oid, to_regclass('stored_events'), 'INSERT')"
)


def take_role(connection: Connection[Any]) -> None:
    """Work as the service's role from now on, if `migrate` could make it in this database."""
    connection.execute(_TAKE, (ROLE, _right_to_take(connection)))


def _right_to_take(connection: Connection[Any]) -> str:
    # From version 16 on a member may be one without the right to act as the role: whoever made it is, at first.
    return "SET" if connection.info.server_version >= 160000 else "MEMBER"


def grant(connection: Connection[Any]) -> bool:
    """Make the role and say what it may, in the current schema; whether the login was allowed to.

    To be called in a transaction, after tables were made. Projected tables belong to the role: it builds them anew
    from the log and puts them in the place of the old ones.
    """
    try:
        with connection.transaction():
            _make_role(connection)
            _grant(connection)
    except errors.InsufficientPrivilege:
        return False
    return True


def _make_role(connection: Connection[Any]) -> None:
    there = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone()
    if there is None:
        try:
            with connection.transaction():
                connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(ROLE)))
        except (errors.DuplicateObject, errors.UniqueViolation):
            pass  # roles belong to the whole server: another database's migration was first
    # As a whole member: it has to own what the role owns, and to give it tables.
    wanted = ["USAGE", _right_to_take(connection)]
    row = connection.execute(
        "SELECT bool_and(pg_has_role(%s, p)) AS may FROM unnest(%s::text[]) AS p", (ROLE, wanted)
    ).fetchone()
    if not (row and row["may"]):
        connection.execute(SQL("GRANT {} TO CURRENT_USER").format(Identifier(ROLE)))


def _grant(connection: Connection[Any]) -> None:
    row = connection.execute("SELECT current_schema() AS live").fetchone()
    names = {"role": Identifier(ROLE), "live": Identifier(row["live"] if row else "public")}
    tables = [Identifier(name) for name in APPEND_ONLY]
    for statement in (
        "GRANT USAGE, CREATE ON SCHEMA {live}, rebuild TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {live} TO {role}",
        "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {live} TO {role}",
        "REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM {role}",
    ):
        connection.execute(SQL(statement).format(**names))
    for table in tables:
        connection.execute(SQL("REVOKE UPDATE, DELETE, TRUNCATE ON {} FROM {}").format(table, Identifier(ROLE)))
    for projected in CENTRAL:
        connection.execute(SQL("ALTER TABLE {} OWNER TO {}").format(Identifier(projected.name), Identifier(ROLE)))


def may_change_events(connection: Connection[Any]) -> bool:
    """Whether this connection could alter or delete an event."""
    row = connection.execute(
        "SELECT bool_or(has_table_privilege(%s, privilege)) AS may"
        " FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS p(privilege)",
        ("stored_events",),
    ).fetchone()
    return bool(row and row["may"])
