"""Tables and the changes that events make to them, in words that no database knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, final

import msgspec


class Type(StrEnum):
    """BigQuery's standard SQL type names. Values are str, int, bool, datetime (aware), date, bytes and plain JSON."""

    STRING = "STRING"
    INT64 = "INT64"
    BOOL = "BOOL"
    TIMESTAMP = "TIMESTAMP"
    DATE = "DATE"
    BYTES = "BYTES"
    JSON = "JSON"


class Scope(StrEnum):
    """Where a table lives: once in the central dataset, or once in every customer's."""

    CENTRAL = "central"
    CUSTOMER = "customer"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: Type = Type.STRING
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table: `columns` in order, the `key` that names a row, and how BigQuery lays it out.

    Every table ends with `position`, the place in the event log of the last event that touched the row.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    scope: Scope = Scope.CENTRAL
    partition_by: str | None = None
    cluster_by: tuple[str, ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    """PostgreSQL's secondary indexes, for the service's own reads."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


# What there are three of for every event costs a sixth of a frozen dataclass as a struct.
class Put(msgspec.Struct, frozen=True):
    """A whole row: made, or replaced. Every column but `position` is given."""

    table: Table
    values: Mapping[str, Any]


class Set(msgspec.Struct, frozen=True):
    """Some columns of a row that an earlier event put there; `values` includes the key."""

    table: Table
    values: Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Forget:
    """Every row of the table that is this customer's and stands at an earlier position goes for good.

    Of a central table the rows with the customer's id; of a customers' table all that there is in its dataset.
    """

    table: Table
    customer_id: str


RowChange = Put | Set | Forget


class Change(msgspec.Struct, frozen=True):
    """A row change at its place in the log. `customer_id` names the dataset of a customer's table."""

    row: RowChange
    position: int
    customer_id: str


class RowWriter(Protocol):
    """Where rows go behind the log."""

    def write(self, changes: Sequence[Change]) -> None:
        """Apply changes in order. Idempotent: a row that already stands at a later position keeps it.

        Several changes of one row are folded first, so that each row is written once per call.
        """
