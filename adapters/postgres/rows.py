"""Writing projected rows, set by set: one statement per table and shape, however many rows."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from psycopg import Cursor
from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres.schema import TYPES
from projections.fold import fold
from projections.rows import Change, Scope, Table
from projections.tables import CENTRAL

_TABLES = {table.name: table for table in CENTRAL}
_JSON = msgspec.json.Encoder(enc_hook=str)


def write(cursor: Cursor[Any], changes: Sequence[Change]) -> None:
    """Apply changes of central tables. A row that stands at a later position keeps it."""
    shapes: dict[tuple[str, bool, tuple[str, ...]], list[dict[str, Any]]] = {}
    for folded in fold([c for c in changes if c.row.table.scope is Scope.CENTRAL]):
        values = {name: _hex(value) for name, value in folded.values.items()}
        values["position"] = folded.position
        shapes.setdefault((folded.table.name, folded.whole, tuple(sorted(folded.values))), []).append(values)
    for (name, whole, columns), rows in sorted(shapes.items(), key=lambda shape: (not shape[0][1], shape[0][0])):
        cursor.execute(_statement(name, whole, columns), (_JSON.encode(rows).decode(),), prepare=True)


def _hex(value: Any) -> Any:  # noqa: ANN401 - a column's value
    return "\\x" + value.hex() if isinstance(value, bytes) else value


@cache
def _statement(name: str, whole: bool, columns: tuple[str, ...]) -> bytes:  # noqa: FBT001 - a cache key
    # As bytes: the driver would put the pieces together anew at every execution.
    return _composed(_TABLES[name], whole=whole, columns=columns).as_bytes(None)


def _composed(table: Table, *, whole: bool, columns: tuple[str, ...]) -> Composed:
    types = {column.name: TYPES[column.type] for column in table.columns}
    listed = SQL(", ").join(map(Identifier, columns))
    record = SQL(", ").join(SQL("{} {}").format(Identifier(c), types[c]) for c in columns)
    source = SQL("json_to_recordset(%s::json) AS s({}, position bigint)").format(record)
    others = [c for c in columns if c not in table.key]
    if whole:
        sets = SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(c)) for c in [*others, "position"])
        return SQL(
            "INSERT INTO {table} AS t ({columns}, position) SELECT {columns}, position FROM {source}"
            " ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE t.position < excluded.position"
        ).format(table=Identifier(table.name), columns=listed, source=source, key=_key(table), sets=sets)
    sets = SQL(", ").join(SQL("{0} = s.{0}").format(Identifier(c)) for c in [*others, "position"])
    same = SQL(" AND ").join(SQL("t.{0} = s.{0}").format(Identifier(c)) for c in table.key)
    return SQL("UPDATE {table} AS t SET {sets} FROM {source} WHERE {same} AND t.position < s.position").format(
        table=Identifier(table.name), sets=sets, source=source, same=same
    )


def _key(table: Table) -> Composed:
    return SQL(", ").join(map(Identifier, table.key))
