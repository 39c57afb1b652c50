"""Rebuilding tables from the log: built beside the live ones, compared with them, and put in their place.

Reads and writes go on meanwhile. What was done is kept in the database, so that whoever takes over goes on from there;
until the last step the live tables are as they were.
"""

import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, wait_exponential_jitter

from adapters.bootstrap import Service
from adapters.postgres import rebuilds
from adapters.postgres.checkpoints import leading
from adapters.postgres.maintenance import maintenance
from adapters.postgres.rebuilds import Rebuild
from adapters.postgres.swap import Held
from adapters.process import Unable
from adapters.progress import Tell, untold
from adapters.rebuild_stages import Stages, Stopped
from application.mapper import UnreadableEvent
from application.ports import Away
from application.session import Superseded
from domain.projection import POSTGRES
from domain.refusals import Invalid
from projections.follow import Overtaken, Problem, ProblemKind
from projections.tables import CENTRAL, EVERY
from projections.targets import Target

logger = logging.getLogger(__name__)

LEAD: Final = "rebuild"
"""What a process leads while it rebuilds: one does at a time."""
PAGE: Final = 5_000
"""Events read, folded and written at once: more save little, and each takes about two kilobytes."""
_PATIENCE_S: Final = 300.0
_LOOK_S: Final = 2.0
_MAX_SLEEP_S: Final = 60.0


class Failed(Unable):
    """The rebuild came to nothing, for the reason that the sentence says. The live tables are as they were."""


def chosen(tables: Collection[str], target: Target) -> tuple[str, ...]:
    """The names of the tables to rebuild, all of the target's when none are named. Raises `Invalid`."""
    there = [table.name for table in (CENTRAL if target is Target.POSTGRES else EVERY)]
    if unknown := sorted(set(tables) - set(there)):
        where = "PostgreSQL" if target is Target.POSTGRES else "BigQuery"
        if unknown[0] in {table.name for table in EVERY}:
            raise Invalid(f"{unknown[0]} is a table of BigQuery alone: the target is bigquery, or both.")
        raise Invalid(f"{unknown[0][:63]} is not a table of {where}. There are: {', '.join(there)}.")
    return tuple(name for name in there if name in tables or not tables)


def carry_out(
    service: Service,
    rebuild_id: UUID,
    *,
    tell: Tell = untold,
    stop: threading.Event | None = None,
    page: int = PAGE,
    patience_s: float = _PATIENCE_S,
) -> Rebuild:
    """Do a rebuild, or go on with it from its checkpoint; returns how it ended. The caller leads `LEAD`.

    Raises `Away` and `Stopped` when it can go on later, and `Failed` when it cannot: what it had built is gone then.
    `patience_s` is for how long it tries to swap tables that others hold.
    """
    stop = stop or threading.Event()
    with (
        maintenance(service.dsn, name="rebuild") as connection,
        _cancelled(stop, connection),
        Stages(service, connection, rebuild_id, tell=tell, stop=stop, page=page) as stages,
    ):
        try:
            stages.run(patience_s)
        except Exception as error:
            if stop.is_set():
                raise Stopped from error
            if passes(error):
                raise
            sentence = _sentence(error)
            stages.give_up(sentence)
            if isinstance(error, UnreadableEvent) and error.position:
                problem = Problem(kind=ProblemKind.EVENT, text=sentence, position=error.position)
                service.checkpoints.stand(POSTGRES, problem)
            raise Failed(sentence) from error
        done = rebuilds.find(connection, rebuild_id)
    if done.target is not Target.BIGQUERY:
        service.checkpoints.go_on(POSTGRES)  # every event was read
    return done


@contextmanager
def _cancelled(stop: threading.Event, connection: Connection[DictRow]) -> Iterator[None]:
    """Within it a statement that takes long does not outlast `stop`."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if stop.is_set():
                connection.cancel_safe()

    watcher = threading.Thread(target=watch, name="rebuild stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def passes(error: Exception) -> bool:
    """Whether the same may work later. A full disk does not: what was built so far only fills it."""
    if isinstance(error, psycopg.OperationalError):
        return not (error.sqlstate or "").startswith("53") or isinstance(error, psycopg.errors.TooManyConnections)
    return isinstance(error, (Away, Superseded, Overtaken, psycopg.InterfaceError))


def _sentence(error: Exception) -> str:
    """What went wrong, without any value of a row."""
    match error:
        case psycopg.Error():
            return f"PostgreSQL: {error.diag.message_primary or type(error).__name__}."
        case Held():
            return "Other sessions hold the tables all the time: long reports, backups or locks. End them first."
        case UnreadableEvent() if error.position:
            return f"Position {error.position}: {error} `convergence projections` says what to do."
        case UnreadableEvent() | Unable() | Invalid() | PermissionError() | ValueError():
            return str(error)
    logger.error("the rebuild failed", exc_info=error)
    return f"{type(error).__name__}; the log says where."


class Rebuilder(threading.Thread):
    """Takes up rebuilds that were asked for, and those that another process left unfinished."""

    def __init__(self, service: Service, stop: threading.Event) -> None:
        super().__init__(name="rebuilder")
        self._service = service
        self._stop_asked = stop

    def run(self) -> None:
        """Look now and then until asked to stop; after an error wait longer and longer, and go on."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential_jitter(multiplier=0.5, max=_MAX_SLEEP_S),
            stop=lambda _: self._stop_asked.is_set(),
            sleep=sleep_using_event(self._stop_asked),
            before_sleep=_tell_error,
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                while not self._stop_asked.wait(_LOOK_S):
                    self._look()

    def _look(self) -> None:
        service = self._service
        if rebuilds.unfinished(service.datastore) is None:
            return
        with leading(service.dsn, LEAD) as lead:
            found = rebuilds.unfinished(service.datastore) if lead else None
            if found is None:
                return
            logger.info("rebuilding %s, asked for by %s", ", ".join(found.tables), found.asked_by)
            try:
                carry_out(service, found.rebuild_id, stop=self._stop_asked)
            except Failed as failed:
                logger.error("the rebuild failed: %s", failed)  # noqa: TRY400 - where is in the sentence
            except Stopped:
                logger.info("the rebuild goes on when a projector starts again")
            else:
                logger.info("the rebuild is done")


def _tell_error(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Away | Overtaken):
        logger.warning("the rebuild waits: %s", error)
    else:
        logger.error("the rebuild stopped and will be tried again", exc_info=error)
