"""PostgreSQL's rows: compared in one moment of the database, mended while nothing is appended."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from adapters.postgres.beside import Beside
from adapters.postgres.comparison import Comparison
from adapters.progress import Tell
from adapters.verification.canonical import Digest, Key, canonical, key_of
from adapters.verification.expected import Expected
from adapters.verification.report import Ledger, Rows, Side, SideReport, SideState
from projections.follow import Log
from projections.rows import Table

logger = logging.getLogger(__name__)

_BATCH: Final = 100
"""Rows that are mended while the log is held."""
_LOCKED: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
_STAGE: Final = "Comparing PostgreSQL"


@dataclass(frozen=True, slots=True)
class InPostgres:
    """The live tables, beside what the log says."""

    comparison: Comparison
    expected: Expected
    beside: Beside
    log: Log

    def compare(self, tables: Sequence[Table], ledger: Ledger, tell: Tell) -> None:
        """Compare the tables as they all are at one moment, to which the log is read on."""
        self.comparison.prepare(tables)
        report = ledger.report
        with self.comparison.moment(tables) as end:
            self.expected.extend(end, tell)
            report.sides[Side.POSTGRES] = SideReport(state=SideState.COMPARED, position=end)
            for number, table in enumerate(tables):
                tell(_STAGE, number, len(tables))
                self._compare(table, ledger)
        tell(_STAGE, len(tables), len(tables))

    def _compare(self, table: Table, ledger: Ledger) -> None:
        listed = ledger.report.table(table.name)
        log = Digest()
        for row in self.beside.rows(table.name):
            log.add(canonical(table, row))
        listed.log = Rows(rows=log.rows, digest=log.hexdigest())
        here = listed.sides[ledger.side] = Rows(rows=log.rows, digest=log.hexdigest())
        for expected, found in self.comparison.differing(table):
            ledger.add(
                table,
                None if expected is None else canonical(table, expected),
                None if found is None else canonical(table, found),
            )
        if here.differences:
            live = Digest()
            for row in self.comparison.rows(table):
                live.add(canonical(table, row))
            here.rows, here.digest = live.rows, live.hexdigest()

    def mend(self, tables: Sequence[Table], ledger: Ledger, reason: str, tell: Tell) -> None:
        """Make the rows in the ledger what the log says now, a hundred at a time, and look at them again.

        Each time commands wait for some milliseconds. Raises psycopg's errors when locks are not to be had.
        """
        for table in tables:
            keys = list(ledger.keys.get(table.name, ()))
            if not keys:
                continue
            logger.warning("repairing %d rows of %s in PostgreSQL: %s", len(keys), table.name, reason)
            # What ought not to be there may stand in the way of what ought to.
            steps = (self.comparison.remove, self.comparison.put)
            for pass_, step in enumerate(steps):
                for done, batch in enumerate(_batches(keys)):
                    tell(f"Repairing {table.name}", (pass_ * len(keys) + done * _BATCH) // 2, len(keys))
                    self._mend(table, batch, step)
            tell(f"Repairing {table.name}", len(keys), len(keys))
            with self.comparison.moment([table]) as end:
                self.expected.extend(end)
                left = {
                    key_of(table, canonical(table, row))
                    for pair in self.comparison.differing(table, keys)
                    for row in pair
                    if row is not None
                }
            ledger.mended(table.name, left)
            logger.warning("repaired %d rows of %s in PostgreSQL", len(keys) - len(left), table.name)

    def _mend(self, table: Table, keys: Sequence[Key], step: Callable[[Table, Sequence[Key]], int]) -> None:
        for attempt in Retrying(
            retry=retry_if_exception_type(_LOCKED),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            stop=stop_after_attempt(10),
            reraise=True,
        ):
            with attempt:
                # Most of what was appended since is read before anybody has to wait.
                self.expected.extend(self.log.end())
                with self._held(table, keys):
                    step(table, keys)

    @contextmanager
    def _held(self, table: Table, keys: Sequence[Key]) -> Iterator[None]:
        with self.expected.undone_on_error(), self.comparison.held(table, keys) as end:
            self.expected.extend(end)
            yield


def _batches(keys: Sequence[Key]) -> Iterator[list[Key]]:
    rest = iter(keys)
    while batch := list(islice(rest, _BATCH)):
        yield batch
