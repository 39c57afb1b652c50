"""Tables beside the live ones, filled from the log: what the rows ought to be.

A rebuild puts them in the place of the live tables; a verification compares. The database folds, so that memory stays
flat however long the log is; customers' own tables, which PostgreSQL does not have live, are kept here with the
dataset they belong to as part of their key.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import msgspec
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres import privileges, rows, schema
from domain.envelope import Envelope
from projections.fold import Folded, Forgotten, fold
from projections.follow import Placed
from projections.project import central_rows, changes_of
from projections.rows import Change, Column, Scope, Table, Type
from projections.tables import CUSTOMER

TEMPORARY: Final = "pg_temp"
"""The schema of tables that end with their connection."""
REBUILD: Final = "rebuild"
"""The schema of tables that are to take the place of the live ones."""
DATASET: Final = Column("dataset")
_READ_ROWS: Final = 2_000
_LIVE: Final = (
    "SELECT s AS live FROM unnest(current_schemas(false)) WITH ORDINALITY u(s, n)"
    " WHERE s <> %s AND s NOT LIKE 'pg\\_%%' ORDER BY n LIMIT 1"
)
"""The schema of the live tables, also on a connection that had tables beside them before."""
_GRANTS: Final = (
    "SELECT a.privilege_type, a.is_grantable, r.rolname AS role FROM pg_class c CROSS JOIN aclexplode(c.relacl) a"
    " LEFT JOIN pg_roles r ON r.oid = a.grantee"
    " WHERE c.oid = to_regclass(quote_ident(%(live)s) || '.' || quote_ident(%(table)s)) AND a.grantee <> c.relowner"
)
"""What roles other than its owner may do with a table; no role stands for everybody."""


@cache
def _customers(name: str) -> Table:
    table = next(t for t in CUSTOMER if t.name == name)
    return replace(table, columns=(DATASET, *table.columns), key=(DATASET.name, *table.key), indexes=())


def kept(table: Table) -> Table:
    """The table as it stands beside the live ones: a customer's has the dataset in its key."""
    if table.scope is Scope.CENTRAL:
        return table
    return _customers(table.name)


class Beside:
    """Some of the projected tables in a schema of their own, on one connection that nobody else uses meanwhile."""

    def __init__(self, connection: Connection[DictRow], where: str, tables: Sequence[Table]) -> None:
        self.tables = {table.name: kept(table) for table in tables}
        self._connection = connection
        self._where = where
        self._has_customers = any(table.scope is Scope.CUSTOMER for table in tables)
        row = connection.execute(_LIVE, (where,)).fetchone()
        self.live = row["live"] if row else "public"
        connection.execute(SQL("SET search_path = {}, {}").format(Identifier(where), Identifier(self.live)))

    def create(self) -> None:
        """Make the tables that are not there, without the indexes that only readers of live tables need."""
        for table in self.tables.values():
            self._connection.execute(schema.create_table(table))

    def drop(self) -> None:
        for name in self.tables:
            self._connection.execute(SQL("DROP TABLE IF EXISTS {}").format(self.named(name)))

    def named(self, table: str) -> Composed:
        """The table's qualified name, for statements that name it beside its live twin."""
        return SQL("{}.{}").format(Identifier(self._where), Identifier(table))

    def writes(self, placed: Sequence[Placed]) -> list[rows.Write]:
        """What `apply` sends for a stretch of the log: all the work that can be done before."""
        of = changes_of if self._has_customers else _central_changes
        names = self.tables.keys()
        changes = [change for p in placed for change in of(p.event, p.at) if change.row.table.name in names]
        forgotten, changed = fold(changes)
        return [*rows.deletes_of(map(_kept_gone, forgotten)), *rows.writes_of(map(_kept_row, changed))]

    def apply(self, writes: Sequence[rows.Write]) -> None:
        """Write the rows of a stretch of the log, which follows what was written before; all or nothing."""
        with self._connection.transaction(), self._connection.cursor() as cursor, self._connection.pipeline():
            for statement, parameters in writes:
                cursor.execute(statement, parameters, prepare=True)

    def write(self, placed: Sequence[Placed]) -> None:
        """`writes` and `apply` in one."""
        self.apply(self.writes(placed))

    def index(self) -> None:
        """Give the central tables what readers need: indexes, statistics, row-level security, and others' grants."""
        for table in self.tables.values():
            if table.scope is Scope.CENTRAL:
                for statement in schema.indexes(table):
                    self._connection.execute(statement)
                if privileges.is_tenants(table):
                    privileges.bind_rows(self._connection, self.named(table.name))
                for grant in self._connection.execute(_GRANTS, {"live": self.live, "table": table.name}).fetchall():
                    self._connection.execute(_grant(self.named(table.name), grant))
            self._connection.execute(SQL("VACUUM (ANALYZE) {}").format(self.named(table.name)))

    def rows(self, table: str) -> Generator[dict[str, Any]]:
        """All rows of a table in the order of its key, a customer's of all datasets; memory stays flat."""
        key = SQL(", ").join(
            SQL("{}{}").format(Identifier(c), collation(self.tables[table], c)) for c in self.tables[table].key
        )
        query = SQL("SELECT * FROM {} ORDER BY {}").format(self.named(table), key)
        with self._connection.transaction(), self._connection.cursor(f"beside_{table}") as cursor:
            cursor.itersize = _READ_ROWS
            cursor.execute(query)
            yield from cursor


def collation(table: Table, column: str) -> SQL:
    """What follows a column in an order that does not depend on the server's language."""
    text = next(c for c in table.columns if c.name == column).type is Type.STRING
    return SQL(' COLLATE "C"') if text else SQL("")


def _central_changes(event: object, at: Envelope) -> Iterator[Change]:
    return (Change(row, at.position, at.customer_id) for row in central_rows(event, at))


def _grant(name: Composed, grant: DictRow) -> Composed:
    return SQL("GRANT {} ON {} TO {}{}").format(
        SQL(grant["privilege_type"]),
        name,
        Identifier(grant["role"]) if grant["role"] else SQL("PUBLIC"),
        SQL(" WITH GRANT OPTION" if grant["is_grantable"] else ""),
    )


def _kept_gone(gone: Forgotten) -> Forgotten:
    return replace(gone, table=kept(gone.table))


def _kept_row(row: Folded) -> Folded:
    if row.customer_id is None:
        return row
    table = kept(row.table)
    return msgspec.structs.replace(
        row, table=table, key=(row.customer_id, *row.key), values={DATASET.name: row.customer_id, **row.values}
    )
