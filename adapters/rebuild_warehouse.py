"""BigQuery's part of a rebuild: tables loaded beside the live ones, brought up to the projector, and swapped."""

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from adapters.bigquery.staging import SUFFIX, Staging
from adapters.bootstrap import Service
from adapters.granter import grants_of
from adapters.postgres import grants
from adapters.postgres.checkpoints import leading
from adapters.postgres.erasures import ErasedCustomers
from application.ports import Away
from domain.projection import WAREHOUSE
from projections.follow import Placed
from projections.project import changes_of
from projections.rows import Change, Scope, Table

logger = logging.getLogger(__name__)

_PROJECTOR_S: Final = 60.0
"""How long the projector has to give its lead up."""

Answer = TypeVar("Answer")
Rows = Callable[[], Generator[dict[str, Any]]]
"""Begins to read the rows of a table, each time anew."""
Read = Callable[[int], Sequence[Placed]]
"""Events after a position; none at the end of the log."""


class WarehouseTables:
    """The staged tables of one rebuild.

    While BigQuery is away, each step is tried again for `patience_s`: `Away` is raised then.
    """

    def __init__(self, service: Service, stop: threading.Event) -> None:
        settings = service.settings
        self._service = service
        self._stop = stop
        self._central = settings.customers_dataset_id
        self._staging = Staging(
            service.bigquery,
            settings.project,
            self._central,
            settings.gcp_location,
            erased=ErasedCustomers(service.datastore).__contains__,
        )

    def close(self) -> None:
        self._staging.close()

    def load(self, table: Table, rows: Rows, datasets: Sequence[str], patience_s: float) -> int:
        """Load the table of whole rows, of a customers' table those of `datasets` at least; returns how many rows."""

        def once() -> int:
            with closing(rows()) as found:
                if table.scope is Scope.CENTRAL:
                    return self._staging.load(self._central, table, found)
                return sum(self._staging.load_each(table, found, datasets).values())

        return self._patiently(once, patience_s)

    def swap(self, tables: Sequence[Table], loaded_at: int, read: Read, patience_s: float) -> None:
        """Put the staged tables, which stand at a position, in place while nobody follows the log into them.

        They may be ahead of the projector's checkpoint, since its rows are guarded by their positions, but not behind.
        """
        checkpoints, names = self._service.checkpoints, {table.name for table in tables}

        def follow(write: Callable[[list[Change]], None], after: int, until: int) -> None:
            while after < until and (placed := read(after)):
                near = [p for p in placed if p.at.position <= until]
                write([c for p in near for c in changes_of(p.event, p.at) if c.row.table.name in names])
                after = placed[-1].at.position

        with leading(self._service.dsn, WAREHOUSE, wait_s=_PROJECTOR_S) as lead:
            if not lead:
                raise Away("The projector does not give way to the rebuild.")
            reached = checkpoints.position(WAREHOUSE)
            self._patiently(lambda: follow(self._staging.write, loaded_at, reached), patience_s)
            self._patiently(lambda: grants_of(self._service).bind_staged(tables, SUFFIX), patience_s)
            self._patiently(self._staging.swap_all, patience_s)
            grants.tell_again(self._service.datastore)
            # A lead is lost with its connection, and then another projector moved on in tables that are gone.
            moved, there = checkpoints.position(WAREHOUSE), max(loaded_at, reached)
            self._patiently(lambda: follow(self._service.warehouse.write, there, moved), patience_s)

    def drop(self) -> None:
        """Remove what is staged, as far as BigQuery lets us."""
        try:
            self._staging.drop_all()
        except (Away, PermissionError, ValueError) as error:
            logger.warning("tables named *__rebuild are left in BigQuery: %s", error)

    def _patiently(self, work: Callable[[], Answer], patience_s: float) -> Answer:
        return Retrying(
            retry=retry_if_exception_type(Away),
            wait=wait_random_exponential(multiplier=1, max=30),
            stop=stop_after_delay(patience_s) | stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            before_sleep=partial(_tell, patience_s),
            reraise=True,
        )(work)


def _tell(patience_s: float, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    left_s = max(patience_s - (state.seconds_since_start or 0), 0)
    logger.warning("%s. The rebuild tries again for %.0f seconds.", str(error).rstrip("."), left_s)
