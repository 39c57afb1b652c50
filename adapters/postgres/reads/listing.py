"""Lists, newest first, page by page: each page begins after the last row of the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal

from psycopg.sql import SQL, Composable, Identifier

from adapters.postgres.event_log import Reads
from domain.refusals import NotFound
from projections.rows import Table
from projections.tables import CENTRAL

_TABLES = {table.name: table for table in CENTRAL}
_OPERATORS = {"=": SQL("="), ">=": SQL(">="), "<": SQL("<")}


@dataclass(frozen=True, slots=True)
class Mark:
    """A row's place in a list."""

    created_at: datetime
    key: str


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on one column."""

    column: str
    operator: Literal["=", ">=", "<"]
    value: Any


def newest_first(
    reads: Reads, table: Table, where: Sequence[Where], *, after: Mark | None, limit: int
) -> list[dict[str, Any]]:
    """At most `limit` rows of a table with `created_at` and a key of one column; deleted rows are left out."""
    statement = _page_statement(table.name, tuple((w.column, w.operator) for w in where), after is not None)
    values = [w.value for w in where]
    if after is not None:
        values += [after.created_at, after.key]
    with reads.reading() as cursor:
        return cursor.execute(statement, [*values, limit], prepare=True).fetchall()


def one(reads: Reads, table: Table, customer_id: str, key: str) -> dict[str, Any]:
    """A customer's row of that key; raises `NotFound` when there is none, or it was deleted."""
    with reads.reading() as cursor:
        row = cursor.execute(_row_statement(table.name), (key, customer_id), prepare=True).fetchone()
    if row is None:
        raise NotFound("It is not there any more.")
    return row


# Composing a statement takes as long as running it, so each is composed once.


@cache
def _page_statement(name: str, where: tuple[tuple[str, str], ...], later: bool) -> bytes:  # noqa: FBT001 - a cache key
    table = _TABLES[name]
    key = Identifier(*table.key)
    conditions: list[Composable] = [SQL("deleted_at IS NULL")]
    conditions += [SQL("{} {} %s").format(Identifier(column), _OPERATORS[operator]) for column, operator in where]
    if later:
        conditions.append(SQL("(created_at, {}) < (%s, %s)").format(key))
    statement = SQL("SELECT {} FROM {} WHERE {} ORDER BY created_at DESC, {} DESC LIMIT %s").format(
        SQL(", ").join(map(Identifier, table.names)), Identifier(name), SQL(" AND ").join(conditions), key
    )
    return statement.as_bytes(None)


@cache
def _row_statement(name: str) -> bytes:
    table = _TABLES[name]
    statement = SQL("SELECT {} FROM {} WHERE {} = %s AND customer_id = %s AND deleted_at IS NULL").format(
        SQL(", ").join(map(Identifier, table.names)), Identifier(name), Identifier(*table.key)
    )
    return statement.as_bytes(None)
