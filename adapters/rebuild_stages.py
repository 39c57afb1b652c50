"""The stages of one rebuild: reading the log, loading BigQuery, comparing with the live tables, swapping."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from psycopg import Connection
from psycopg.rows import DictRow
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from adapters.bootstrap import Service, origin
from adapters.postgres import rebuilds, rows
from adapters.postgres.beside import REBUILD, Beside
from adapters.postgres.checkpoints import PostgresLog
from adapters.postgres.event_log import Datastore, EventRecorder
from adapters.postgres.rebuilds import State
from adapters.postgres.swap import Held, differences, swap
from adapters.process import Unable
from adapters.progress import Tell
from adapters.rebuild_warehouse import WarehouseTables
from application.command import Command
from application.platform import Transaction
from domain.projection import POSTGRES, WAREHOUSE
from projections.follow import Placed
from projections.rows import Scope
from projections.tables import EVERY
from projections.targets import Target

logger = logging.getLogger(__name__)

BUILDING: Final = "Reading the log"
LOADING: Final = "Loading BigQuery"
COMPARING: Final = "Comparing"
SWAPPING: Final = "Swapping"
"""The stages in words, as they are told."""
_QUICK: Final = 200
"""So many events may be left to be written while commands wait for the swap."""
_LAST_READ_S: Final = 0.1
"""How long reading those may take: opening a new customer's key can ask a key service that is slow."""
_DATASETS: Final = "SELECT customer_id FROM customer_profiles WHERE dataset_created ORDER BY customer_id"


class Stopped(Exception):  # noqa: N818 - it says what happened
    """The process is to end. The rebuild goes on from where it is when a process takes it up again."""


class Stages:
    """One rebuild in the hands of this process."""

    def __init__(
        self,
        service: Service,
        connection: Connection[DictRow],
        rebuild_id: UUID,
        *,
        tell: Tell,
        stop: threading.Event,
        page: int,
    ) -> None:
        self._service = service
        self._connection = connection
        self._id = rebuild_id
        # Its own connections: in the moment of the swap those of the service may all wait for the tables.
        self._datastore = Datastore(service.dsn, size=2, name="rebuild")
        self._log = PostgresLog(EventRecorder(self._datastore), service.mapper)
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="rebuild write")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="rebuild read")
        self._tell = tell
        self._stop = stop
        self._page = page
        self._record = rebuilds.find(connection, rebuild_id)
        self._position = self._record.position
        self._tables = [table for table in EVERY if table.name in self._record.tables]
        self._beside = Beside(connection, REBUILD, self._tables)
        self._skipping: frozenset[int] = frozenset()
        self._warehouse = WarehouseTables(service, stop)
        connection.execute("SET synchronous_commit = off")  # rows and checkpoint are lost together or not at all

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.shutdown()
        self._ahead.shutdown()
        self._warehouse.close()
        self._datastore.close()

    def run(self, patience_s: float) -> None:
        """From wherever it is to its end. `patience_s` is for how long it tries to swap tables that others hold."""
        target = self._record.target
        self._skipping = self._skipped(target)
        if self._record.state is State.REQUESTED or self._record.version != version("convergence"):
            self._begin()
        self._catch_up()
        if target is not Target.POSTGRES and not self._record.warehouse_swapped:
            self._replace_in_warehouse(patience_s)
        if target is not Target.BIGQUERY and any(table.scope is Scope.CENTRAL for table in self._tables):
            self._compare()
            self._replace(patience_s)
        else:
            with self._connection.transaction():
                self._done()

    def give_up(self, sentence: str) -> None:
        """Remove what was built, and record why. Raises what the database raises: then it is not given up."""
        with self._connection.transaction():
            self._beside.drop()
            rebuilds.end(self._connection, self._id, State.FAILED, sentence)
        self._warehouse.drop()

    def _begin(self) -> None:
        with self._connection.transaction():
            Beside(self._connection, REBUILD, EVERY).drop()
            self._beside.create()
            rebuilds.begin(self._connection, self._id, version("convergence"))
        self._record = rebuilds.find(self._connection, self._id)
        self._position = 0

    def _skipped(self, target: Target) -> frozenset[int]:
        """The events to pass over, by what the log says: the table that lists them may be what is to be mended."""
        command = Command(at=self._service.now(), by=origin("service"))

        def decided(tx: Transaction) -> list[frozenset[int]]:
            known = [tx.projection(name).state for name in (POSTGRES, WAREHOUSE)]
            return [frozenset() if state is None else state.skipped for state in known]

        here, there = self._service.platform.transact(command, decided)
        if target is Target.BOTH and here != there:
            raise Unable("Other events are skipped for BigQuery than for PostgreSQL: rebuild one target at a time.")
        return there if target is Target.BIGQUERY else here

    # from the log to the tables beside

    def _catch_up(self) -> None:
        """Read on to the end of the log, until so little was appended meanwhile that it takes no time."""
        while self._lap() > _QUICK:
            pass

    def _lap(self) -> int:
        """Write the rows of all events that follow; returns how many those were.

        While a page is folded, the one before it is written, and the one behind it is read.
        """
        log_end, handled = self._log.end(), 0
        written: Future[None] | None = None
        read_to = self._position
        ahead = self._ahead.submit(self._read, read_to)
        try:
            while placed := ahead.result():
                if self._stop.is_set():
                    raise Stopped
                to = placed[-1].at.position
                ahead = self._ahead.submit(self._read, to)
                log_end = max(log_end, to)
                writes = self._beside.writes(placed)
                if written is not None:
                    written.result()
                written = self._aside.submit(self._write, writes, read_to, to, log_end)
                handled += len(placed)
                read_to = to
                self._tell(BUILDING, to, log_end)
        finally:
            wait((ahead,))
            if written is not None:
                wait((written,))
        if written is not None:
            written.result()
        return handled

    def _read(self, after: int, limit: int | None = None) -> Sequence[Placed]:
        return self._log.read(after, limit or self._page, self._skipping)

    def _write(self, writes: list[rows.Write], expected: int, to: int, log_end: int) -> None:
        with self._connection.transaction():
            rebuilds.advance(self._connection, self._id, expected, to, log_end)
            self._beside.apply(writes)
        self._position = to

    # PostgreSQL

    def _compare(self) -> None:
        """Count what differs from the live rows: it is what the swap mends."""
        rebuilds.note(self._connection, self._id, state=State.COMPARING)
        self._tell(COMPARING, 0, 2)
        self._beside.index()
        self._tell(COMPARING, 1, 2)
        self._catch_up()
        found = differences(self._connection, self._beside, self._position)
        rebuilds.note(self._connection, self._id, differences=found)
        self._tell(COMPARING, 2, 2)
        if found:
            logger.warning("live rows differ from the log: %s", {name: dict(count) for name, count in found.items()})

    def _replace(self, patience_s: float) -> None:
        """Swap, however often it takes until nobody holds the tables for a moment."""
        rebuilds.note(self._connection, self._id, state=State.SWAPPING)
        attempts = Retrying(
            retry=retry_if_exception_type(Held),
            wait=wait_random_exponential(multiplier=0.2, max=3),
            stop=stop_after_delay(patience_s) | stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        for attempt in attempts:
            with attempt:
                self._tell(SWAPPING, 0, 1)
                self._catch_up()
                position = self._position
                try:
                    held_s = swap(self._connection, self._beside, self._last, also=self._done)
                except BaseException:
                    self._position = position
                    raise
        logger.info("tables were swapped; commands waited at most %.0f ms", held_s * 1000)
        self._tell(SWAPPING, 1, 1)

    def _last(self) -> None:
        """Write the rows of what was appended last, while nothing more is. Raises `Held` when that is not quick."""
        while True:
            try:
                placed = self._ahead.submit(self._read, self._position, _QUICK).result(_LAST_READ_S)
            except TimeoutError:
                raise Held("Reading the last events takes too long.") from None
            if not placed:
                return
            to = placed[-1].at.position
            self._write(self._beside.writes(placed), self._position, to, to)

    def _done(self) -> None:
        self._beside.drop()
        rebuilds.end(self._connection, self._id, State.DONE)

    # BigQuery

    def _replace_in_warehouse(self, patience_s: float) -> None:
        rebuilds.note(self._connection, self._id, state=State.LOADING)
        loaded: dict[str, int] = {}
        datasets = [row["customer_id"] for row in self._connection.execute(_DATASETS)]
        for number, table in enumerate(self._tables):
            self._tell(LOADING, number, len(self._tables))
            if self._stop.is_set():
                raise Stopped
            rows_of = partial(self._beside.rows, table.name)
            loaded[table.name] = self._warehouse.load(table, rows_of, datasets, patience_s)
            rebuilds.note(self._connection, self._id, loaded=loaded)
        self._tell(LOADING, len(self._tables), len(self._tables))
        rebuilds.note(self._connection, self._id, state=State.SWAPPING)
        self._tell(SWAPPING, 0, 1)
        self._warehouse.swap(self._tables, self._position, self._read, patience_s)
        rebuilds.note(self._connection, self._id, warehouse_swapped=True)
        self._tell(SWAPPING, 1, 1)
