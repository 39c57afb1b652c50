"""What the service may do in its own database: append and read events, never change them.

`migrate` makes the role and says what it may. Connections of the service take it as they are made, where it is there
and they may: on a laptop the login is the server's owner. In production the service's login is best a member of the
role and nothing else; then there is no way back to more.

What is read on a customer's behalf is read in a second role, which sees that customer's rows only.
"""

from typing import Any, Final

from psycopg import Connection, errors
from psycopg.sql import SQL, Composable, Identifier

from projections.rows import Table
from projections.tables import CENTRAL

ROLE: Final = "convergence_service"
TENANT: Final = "convergence_tenant"
"""Whoever has this role sees the rows of the customer that `convergence.customer_id` names, and no others."""
TENANTS_EVENTS: Final = "stored_events"
"""Customers' events lie among all others': they are told apart by the same column as rows are."""
TENANTS_BESIDE: Final = ("notifications", "notification_deliveries", "bigquery_grants")
"""Tables of customers that no projection makes anew."""
OWN_ROWS: Final = "own_rows"
"""The policy that leaves the tenants' role a customer's rows."""
APPEND_ONLY: Final = ("stored_events", "log_seals", "decryptions")
"""Tables whose rows stay as they are."""

_TAKE: Final = (
    "SELECT set_config('role', rolname, false) FROM pg_roles WHERE rolname = %s AND pg_has_role(oid, %s)"
    " AND to_regclass('stored_events') IS NOT NULL AND has_table_privilege(oid, to_regclass('stored_events'), 'INSERT')"
)
_MAY_BIND: Final = (
    "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s AND pg_has_role(session_user, oid, %s)"
    " AND to_regclass('customer_profiles') IS NOT NULL"
    " AND has_table_privilege(oid, to_regclass('customer_profiles'), 'SELECT')) AS may"
)
_UNBOUND: Final = (
    "SELECT c.relname AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'customer_id'"
    " JOIN pg_roles r ON r.rolname = %(tenant)s"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT a.attisdropped"
    " AND has_table_privilege(r.oid, c.oid, 'SELECT') AND NOT (c.relrowsecurity AND EXISTS ("
    "  SELECT FROM pg_policy WHERE polrelid = c.oid AND NOT polpermissive AND polcmd = 'r'"
    "  AND polroles = ARRAY[r.oid] AND pg_get_expr(polqual, polrelid)"
    "   = '(customer_id = current_setting(''convergence.customer_id''::text, true))')) ORDER BY 1"
)
# The one lets every role read what it was granted; the other leaves the tenants' role none but the customer's rows.
_POLICIES: Final = {
    "readable": "CREATE POLICY readable ON {table} USING (true)",
    OWN_ROWS: (
        f"CREATE POLICY {OWN_ROWS} ON {{table}} AS RESTRICTIVE FOR SELECT TO {{tenant}}"
        " USING (customer_id = current_setting('convergence.customer_id', true))"
    ),
}


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
    _make(connection, ROLE)
    # As a whole member: it has to own what the role owns, and to give it tables.
    wanted = ["USAGE", _right_to_take(connection)]
    row = connection.execute(
        "SELECT bool_and(pg_has_role(%s, p)) AS may FROM unnest(%s::text[]) AS p", (ROLE, wanted)
    ).fetchone()
    if not (row and row["may"]):
        connection.execute(SQL("GRANT {} TO CURRENT_USER").format(Identifier(ROLE)))


def _make(connection: Connection[Any], role: str) -> None:
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
        try:
            with connection.transaction():
                connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(role)))
        except (errors.DuplicateObject, errors.UniqueViolation):
            pass  # roles belong to the whole server: another database's migration was first


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


def grant_tenant(connection: Connection[Any]) -> bool:
    """Make the role in which customers' rows are read, and say which those are; whether the login was allowed to.

    To be called after `grant`, in the same transaction. Tables that are as they should be are not locked.
    """
    try:
        with connection.transaction():
            _make_tenant(connection)
            row = connection.execute("SELECT current_schema() AS live").fetchone()
            live = Identifier(row["live"] if row else "public")
            connection.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(live, Identifier(TENANT)))
            for name in (TENANTS_EVENTS, *TENANTS_BESIDE, *(table.name for table in CENTRAL if is_tenants(table))):
                bind_rows(connection, Identifier(name))
                connection.execute(SQL("GRANT SELECT ON {} TO {}").format(Identifier(name), Identifier(TENANT)))
    except errors.InsufficientPrivilege:
        return False
    return True


def is_tenants(table: Table) -> bool:
    """Whether each row of the table is a customer's."""
    return "customer_id" in table.names


def bind_rows(connection: Connection[Any], table: Composable) -> None:
    """Leave the tenants' role no rows of this table but the customer's; nothing where there is no such role.

    Every other role reads what it was granted, as before.
    """
    text = table.as_string(connection)
    row = connection.execute(
        "SELECT relrowsecurity AS on, array(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid) AS policies"
        " FROM pg_class c WHERE oid = to_regclass(%s) AND EXISTS (SELECT FROM pg_roles WHERE rolname = %s)",
        (text, TENANT),
    ).fetchone()
    if row is None:
        return
    for name, statement in _POLICIES.items():
        if name not in row["policies"]:
            connection.execute(SQL(statement).format(table=table, tenant=Identifier(TENANT)))
    if not row["on"]:
        connection.execute(SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(table))


def may_bind(connection: Connection[Any]) -> bool:
    """Whether statements of this connection can be bound to a customer's rows: whether `migrate` has seen to it."""
    row = connection.execute(_MAY_BIND, (TENANT, _right_to_take(connection))).fetchone()
    return bool(row and row["may"])


def unbound(connection: Connection[Any]) -> list[str]:
    """Tables with customers' rows that the tenants' role may read without being bound to a customer."""
    return [row["name"] for row in connection.execute(_UNBOUND, {"tenant": TENANT}).fetchall()]


def _make_tenant(connection: Connection[Any]) -> None:
    _make(connection, TENANT)
    # The service takes the role for as long as a statement; what it may itself does not follow from it.
    right = _right_to_take(connection)
    row = connection.execute("SELECT pg_has_role(%s, %s, %s) AS may", (ROLE, TENANT, right)).fetchone()
    if not (row and row["may"]):
        options = SQL(" WITH INHERIT FALSE, SET TRUE" if right == "SET" else "")
        connection.execute(SQL("GRANT {} TO {}").format(Identifier(TENANT), Identifier(ROLE)) + options)


def may_change_events(connection: Connection[Any]) -> bool:
    """Whether this connection could alter or delete an event."""
    row = connection.execute(
        "SELECT bool_or(has_table_privilege(%s, privilege)) AS may"
        " FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS p(privilege)",
        ("stored_events",),
    ).fetchone()
    return bool(row and row["may"])
