"""Whole rows as the files of newline-delimited JSON that load jobs read."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import IO, Any, Final

import msgspec

from projections.rows import Table, Type

SLICE_BYTES: Final = 64_000_000
"""An emulator answers nobody else while it loads one: about two seconds. Google takes 1,500 a day for each table."""
_EXACT: Final = 2**53
"""Integers beyond it are written as text, because readers of JSON may take numbers for doubles."""

_JSON = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows in a temporary file, to be closed after use."""

    file: IO[bytes]
    rows: int


def slices(table: Table, rows: Iterable[Mapping[str, Any]], *, size: int = SLICE_BYTES) -> Iterator[Slice]:
    """The rows in files of about `size` bytes, made as they are asked for.

    Raises `ValueError` for a row that lacks a column, and for an instant without a zone.
    """
    rest = iter(rows)
    for first in rest:
        file, count = tempfile.TemporaryFile(), 0  # noqa: SIM115 - whoever takes the slice closes it
        try:
            for row in chain([first], rest):
                file.write(line(table, row))
                count += 1
                if file.tell() >= size:
                    break
        except BaseException:
            file.close()
            raise
        yield Slice(file, count)


def line(table: Table, row: Mapping[str, Any]) -> bytes:
    """One row as a JSON object; NULLs are left out."""
    try:
        values = {name: _plain(table, name, row[name]) for name in table.names if row[name] is not None}
        values["position"] = row["position"]
    except KeyError as missing:
        raise ValueError(f"{table.name}: a whole row lacks {missing}") from None
    return _JSON.encode(values) + b"\n"


def _plain(table: Table, name: str, value: Any) -> Any:  # noqa: ANN401 - whatever a column holds
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"{table.name}.{name}: an instant without a zone")
    if type(value) is int and not -_EXACT <= value <= _EXACT and _type(table, name) is Type.INT64:
        return str(value)
    return value


def _type(table: Table, name: str) -> Type:
    return next(column.type for column in table.columns if column.name == name)
