"""Writing projected rows, set by set: one statement per table and shape, however many rows."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from psycopg import Cursor
from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres.json_rows import json_of
from adapters.postgres.schema import TYPES
from projections.fold import Folded, Forgotten, fold
from projections.rows import Change, Scope, Table, Type
from projections.tables import EVERY

_BYTES = {table.name: [c.name for c in table.columns if c.type is Type.BYTES] for table in EVERY}
_JSON = {table.name: [c.name for c in table.columns if c.type is Type.JSON] for table in EVERY}
_RUN: Final = ("run_id",)
_PLACED: Final = SQL("s.position")
# What this session has just appended under the log's lock stands without a gap before its newest position.
_JUST_APPENDED: Final = SQL("currval('stored_events_notification_id_seq') - %s + s.position")


Write = tuple[bytes, list[Any]]
"""A statement and its parameters."""


def write(cursor: Cursor[Any], changes: Sequence[Change]) -> None:
    """Apply changes of central tables. A row that stands at a later position keeps it."""
    forgotten, changed = fold(changes)
    for statement, parameters in (
        *deletes_of(gone for gone in forgotten if gone.table.scope is Scope.CENTRAL),
        *writes_of(row for row in changed if row.table.scope is Scope.CENTRAL),
    ):
        cursor.execute(statement, parameters, prepare=True)


def deletes_of(forgotten: Iterable[Forgotten], *, just_appended: bool = False) -> list[Write]:
    """What removes rows of customers, from the tables in the order in which they come.

    That a row may stand at a later position is not looked at where it follows from events `just_appended`.
    """
    tables: dict[str, tuple[Table, list[dict[str, Any]]]] = {}
    for gone in forgotten:
        line = {"customer_id": gone.customer_id, "position": gone.position}
        tables.setdefault(gone.table.name, (gone.table, []))[1].append(line)
    return [(_delete(table, just_appended), [json_of(lines)]) for table, lines in tables.values()]


def _delete(table: Table, appended: bool) -> bytes:  # noqa: FBT001
    # A customers' table as it is kept beside the live ones begins with the dataset.
    owner = "customer_id" if table.scope is Scope.CENTRAL else table.key[0]
    statement = SQL(
        "DELETE FROM {table} AS t USING json_to_recordset(%s) AS s(customer_id text, position bigint)"
        " WHERE t.{owner} = s.customer_id{earlier}"
    )
    earlier = SQL("") if appended else SQL(" AND t.position < s.position")
    return statement.format(table=Identifier(table.name), owner=Identifier(owner), earlier=earlier).as_bytes(None)


def writes_of(rows: Iterable[Folded], *, just_appended: int = 0, new_runs: bool = False) -> list[Write]:
    """What writes these rows into the tables of their names, in whichever schema the connection looks first.

    Positions of rows that follow from the `just_appended` events of this transaction count those from 1. With
    `new_runs` a whole row of a run that is there already is an error, and not replaced.
    """
    shapes: dict[tuple[str, bool, tuple[str, ...]], list[Folded]] = {}
    for folded in rows:
        # A whole row has every column.
        columns = () if folded.whole else tuple(folded.values)
        shapes.setdefault((folded.table.name, folded.whole, columns), []).append(folded)
    count = [just_appended] if just_appended else []
    writes = []
    for (name, whole, _), alike in sorted(shapes.items(), key=lambda shape: (not shape[0][1], shape[0][0])):
        table, columns = alike[0].table, tuple(alike[0].values)
        shape = _Shape(name, columns, whole, new=new_runs and table.key == _RUN, appended=just_appended > 0)
        writes.append((_statement(table, shape), [*count, *map(json_of, _lines(alike, columns))]))
    return writes


def _lines(alike: Sequence[Folded], columns: tuple[str, ...]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all of these rows have in common, and what is each one's own; NULL is what neither says.

    What is written together is mostly the same, and the server need not read it once for every row.
    """
    table = alike[0].table
    common = _common(alike) if len(alike) > 1 else {}
    own = [name for name in columns if name not in common]
    lines = []
    for folded in alike:
        values = folded.values
        line = {name: value for name in own if (value := values[name]) is not None}
        line["position"] = folded.position
        lines.append(line)
    for name in _BYTES[table.name]:
        for line in (common, *lines):
            if name in line:
                line[name] = "\\x" + line[name].hex()
    return common, lines


def _common(alike: Sequence[Folded]) -> dict[str, Any]:
    values = [folded.values for folded in alike]
    first, last, rows = values[0], values[-1], len(values)
    table = alike[0].table
    # Not all JSON that is equal is the same: 1 and true.
    apart = {*table.key, *_JSON[table.name]}
    return {
        name: value
        for name, value in first.items()
        if value is not None
        and name not in apart
        and last[name] == value
        and list(map(itemgetter(name), values)).count(value) == rows
    }


class _Shape(NamedTuple):
    """What the statements of rows differ in: whether they are `whole`, `new` ones too, and were just `appended`."""

    table: str
    columns: tuple[str, ...]
    whole: bool
    new: bool
    appended: bool


_statements: Final[dict[_Shape, bytes]] = {}


def _statement(table: Table, shape: _Shape) -> bytes:
    # Kept by the table's name: a table hashes over all of its columns. As bytes: the driver would put the pieces
    # together anew at every execution.
    if (known := _statements.get(shape)) is None:
        known = _statements[shape] = _composed(table, shape).as_bytes(None)
    return known


def _composed(table: Table, shape: _Shape) -> Composed:
    types = {column.name: TYPES[column.type] for column in table.columns}
    listed = SQL(", ").join(map(Identifier, shape.columns))
    record = SQL(", ").join(SQL("{} {}").format(Identifier(c), types[c]) for c in shape.columns)
    # The driver's parameters stand in the order of the text, and what is common is given first.
    source = SQL("json_to_record(%s) AS a({0}), json_to_recordset(%s) AS s({0}, position bigint)").format(record)
    place = _JUST_APPENDED if shape.appended else _PLACED
    others = [c for c in shape.columns if c not in table.key]
    if shape.whole:
        insert = SQL("INSERT INTO {table} AS t ({columns}, position) SELECT {values}, {place} FROM {source}").format(
            table=Identifier(table.name),
            columns=listed,
            values=SQL(", ").join(map(_value, shape.columns)),
            place=place,
            source=source,
        )
        # Looking for a row that is there already is a sixth of what it costs to put one.
        return insert if shape.new else insert + _replacing(table, [*others, "position"])
    sets = SQL(", ").join(SQL("{} = {}").format(Identifier(c), _value(c)) for c in others)
    same = SQL(" AND ").join(SQL("t.{0} = s.{0}").format(Identifier(c)) for c in table.key)
    # What was just appended is later than whatever there is.
    later = SQL("") if shape.appended else SQL(" AND t.position < s.position")
    return SQL("UPDATE {table} AS t SET {sets}, position = {place} FROM {source} WHERE {same}{later}").format(
        table=Identifier(table.name), sets=sets, place=place, source=source, same=same, later=later
    )


def _replacing(table: Table, columns: Sequence[str]) -> Composed:
    sets = SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(c)) for c in columns)
    return SQL(" ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE t.position < excluded.position").format(
        key=SQL(", ").join(map(Identifier, table.key)), sets=sets
    )


def _value(column: str) -> Composed:
    return SQL("coalesce(s.{0}, a.{0})").format(Identifier(column))
