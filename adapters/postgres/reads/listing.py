"""Lists, newest first, page by page: each page begins after the last row of the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres.event_log import Datastore
from domain.refusals import NotFound
from projections.rows import Table

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
    datastore: Datastore, table: Table, where: Sequence[Where], *, after: Mark | None, limit: int
) -> list[dict[str, Any]]:
    """At most `limit` rows of a table with `created_at` and a key of one column; deleted rows are left out."""
    conditions: list[Composed | SQL] = [SQL("deleted_at IS NULL")]
    values: list[Any] = []
    for condition in where:
        conditions.append(SQL("{} {} %s").format(Identifier(condition.column), _OPERATORS[condition.operator]))
        values.append(condition.value)
    key = Identifier(*table.key)
    if after is not None:
        conditions.append(SQL("(created_at, {}) < (%s, %s)").format(key))
        values += [after.created_at, after.key]
    statement = SQL("SELECT {} FROM {} WHERE {} ORDER BY created_at DESC, {} DESC LIMIT %s").format(
        SQL(", ").join(map(Identifier, table.names)), Identifier(table.name), SQL(" AND ").join(conditions), key
    )
    with datastore.reading() as cursor:
        return cursor.execute(statement, [*values, limit], prepare=True).fetchall()


def one(datastore: Datastore, table: Table, customer_id: str, key: str) -> dict[str, Any]:
    """A customer's row of that key; raises `NotFound` when there is none, or it was deleted."""
    statement = SQL("SELECT {} FROM {} WHERE {} = %s AND customer_id = %s AND deleted_at IS NULL").format(
        SQL(", ").join(map(Identifier, table.names)), Identifier(table.name), Identifier(*table.key)
    )
    with datastore.reading() as cursor:
        row = cursor.execute(statement, (key, customer_id), prepare=True).fetchone()
    if row is None:
        raise NotFound("It is not there any more.")
    return row
