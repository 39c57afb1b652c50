"""What a verification finds: every row that is not what the log says, and a digest of each table on each side."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from adapters.verification.canonical import Key, Row, key_of
from projections.rows import Scope, Table, Type

LIMIT: Final = 100
"""How many differences are described, unless more or fewer are asked for. All are counted."""
MOST_MENDED: Final = 100_000
"""Differences of one side whose keys are remembered: what is worse is for a rebuild."""


class Side(StrEnum):
    """Where rows lie."""

    POSTGRES = "postgres"
    BIGQUERY = "bigquery"


class Kind(StrEnum):
    """What is wrong with a row."""

    CHANGED = "changed"
    MISSING = "missing"
    EXTRA = "extra"


class SideState(StrEnum):
    """How far a side could be looked at."""

    COMPARED = "compared"
    BEHIND = "behind"
    """Its projector has not handled all events yet: rows that wait for it are no differences."""
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Value:
    """One column's value as the log says it and as it was found, in canonical JSON. A secret's are never told."""

    column: str
    secret: bool
    expected: Any = None
    found: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that is not what the log says. The log is right."""

    side: Side
    dataset: str
    table: str
    key: Mapping[str, Any]
    kind: Kind
    values: Sequence[Value]
    """The columns that differ, for a row that was changed."""
    mend: str
    """The command that makes the row what the log says."""
    mended: bool = False


@dataclass(slots=True, kw_only=True)
class Rows:
    """A table's rows on one side: how many there are, and the SHA-256 over their canonical JSON lines in key order."""

    rows: int
    digest: str
    differences: int = 0
    waiting: int = 0
    """Rows that changed after what the projector has handled: they are not compared yet."""


@dataclass(slots=True, kw_only=True)
class TableReport:
    """One table as the log says it is at the report's position, and as the sides have it."""

    table: str
    scope: Scope
    log: Rows | None = None
    sides: dict[Side, Rows] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SideReport:
    state: SideState
    position: int
    """The position of the log that its rows were compared at: all events up to there were handled."""
    why: str = ""


@dataclass(slots=True, kw_only=True)
class Report:
    """What was compared and what was found. `differences` describes the first ones, `found` counts all of them."""

    position: int = 0
    """The rows are those of all events up to this position of the log."""
    customer_id: str | None = None
    sides: dict[Side, SideReport] = field(default_factory=dict)
    tables: list[TableReport] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    found: int = 0
    mended: int = 0

    @property
    def left(self) -> int:
        """Differences that there still are."""
        return self.found - self.mended

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for could be compared."""
        return all(side.state is SideState.COMPARED for side in self.sides.values())

    def table(self, name: str) -> TableReport:
        return next(t for t in self.tables if t.table == name)


@dataclass(slots=True)
class Ledger:
    """The differences of one side as they are found: all counted, their keys remembered, the first ones described."""

    report: Report
    side: Side
    central_dataset: str
    limit: int
    keys: dict[str, dict[Key, int]] = field(default_factory=dict)
    """By table, in the order they were found in, how many differences each has; at most `MOST_MENDED`."""
    remembered: int = 0

    def add(self, table: Table, expected: Row | None, found: Row | None) -> None:
        """Take down that this row differs; None for one that is not there."""
        row = expected if expected is not None else found
        if row is None:
            raise ValueError("a row that is on neither side does not differ")
        self.report.found += 1
        self.report.table(table.name).sides[self.side].differences += 1
        key = key_of(table, row)
        if self.remembered < MOST_MENDED:
            keys = self.keys.setdefault(table.name, {})
            keys[key] = keys.get(key, 0) + 1
            self.remembered += 1
        if len(self.report.differences) < self.limit:
            self.report.differences.append(self._described(table, row, expected, found))

    def _described(self, table: Table, row: Row, expected: Row | None, found: Row | None) -> Difference:
        kind = Kind.MISSING if found is None else Kind.EXTRA if expected is None else Kind.CHANGED
        values = () if expected is None or found is None else tuple(differing(table, expected, found))
        return Difference(
            side=self.side,
            dataset=row.get("dataset", self.central_dataset),
            table=table.name,
            key=dict(zip(table.key, key_of(table, row), strict=True)),
            kind=kind,
            values=values,
            mend=mend_command(table.name, self.side, row.get("dataset") or row.get("customer_id")),
        )

    def mended(self, table: str, left: set[Key]) -> None:
        """Take down that the remembered rows of a table are as the log says again, except for those that are `left`."""
        done = {key: count for key, count in self.keys.get(table, {}).items() if key not in left}
        self.report.mended += sum(done.values())
        for number, difference in enumerate(self.report.differences):
            if (difference.side, difference.table) == (self.side, table) and tuple(difference.key.values()) in done:
                self.report.differences[number] = replace(difference, mended=True)


def is_secret(table: Table, column: str) -> bool:
    """Whether a column's values are not to be shown: hashes of keys, and ciphertext."""
    return column.endswith("_hash") or any(c.name == column and c.type is Type.BYTES for c in table.columns)


def differing(table: Table, expected: Row, found: Row) -> Iterable[Value]:
    """The columns, `position` included, whose values differ."""
    for column in (*table.names, "position"):
        if expected[column] != found[column]:
            if is_secret(table, column):
                yield Value(column, secret=True)
            else:
                yield Value(column, secret=False, expected=expected[column], found=found[column])


def mend_command(table: str, side: Side, customer_id: str | None) -> str:
    """What to type to have the row as the log says."""
    customer = f" --customer {shlex.quote(customer_id)}" if customer_id else ""
    return f"convergence verify {table} --target {side}{customer} --repair --reason WHY"
