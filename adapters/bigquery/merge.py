"""One MERGE for many rows of one table: its SQL, and the rows as the JSON text that is its only parameter.

The statement is standard SQL that means the same at Google and in the emulator. Every row travels as a JSON array,
its places are read with JSON_VALUE, which gives NULL for null, and cast to the column's type. A row changes only if it
comes from a later position than the one it stands at, so that repeating a statement changes nothing.

SQL is kept short: an emulator parses it anew, many times over, for every statement. Columns that no row of the
statement sets, or all set to NULL, do not travel, and only those that some rows set and others do not pay for the
distinction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec

from projections.fold import Folded
from projections.rows import Column, Table, Type

CHUNK_ROWS = 5_000
CHUNK_BYTES = 1_000_000
"""Of UTF-8. Google takes requests of 10 MB, whose own JSON writes a byte of this with up to three; an emulator on a
laptop needs about fifty times the parameter's size in memory, and cannot do 2.5 MB in the 150 MB that it has."""

_JSON = msgspec.json.Encoder()
_FEWEST = 2
"""Columns that travel: of a single one `itemgetter` would return the bare value."""
_Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a MERGE has to tell apart."""

    columns: tuple[str, ...]
    """Those that some row sets, the key included, in the table's order; without the `empty` ones."""
    empty: tuple[str, ...]
    """Those that every row sets, to NULL: nothing of them travels."""
    varying: tuple[str, ...]
    """Those that some rows set and others must keep."""
    inserts: bool
    """Some rows are made if they are missing."""
    updates: bool
    """Some rows are not: they change what is there."""


@dataclass(frozen=True, slots=True)
class Merge:
    """The rows of one table, written in `chunks` of JSON text one after the other by the statement of `shape`."""

    table: Table
    shape: Shape
    chunks: Sequence[str]


def merge_of(rows: Sequence[Folded]) -> Merge:
    """The MERGE for folded rows of one table. Raises `ValueError` for a value that the table cannot hold."""
    table = rows[0].table
    names = table.names
    bits = {name: 1 << place for place, name in enumerate(names)}
    full = (1 << len(names)) - 1
    masks = [full if row.whole else _mask(row.values, bits, table) for row in rows]
    some, every = 0, full
    for mask in masks:
        some |= mask
        every &= mask
    whole = [row.whole for row in rows]
    empty = every & ~_filled(rows, bits, every)
    if (some & ~empty).bit_count() < _FEWEST:
        empty = 0
    shape = Shape(
        columns=tuple(name for name in names if some & ~empty & bits[name]),
        empty=tuple(name for name in names if empty & bits[name]),
        varying=tuple(name for name in names if some & ~every & bits[name]),
        inserts=any(whole),
        updates=not all(whole),
    )
    return Merge(table, shape, list(_chunks(_lines(rows, masks, shape))))


@lru_cache(maxsize=1024)
def merge_sql(target: str, table: Table, shape: Shape, *, guarded: bool = True) -> str:
    """The statement for `target`, a backquoted table name; its one parameter `@rows` is a JSON array of rows.

    Unless it is `guarded`, a row is written also over one that stands at the same or a later position.
    """
    types = {column.name: column.type for column in table.columns}
    fields = [(name, types[name]) for name in shape.columns]
    fields.append(("position", Type.INT64))
    if shape.varying:
        fields.append(("row_present", Type.INT64))
    if shape.inserts and shape.updates:
        fields.append(("row_whole", Type.BOOL))
    source = _source(fields)
    on = " AND ".join(f"t.`{name}` = s.`{name}`" for name in table.key)
    bits = {name: 1 << place for place, name in enumerate(shape.varying)}
    sets = [
        f"`{name}` = IF((s.row_present & {bits[name]}) != 0, s.`{name}`, t.`{name}`)"
        if name in bits
        else f"`{name}` = s.`{name}`"
        for name in shape.columns
        if name not in table.key
    ]
    # Names come from the table definitions alone; values from the parameter alone.
    sql = (
        f"MERGE {target} AS t USING (SELECT {source} FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS r) AS s ON {on} "  # noqa: S608
        f"WHEN MATCHED{' AND s.position > t.position' if guarded else ''}"
        f" THEN UPDATE SET {', '.join([*sets, *(f'`{name}` = NULL' for name in shape.empty), 'position = s.position'])}"
    )
    if shape.inserts:
        names = [f"`{name}`" for name in (*shape.columns, "position")]
        sql += (
            f" WHEN NOT MATCHED{' AND s.row_whole' if shape.updates else ''} THEN INSERT ({', '.join(names)})"  # noqa: S608
            f" VALUES ({', '.join(f's.{name}' for name in names)})"
        )
    return sql


@lru_cache(maxsize=256)
def forget_sql(target: str) -> str:
    """The statement that removes what customers have in the central table `target`, a backquoted name.

    Its one parameter `@rows` is a JSON array of customer ids with the position of the event that forgets each.
    """
    gone = _source([("customer_id", Type.STRING), ("position", Type.INT64)])
    return (
        f"MERGE {target} AS t USING (SELECT {gone} FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS r) AS s"  # noqa: S608
        " ON t.customer_id = s.customer_id WHEN MATCHED AND s.position > t.position THEN DELETE"
    )


def keys_sql(table: Table) -> str:
    """The keys in the parameter `@keys`, a JSON array of arrays, as columns."""
    types = {column.name: column.type for column in table.columns}
    keys = _source([(name, types[name]) for name in table.key])
    return f"SELECT DISTINCT {keys} FROM UNNEST(JSON_QUERY_ARRAY(@keys)) AS r"  # noqa: S608 - names


def _source(fields: Sequence[tuple[str, Type]]) -> str:
    return ", ".join(f"{value_of('r', f'$[{place}]', kind)} AS `{name}`" for place, (name, kind) in enumerate(fields))


def value_of(document: str, path: str, kind: Type) -> str:
    """What stands at a path of a JSON text, as a value of the type: the three in SQL, the result too."""
    text = f"JSON_VALUE({document}, '{path}')"
    match kind:
        case Type.STRING:
            return text
        case Type.BYTES:
            return f"FROM_BASE64({text})"
        case Type.JSON:
            # Rounds a number that has no exact double, where the default is to fail the whole statement.
            return f"PARSE_JSON({text}, wide_number_mode => 'round')"
        case _:
            return f"CAST({text} AS {kind.value})"


def _mask(values: Mapping[str, Any], bits: Mapping[str, int], table: Table) -> int:
    mask = 0
    for name in values:
        if name not in bits:
            raise ValueError(f"{table.name} has no column {name}")
        mask |= bits[name]
    return mask


def _filled(rows: Sequence[Folded], bits: Mapping[str, int], wanted: int) -> int:
    """In which of the wanted columns some row has a value."""
    filled = 0
    for row in rows:
        for name, value in row.values.items():
            if value is not None:
                filled |= bits.get(name, 0)  # what is no column is refused where it is written
        if filled & wanted == wanted:
            break
    return filled


def _lines(rows: Sequence[Folded], masks: Sequence[int], shape: Shape) -> Iterator[bytes]:
    """Each row as a JSON array: the shape's columns, position, and what tells rows apart."""
    table, columns = rows[0].table, shape.columns
    pick_all = itemgetter(*columns)
    types = {column.name: column for column in table.columns}
    conversions = [
        (place, convert)
        for place, name in enumerate(columns)
        if (convert := _conversion(table, types[name])) is not None
    ]
    # The statement numbers the varying columns by themselves: fewer bits, whatever the table's width.
    places = [(1 << table.names.index(name), 1 << place) for place, name in enumerate(shape.varying)]
    mixed = shape.inserts and shape.updates
    encode = _JSON.encode
    for row, mask in zip(rows, masks, strict=True):
        values = row.values
        if row.whole:
            if len(values) != len(table.columns) or len(columns) + len(shape.empty) != len(values):
                raise ValueError(f"{table.name}: a whole row has every column, once")
            try:
                line = list(pick_all(values))
            except KeyError as missing:
                raise ValueError(f"{table.name}: a whole row lacks {missing}") from None
        else:
            line = [values.get(name) for name in columns]
        for place, convert in conversions:
            value = line[place]
            if value is not None:
                line[place] = convert(value)
        line.append(row.position)
        if places:
            line.append(sum(bit for there, bit in places if mask & there))
        if mixed:
            line.append(row.whole)
        yield encode(line)


def _conversion(table: Table, column: Column) -> _Convert | None:
    """How a value becomes one that msgspec writes as BigQuery reads it; None where it does so by itself."""

    def aware(value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError(f"{table.name}.{column.name}: an instant without a zone")
        return value

    match column.type:
        case Type.TIMESTAMP:
            return aware
        case Type.JSON:
            return lambda value: _JSON.encode(value).decode()
        case _:
            return None


def _chunks(lines: Iterator[bytes]) -> Iterator[str]:
    """JSON arrays of whole lines, each within the bounds unless a single line is larger."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and (len(held) == CHUNK_ROWS or size + len(line) > CHUNK_BYTES):
            yield _array(held)
            held, size = [], 0
        held.append(line)
        size += len(line) + 1
    if held:
        yield _array(held)


def _array(lines: list[bytes]) -> str:
    return "[" + b",".join(lines).decode() + "]"
