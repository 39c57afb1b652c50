"""Runs as they change state, read from the log as it grows, and single runs from their events."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn, Protocol

from adapters.http.run_views import RunView, moment, run_view
from adapters.postgres.channels import LOG
from adapters.postgres.event_log import Datastore
from adapters.postgres.listener import Handler, Listener
from adapters.postgres.reads import run_events, runs
from adapters.postgres.store import PostgresStore
from application.command import as_uuid
from application.mapper import EventMapper, Recorded
from application.platform import Platform
from application.ports import Away, SealedFor
from application.runs import run_history
from projections.project import central_rows
from projections.tables import SCHEDULED_PIPELINE_RUNS

logger = logging.getLogger(__name__)

_PAGE: Final = 1000
_AWAY_S: Final = 1.0
_TOLD_AT_THE_END: Final = ("rows_processed", "actual_end_time")


class _Closed:
    """A vault that opens nothing: nothing in a run's events is sealed, and who looks at runs needs no keys."""

    def prepare(self, customer_id: str) -> NoReturn:
        raise self._refused(customer_id)

    def seal(self, plaintext: bytes, owner: SealedFor) -> NoReturn:  # noqa: ARG002 - the port's signature
        raise self._refused(owner.customer_id)

    def open(self, ciphertext: bytes, owner: SealedFor) -> NoReturn:  # noqa: ARG002 - the port's signature
        raise self._refused(owner.customer_id)

    @staticmethod
    def _refused(customer_id: str) -> ValueError:
        return ValueError(f"Runs are read without the keys of {customer_id}.")


_MAPPER: Final = EventMapper(_Closed())


@dataclass(frozen=True, slots=True)
class Transition:
    """A run came into the state that `row` shows, and the words of the timeline for it.

    What the event does not tell of the other columns is as it stands now.
    """

    at: datetime
    position: int
    row: Mapping[str, Any]
    text: str


class Listening(Protocol):
    """Calls handlers for notifications, and every one of them with "" whenever some may have been missed."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def one(datastore: Datastore, run_id: str) -> RunView | None:
    """A run in full, with steps and timeline; None when there is none of that id."""
    stream_id = as_uuid(run_id)
    # What is no run may be another stream, whose events are not all readable without keys.
    if stream_id is None or not runs.named(datastore, [str(stream_id)]):
        return None
    return run_view(run_history(str(stream_id), Platform(PostgresStore(datastore), _MAPPER)))


class Feed:
    """Every change of state after a position of the log, in order and exactly once.

    Waits for the database's notification, not for a time, and looks for itself whenever it may have missed one. While
    the database is away it waits for it to come back.
    """

    def __init__(
        self,
        datastore: Datastore,
        dsn: str,
        position: int,
        listen: Callable[[str, Mapping[str, Handler]], Listening] = Listener,
    ) -> None:
        self._datastore = datastore
        self._position = position
        self._wake, self._stop = threading.Event(), threading.Event()
        self._listener = listen(dsn, {LOG: lambda _: self._wake.set()})

    def stop(self) -> None:
        """End the iteration; may be called from another thread."""
        self._stop.set()
        self._wake.set()

    def __iter__(self) -> Iterator[Transition]:
        self._listener.start()
        try:
            while not self._stop.is_set():
                # Cleared before looking, so that what comes while we look wakes us again.
                self._wake.clear()
                found, reached = self._look()
                yield from found
                if reached == self._position and not self._stop.is_set():
                    self._wake.wait()
                self._position = reached
        finally:
            self._listener.stop()

    def _look(self) -> tuple[list[Transition], int]:
        away = False
        while not self._stop.is_set():
            try:
                found, reached = run_events.after(self._datastore, self._position, limit=_PAGE)
                return _transitions(self._datastore, [r for e in found for r in _MAPPER.to_domain_events(e)]), reached
            except Away as error:
                if not away:
                    logger.warning("waiting: %s", error)
                away = True
                self._stop.wait(_AWAY_S)
        return [], self._position


def _transitions(datastore: Datastore, recorded: list[Recorded]) -> list[Transition]:
    rows = runs.named(datastore, list({str(r.envelope.stream_id) for r in recorded})) if recorded else {}
    found: list[Transition] = []
    for r in recorded:
        row = rows.get(str(r.envelope.stream_id))
        for change in central_rows(r.event, r.envelope):
            if row is not None and change.table is SCHEDULED_PIPELINE_RUNS and "state" in change.values:
                # Not yet known at that event, unless it tells them.
                later = {"attempt": getattr(r.event, "attempt", row["attempt"])} | dict.fromkeys(_TOLD_AT_THE_END)
                shown = {**row, **later, **change.values}
                text = moment(r.event, r.envelope).text
                found.append(Transition(r.envelope.at, r.envelope.position, shown, text))
    return found
