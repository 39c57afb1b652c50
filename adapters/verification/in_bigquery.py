"""BigQuery's rows: compared while the projector writes, mended while it rests."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from adapters.bigquery.mending import Mending
from adapters.postgres.beside import DATASET, Beside
from adapters.postgres.checkpoints import leading
from adapters.postgres.comparison import Comparison
from adapters.process import Unable
from adapters.progress import Tell
from adapters.verification.canonical import Digest, Key, Row, amended, canonical, key_of, line_of, native
from adapters.verification.expected import Expected
from adapters.verification.report import Ledger, Rows, Side, SideReport, SideState
from adapters.verification.warehouse import (
    Erasures,
    Verdict,
    WarehouseRows,
    joined,
    judge,
    live_key,
    live_table,
    wait_until_handled,
)
from application.ports import Warehouse
from domain.projection import WAREHOUSE
from projections.follow import Checkpoints, Log
from projections.rows import Scope, Table
from projections.tables import CUSTOMER_PROFILES

logger = logging.getLogger(__name__)

_ROUNDS: Final = 3
"""How often rows that changed meanwhile are looked at before the projector is asked to rest."""
_ROUND_S: Final = 30.0
_REST_S: Final = 60.0
_BATCH: Final = 500
_STAGE: Final = "Comparing BigQuery"


@dataclass(slots=True, kw_only=True)
class InBigQuery:
    """The warehouse's tables, beside what the log says."""

    dsn: str = field(repr=False)
    customer_id: str | None
    rows: WarehouseRows
    mending: Mending
    warehouse: Warehouse
    comparison: Comparison
    expected: Expected
    beside: Beside
    log: Log
    checkpoints: Checkpoints
    erasures: Erasures
    handled: int = 0
    end: int = 0

    def compare(self, tables: Sequence[Table], ledger: Ledger, tell: Tell, *, wait_s: float) -> None:
        """Compare the tables as the log is read so far, once the projector has come that far or stands still.

        Rows that change meanwhile are looked at again, the last ones while the projector rests. Raises `Away`.
        """
        cut = self.expected.position
        if self.checkpoints.position(WAREHOUSE) < cut:
            # One that is away is not waited for.
            self.warehouse.query("SELECT 1")
        self.handled = wait_until_handled(self.checkpoints, WAREHOUSE, cut, wait_s, tell)
        side = ledger.report.sides[Side.BIGQUERY] = SideReport(state=SideState.COMPARED, position=cut)
        moved: dict[str, dict[Key, int]] = {}
        for number, table in enumerate(tables):
            tell(_STAGE, number, len(tables))
            if again := self._compare(table, ledger):
                moved[table.name] = again
        tell(_STAGE, len(tables), len(tables))
        self._look_again(moved, tables, ledger, tell, wait_s=min(wait_s, _ROUND_S))
        listed = [ledger.report.table(table.name).sides[Side.BIGQUERY] for table in tables]
        if waiting := sum(rows.waiting for rows in listed):
            side.state = SideState.BEHIND
            side.position = min(self.handled, cut)
            behind = max(0, self.log.end() - self.handled)
            side.why = (
                f"{waiting} rows wait for the projector, which is {behind} events behind, and were not compared."
                " `convergence projections` says whether it runs."
            )

    def _compare(self, table: Table, ledger: Ledger) -> dict[Key, int]:
        """Look at every row; the keys of those that were touched after the cut, and where they stand."""
        listed = ledger.report.table(table.name)
        here = listed.sides[ledger.side] = Rows(rows=0, digest="")
        log, digest = Digest(), Digest()
        moved: dict[Key, int] = {}
        expected = (canonical(table, row) for row in self.beside.rows(table.name))
        for e, f in joined(table, expected, self._found(table)):
            verdict = self._judge(table, e, f)
            if e is not None:
                log.add(e)
            # A row that has moved on counts as it was at the cut: whether it is right is seen later, and by itself.
            seen = e if verdict is Verdict.MOVED else f
            if seen is not None:
                digest.add(seen)
            match verdict:
                case Verdict.MOVED:
                    self._moved(table, e, f, moved)
                case Verdict.DIFFERENT:
                    ledger.add(table, e, f)
                case Verdict.WAITING:
                    here.waiting += 1
        listed.log = listed.log or Rows(rows=log.rows, digest=log.hexdigest())
        here.rows, here.digest = digest.rows, digest.hexdigest()
        return moved

    def _found(self, table: Table) -> Iterator[Row]:
        customer_id = self.customer_id
        if table.scope is Scope.CUSTOMER:
            known = {row["customer_id"] for row in self.beside.rows(CUSTOMER_PROFILES.name)}
            # Those of the erased are gone, as a rule: each one would cost a statement.
            if gone := known.intersection(self.erasures.all()):
                known -= gone - self.rows.datasets()
            return self.rows.all(table, known if customer_id is None else [customer_id])
        if customer_id is None:
            return self.rows.all(table)
        own = {key_of(table, canonical(table, row)) for row in self.beside.rows(table.name)}
        return self.rows.named(table, own.union(self.rows.keys_of(table, customer_id)))

    def _judge(self, table: Table, expected: Row | None, found: Row | None) -> Verdict:
        if found is not None and found["position"] > self.end:
            self.end = self.log.end()
        erased = self._erased_at(table, expected, found)
        return judge(expected, found, cut=self.expected.position, handled=self.handled, end=self.end, erased=erased)

    def _erased_at(self, table: Table, expected: Row | None, found: Row | None) -> int | None:
        """Where the customer was erased whose row is on one side alone."""
        row = expected or found
        owner = "customer_id" if table.scope is Scope.CENTRAL else DATASET.name
        if row is None or (expected is not None and found is not None) or owner not in row:
            return None
        return self.erasures.position(row[owner])

    def _moved(self, table: Table, expected: Row | None, found: Row | None, moved: dict[Key, int]) -> None:
        """Note the row, and how far the projector has to come before it is looked at again."""
        if found is not None:
            moved[key_of(table, found)] = found["position"]
        elif expected is not None and (erased := self._erased_at(table, expected, None)) is not None:
            moved[key_of(table, expected)] = erased

    def _look_again(
        self, moved: dict[str, dict[Key, int]], tables: Sequence[Table], ledger: Ledger, tell: Tell, *, wait_s: float
    ) -> None:
        named = {table.name: table for table in tables}
        with ExitStack() as resting:
            for round_ in range(_ROUNDS + 1):
                if not moved:
                    return
                if round_ == _ROUNDS:
                    resting.enter_context(leading(self.dsn, WAREHOUSE, wait_s=_REST_S))
                else:
                    last = max(position for keys in moved.values() for position in keys.values())
                    wait_until_handled(self.checkpoints, WAREHOUSE, last, wait_s, tell)
                self.handled = self.checkpoints.position(WAREHOUSE)
                self.expected.extend(self.handled)
                moved = {
                    name: again for name, keys in moved.items() if (again := self._again(named[name], keys, ledger))
                }
        for name, keys in moved.items():
            # Written by a projector that ended before it said so, or by one that does not rest.
            ledger.report.table(name).sides[ledger.side].waiting += len(keys)

    def _again(self, table: Table, keys: Collection[Key], ledger: Ledger) -> dict[Key, int]:
        here = ledger.report.table(table.name).sides[ledger.side]
        moved: dict[Key, int] = {}
        for e, f in self._pairs(table, keys):
            match self._judge(table, e, f):
                case Verdict.MOVED:
                    self._moved(table, e, f, moved)
                case Verdict.DIFFERENT:
                    ledger.add(table, e, f)
                    here.digest = amended(here.digest, f)
                case Verdict.WAITING:
                    here.waiting += 1
        return moved

    def _pairs(self, table: Table, keys: Collection[Key]) -> Iterator[tuple[Row | None, Row | None]]:
        expected = (canonical(table, row) for row in self.comparison.expected(table, sorted(keys)))
        return joined(table, expected, self.rows.named(table, keys))

    def mend(self, tables: Sequence[Table], ledger: Ledger, reason: str, tell: Tell) -> None:
        """Make the rows in the ledger what the log says now, while the projector rests, and look at them again.

        Raises `Unable` when the projector does not rest within a minute, `Away` with BigQuery.
        """
        if not any(ledger.keys.values()):
            return
        with leading(self.dsn, WAREHOUSE, wait_s=_REST_S) as lead:
            if not lead:
                raise Unable("BigQuery's rows were not repaired: another process writes them and does not rest.")
            # Never behind what the projector has handled, since it will not come back to that.
            self.expected.extend(self.log.end())
            for table in tables:
                keys = list(ledger.keys.get(table.name, ()))
                if not keys:
                    continue
                logger.warning("repairing %d rows of %s in BigQuery: %s", len(keys), table.name, reason)
                rest = iter(keys)
                done = 0
                while batch := list(islice(rest, _BATCH)):
                    tell(f"Repairing {table.name}", done, len(keys))
                    self._mend(table, batch)
                    done += len(batch)
                tell(f"Repairing {table.name}", len(keys), len(keys))
                left = {
                    key_of(table, row)
                    for e, f in self._pairs(table, keys)
                    if (row := e or f) is not None and (e is None or f is None or line_of(e) != line_of(f))
                }
                ledger.mended(table.name, left)
                logger.warning("repaired %d rows of %s in BigQuery", len(keys) - len(left), table.name)

    def _mend(self, table: Table, keys: Sequence[Key]) -> None:
        live = live_table(table)
        times: dict[Key, int] = {}
        for row in self.rows.named(table, keys):
            times[key_of(table, row)] = times.get(key_of(table, row), 0) + 1
        wanted = {
            key_of(table, row): row
            for row in (canonical(table, row) for row in self.comparison.expected(table, sorted(keys)))
        }
        for dataset in sorted({self._dataset(table, key) for key in keys}):
            own = [key for key in keys if self._dataset(table, key) == dataset]
            gone = [key for key in own if key not in wanted or times.get(key, 0) > 1]
            if table.scope is Scope.CENTRAL:
                self.warehouse.ensure_central()
            elif self.erasures.position(dataset) is not None:
                self.warehouse.delete_customer(dataset)
                continue
            else:
                self.warehouse.ensure_customer(dataset)
            if gone:
                self.mending.mend(dataset, live, gone=[live_key(table, key) for key in gone])
            rows = [
                native(live, {c: wanted[key][c] for c in (*live.names, "position")}) for key in own if key in wanted
            ]
            if rows:
                self.mending.mend(dataset, live, rows)

    def _dataset(self, table: Table, key: Key) -> str:
        return self.rows.central if table.scope is Scope.CENTRAL else str(key[0])
