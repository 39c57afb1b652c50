"""Folding: the changes of one row become the one change that has the same effect."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import msgspec

from projections.rows import Change, Forget, Put, Scope, Table

_POSITION = attrgetter("position")


class Folded(msgspec.Struct):
    """What several changes come to for one row.

    `whole` says that a `Put` was among them: `values` then holds every column, and the row is made if it is missing.
    Otherwise `values` holds the key and the columns to set in a row that must be there already. `position` is that of
    the last change. `customer_id` names the dataset of a customer's table and is None for a central one.
    """

    table: Table
    customer_id: str | None
    key: tuple[Any, ...]
    values: Mapping[str, Any]
    whole: bool
    position: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Every row of the table that is the customer's and stands before `position` goes."""

    table: Table
    customer_id: str
    position: int


class Stretch(NamedTuple):
    """What a stretch of the log comes to: first what is `forgotten` goes, then the `rows` are written."""

    forgotten: Sequence[Forgotten]
    rows: Sequence[Folded]


def fold(changes: Sequence[Change]) -> Stretch:
    """One `Folded` per row, in order of first appearance in the log, and one `Forgotten` per customer and table.

    Changes count in the order of their positions, whatever order they come in; those of one position keep theirs. A
    `Put` replaces everything before it, a `Set` overlays the columns it names, and a `Forget` leaves nothing of what
    the customer's rows were before. Given a stretch of the log without holes, writing the result has the same effect
    as writing every change by itself.
    """
    rows: dict[tuple[str, str | None, Any], Folded] = {}
    # A table hashes over all of its columns, so it is looked up by name: once per table, not once per change.
    shapes: dict[str, tuple[Callable[[Mapping[str, Any]], Any], bool, bool]] = {}
    ordered = sorted(changes, key=_POSITION)
    for change in ordered:
        row = change.row
        if type(row) is Forget:
            return _forget(ordered)
        table, values = row.table, row.values
        shape = shapes.get(table.name)
        if shape is None:
            shape = shapes[table.name] = (itemgetter(*table.key), len(table.key) == 1, table.scope is Scope.CUSTOMER)
        key_of, single, per_customer = shape
        key = key_of(values)
        customer_id = change.customer_id if per_customer else None
        place = (table.name, customer_id, key)
        folded = rows.get(place)
        if folded is None:
            rows[place] = Folded(
                table, customer_id, (key,) if single else key, values, type(row) is Put, change.position
            )
            continue
        if type(row) is Put:
            folded.values = values
            folded.whole = True
        else:
            folded.values = {**folded.values, **values}
        folded.position = change.position
    return Stretch((), list(rows.values()))


def _forget(ordered: Sequence[Change]) -> Stretch:
    """Fold a stretch in which customers are forgotten: without the changes that leave nothing behind."""
    forgotten = {
        (change.row.table.name, change.row.customer_id): Forgotten(
            change.row.table, change.row.customer_id, change.position
        )
        for change in ordered
        if isinstance(change.row, Forget)
    }

    def stays(change: Change) -> bool:
        gone = forgotten.get((change.row.table.name, change.customer_id))
        return gone is None or change.position >= gone.position

    rest = [change for change in ordered if not isinstance(change.row, Forget) and stays(change)]
    return Stretch(list(forgotten.values()), fold(rest).rows)
