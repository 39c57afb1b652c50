"""Rows in one form, whichever database they come from: equal rows have equal JSON, byte by byte."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from projections.rows import Table, Type

Row = Mapping[str, Any]
"""A row's columns and `position` in canonical values: instants as text in UTC with microseconds, bytes as hex."""
Key = tuple[Any, ...]

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_EXACT: Final = 2**64


def key_of(table: Table, row: Row) -> Key:
    """What names the row in its table."""
    return tuple(row[column] for column in table.key)


def line_of(row: Row) -> bytes:
    """The row as one line of JSON: columns in alphabetical order, no spaces."""
    return _ENCODER.encode(row) + b"\n"


class Digest:
    """The SHA-256 over the lines of rows, and how many there were."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.rows = 0

    def add(self, row: Row) -> None:
        self._hash.update(line_of(row))
        self.rows += 1

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def amended(digest: str, row: Row | None) -> str:
    """Another digest, for a table in which this row was found to be wrong after all others were added."""
    return hashlib.sha256(digest.encode() + (b"" if row is None else line_of(row))).hexdigest()


def canonical(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in canonical values: what the table defines and `position`, and nothing else that a database may have."""
    values = {column.name: row.get(column.name) for column in table.columns}
    for column in table.columns:
        convert = _CANONICAL.get(column.type)
        if convert is not None and (value := values[column.name]) is not None:
            values[column.name] = convert(value)
    values["position"] = row["position"]
    return values


def native(table: Table, row: Row) -> dict[str, Any]:
    """A canonical row in the values that databases are given: aware instants, dates, bytes."""
    values = dict(row)
    for column in table.columns:
        convert = _NATIVE.get(column.type)
        if convert is not None and (value := values[column.name]) is not None:
            values[column.name] = convert(value)
    return values


def _instant(value: Any) -> str:  # noqa: ANN401 - an instant, or what a database calls one: infinity
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    return str(value)


def _day(value: Any) -> str:  # noqa: ANN401 - as `_instant`
    return value.isoformat() if isinstance(value, date) else str(value)


def _hex(value: Any) -> str:  # noqa: ANN401 - as `_instant`
    return value if isinstance(value, str) else bytes(value).hex()


def _json(value: Any) -> Any:  # noqa: ANN401 - whatever JSON takes
    match value:
        case bool() | str() | None:
            return value
        case int() | float():
            return _number(value)
        case dict():
            return {name: _json(inner) for name, inner in value.items()}
    return [_json(inner) for inner in value]


def _number(value: float) -> float:
    """One spelling of 1, 1.0 and 1e0, which databases do not tell apart; and of what only fits a double."""
    if isinstance(value, int):
        return value if -_EXACT < value < _EXACT else _double(value)
    if value.is_integer() and -_EXACT < value < _EXACT:
        # Through its shortest decimal, which is what a database that counts in decimals was told.
        return int(Decimal(repr(value)))
    return value


def _double(value: int) -> Any:  # noqa: ANN401 - text for what nothing holds
    try:
        return float(value)
    except OverflowError:
        return hex(value)


_CANONICAL: Final[Mapping[Type, Callable[[Any], Any]]] = {
    Type.TIMESTAMP: _instant,
    Type.DATE: _day,
    Type.BYTES: _hex,
    Type.JSON: _json,
}
_NATIVE: Final[Mapping[Type, Callable[[str], Any]]] = {
    Type.TIMESTAMP: datetime.fromisoformat,
    Type.DATE: date.fromisoformat,
    Type.BYTES: bytes.fromhex,
}
