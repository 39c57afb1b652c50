"""BigQuery's rows compared with what the log says of them, while its projector goes on writing."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date
from enum import Enum, auto
from typing import Any, Final

from google.cloud import bigquery

from adapters.bigquery.client import METADATA_SECONDS, RETRY, NotThere, plain_errors
from adapters.bigquery.reading import Reader
from adapters.postgres.event_log import Datastore
from adapters.postgres.reads.erasures import since
from adapters.progress import Tell
from adapters.verification.canonical import Key, Row, canonical, key_of, line_of
from application.ports import Warehouse
from projections.follow import Checkpoints
from projections.rows import Scope, Table, Type
from projections.tables import EVERY

_LOOK_S: Final = 0.1
_NEWS_S: Final = 0.02
_STILL_S: Final = 10.0
"""How long a projector may stand still before nobody waits for it: none runs, or it cannot go on."""
_LIVE: Final[Mapping[str, Table]] = {table.name: table for table in EVERY}


class WarehouseRows:
    """The rows of BigQuery in canonical values; those of a customers' table with the dataset that each lies in.

    Every method raises `Away` when BigQuery does not answer. A table that is not there has no rows.
    """

    def __init__(self, client: bigquery.Client, warehouse: Warehouse, central_dataset: str) -> None:
        self._client = client
        self._reader = Reader(client, client.project)
        self._warehouse = warehouse
        self._project = client.project
        self.central = central_dataset

    def all(self, table: Table, datasets: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
        """Every row in the order of its key; of a customers' table those of these datasets, one after the other."""
        for dataset in [self.central] if table.scope is Scope.CENTRAL else sorted(datasets):
            yield from self._of(dataset, table, None)

    def datasets(self) -> set[str]:
        """The names of all datasets that there are."""
        with plain_errors():
            return {found.dataset_id for found in self._client.list_datasets(retry=RETRY, timeout=METADATA_SECONDS)}

    def named(self, table: Table, keys: Collection[Key]) -> Iterator[dict[str, Any]]:
        """The rows with these keys, in the order of the key."""
        if table.scope is Scope.CENTRAL:
            yield from self._of(self.central, table, keys)
            return
        for dataset in sorted({key[0] for key in keys}):
            yield from self._of(dataset, table, [key for key in keys if key[0] == dataset])

    def keys_of(self, table: Table, customer_id: str) -> set[Key]:
        """The keys of this customer's rows in a central table."""
        named = ", ".join(f"`{name}`" for name in table.key)
        sql = f"SELECT {named} FROM `{self._project}.{self.central}.{table.name}` WHERE customer_id = @customer_id"  # noqa: S608 - names come from the tables' definitions
        try:
            rows = self._warehouse.query(sql, {"customer_id": customer_id}).rows
        except NotThere:
            return set()
        return {tuple(day.isoformat() if isinstance(day, date) else day for day in row) for row in rows}

    def _of(self, dataset: str, table: Table, keys: Iterable[Key] | None) -> Iterator[dict[str, Any]]:
        asked = None if keys is None else [live_key(table, key) for key in keys]
        try:
            for row in self._reader.rows(dataset, live_table(table), keys=asked):
                yield canonical(table, row if table.scope is Scope.CENTRAL else {"dataset": dataset, **row})
        except NotThere:
            return


def live_table(table: Table) -> Table:
    """A customers' table as it lies in each dataset, where the dataset is no column; a central one as it is."""
    return _LIVE[table.name]


def live_key(table: Table, key: Key) -> Key:
    """A canonical key in the values that the database is given."""
    live = live_table(table)
    types = {column.name: column.type for column in live.columns}
    return tuple(
        date.fromisoformat(value) if types[name] is Type.DATE else value
        for name, value in zip(live.key, key[-len(live.key) :], strict=True)
    )


Pair = tuple[Row | None, Row | None]
"""A row by the log, and as it was found: None for one that is not there."""


def joined(table: Table, expected: Iterable[Row], found: Iterable[Row]) -> Iterator[Pair]:
    """Both sides row by row, each given in the order of the key. A key that is found again comes without a twin.

    Raises `ValueError` when the found rows are in another order.
    """
    left, right = iter(expected), iter(found)
    e, f = next(left, None), next(right, None)
    last: Key | None = None
    while e is not None or f is not None:
        e_key = None if e is None else key_of(table, e)
        f_key = None if f is None else key_of(table, f)
        if last is not None and f_key is not None and f_key < last:
            raise ValueError(f"{table.name}: rows came out of order")
        if f_key is None or (e_key is not None and e_key < f_key):
            yield e, None
            e = next(left, None)
        elif e_key is None or f_key < e_key:
            yield None, f
            last, f = f_key, next(right, None)
        else:
            yield e, f
            last, e, f = f_key, next(left, None), next(right, None)


class Erasures:
    """When customers were erased, as the log says now: a row that is missing, or still there, may have that reason."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        self._known: dict[str, int] = {}
        self._asked_at = 0.0

    def position(self, customer_id: str) -> int | None:
        """Where in the log the customer was erased; None for one who was not."""
        # No statement in BigQuery is over sooner: a row that went since was not seen to be missing yet.
        if customer_id not in self._known and time.monotonic() - self._asked_at > _NEWS_S:
            self._known.update(since(self._datastore, max(self._known.values(), default=0)))
            self._asked_at = time.monotonic()
        return self._known.get(customer_id)

    def all(self) -> Collection[str]:
        """Everybody who was erased."""
        self._known.update(since(self._datastore, 0))
        return self._known.keys()


class Verdict(Enum):
    EQUAL = auto()
    DIFFERENT = auto()
    MOVED = auto()
    """The row was touched by an event after the ones that are looked at: to be looked at again."""
    WAITING = auto()
    """An event that touches the row was not handled yet."""


def judge(
    expected: Row | None, found: Row | None, *, cut: int, handled: int, end: int, erased: int | None = None
) -> Verdict:
    """What a row is that the events up to position `cut` ought to have made, in a table that is written behind the log.

    When it was found, at least the events up to `handled` had been handled, and the log went up to `end`. `erased` is
    where in the log its customer was erased.
    """
    if expected is not None and found is not None and line_of(expected) == line_of(found):
        return Verdict.EQUAL
    if found is not None and found["position"] > end:
        return Verdict.DIFFERENT
    if found is not None and found["position"] > cut:
        return Verdict.MOVED
    if expected is not None and expected["position"] > handled:
        return Verdict.WAITING
    return Verdict.DIFFERENT if erased is None else _of_the_erased(expected, found, erased, cut=cut, handled=handled)


def _of_the_erased(expected: Row | None, found: Row | None, erased: int, *, cut: int, handled: int) -> Verdict:
    if found is None and erased > cut:
        return Verdict.MOVED
    if expected is None and erased > handled:
        return Verdict.WAITING
    return Verdict.DIFFERENT


def wait_until_handled(checkpoints: Checkpoints, projection: str, position: int, wait_s: float, tell: Tell) -> int:
    """Where the projection stands once it has come to `position`, or stands still, or `wait_s` seconds are over."""
    start = at = checkpoints.position(projection)
    until = time.monotonic() + wait_s
    moved = time.monotonic()
    while at < position and time.monotonic() < min(until, moved + _STILL_S):
        tell("Waiting for BigQuery", at - start, position - start)
        time.sleep(_LOOK_S)
        before, at = at, checkpoints.position(projection)
        if at != before:
            moved = time.monotonic()
    return at
