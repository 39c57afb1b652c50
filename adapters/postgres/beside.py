"""Tables beside the live ones, filled from the log: what the rows ought to be.

A rebuild puts them in the place of the live tables; a verification compares. The database folds, so that memory stays
flat however long the log is; customers' own tables, which PostgreSQL does not have live, are kept here with the
dataset they belong to as part of their key.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres import rows, schema
from projections.fold import Folded, fold
from projections.follow import Placed
from projections.project import changes_of
from projections.rows import Column, Scope, Table, Type
from projections.tables import CUSTOMER

TEMPORARY: Final = "pg_temp"
"""The schema of tables that end with their connection."""
REBUILD: Final = "rebuild"
"""The schema of tables that are to take the place of the live ones."""
DATASET: Final = Column("dataset")
_READ_ROWS: Final = 2_000


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
        row = connection.execute("SELECT current_schema() AS live").fetchone()
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

    def write(self, placed: Sequence[Placed]) -> None:
        """Write the rows of a stretch of the log, which follows what was written before; all or nothing."""
        changes = [
            change for p in placed for change in changes_of(p.event, p.at) if change.row.table.name in self.tables
        ]
        with self._connection.transaction(), self._connection.cursor() as cursor, self._connection.pipeline():
            for statement, parameters in rows.writes_of(map(_kept_row, fold(changes))):
                cursor.execute(statement, parameters, prepare=True)

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        """All rows of a table in the order of its key, a customer's of all datasets; memory stays flat."""
        key = SQL(", ").join(
            SQL("{} {}").format(Identifier(c), _order(self.tables[table], c)) for c in self.tables[table].key
        )
        query = SQL("SELECT * FROM {} ORDER BY {}").format(self.named(table), key)
        with self._connection.transaction(), self._connection.cursor(f"beside_{table}") as cursor:
            cursor.itersize = _READ_ROWS
            cursor.execute(query)
            yield from cursor


def _order(table: Table, column: str) -> SQL:
    text = next(c for c in table.columns if c.name == column).type is Type.STRING
    return SQL('COLLATE "C"') if text else SQL("")


def _kept_row(row: Folded) -> Folded:
    if row.customer_id is None:
        return row
    table = kept(row.table)
    return replace(
        row, table=table, key=(row.customer_id, *row.key), values={DATASET.name: row.customer_id, **row.values}
    )
