"""Reaching the database from a command: waited for while it starts, and its failures said in a sentence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from adapters.postgres import schema
from adapters.postgres.event_log import Datastore, connection_arguments
from adapters.process import Unable

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 30
"""How long a command waits for a database that is starting beside it."""


def required(dsn: str | None) -> str:
    """The DSN; raises `Unable` when there is none."""
    if dsn is None:
        raise Unable("There is no database: start `convergence serve` first, or set DATABASE_URL.")
    return dsn


@contextmanager
def connected(dsn: str | None, *, patience_s: float = _PATIENCE_S) -> Iterator[Connection[DictRow]]:
    """A connection of its own, waited for while the database starts; raises `Unable` with a sentence."""
    arguments: dict[str, Any] = connection_arguments(required(dsn), name="command")
    try:
        connection: Connection[DictRow] = Retrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            wait=wait_exponential(multiplier=0.1, max=2),
            stop=stop_after_delay(patience_s),
            before_sleep=_report,
            reraise=True,
        )(psycopg.connect, **arguments, autocommit=True, row_factory=dict_row)
    except psycopg.OperationalError as error:
        raise Unable(f"The database does not answer: {reason(error)}") from None
    except psycopg.Error:
        # The driver's sentence quotes the address, and with it the password.
        raise Unable("DATABASE_URL is not like postgresql://user:password@host:5432/database.") from None
    with connection:
        yield connection


@contextmanager
def readable(dsn: str | None, *, name: str, patience_s: float = 5) -> Iterator[Datastore]:
    """A datastore of one connection for a command that looks, on a schema that fits this code; raises `Unable`."""
    with connected(dsn, patience_s=patience_s) as connection:
        if not schema.is_current(connection):
            raise Unable("The database's schema is not this version's: run `convergence migrate` first.")
    datastore = Datastore(required(dsn), size=1, name=name)
    try:
        yield datastore
    finally:
        datastore.close()


def _report(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number == 1 and error is not None:
        logger.warning("waiting for the database: %s", reason(error))


def reason(error: BaseException) -> str:
    """The last line of what the driver says, which names host and user but no password."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def migrate(dsn: str | None, *, patience_s: float = _PATIENCE_S) -> list[str]:
    """Bring the database to this code's shape; returns the migrations applied now. Raises `Unable`."""
    with connected(dsn, patience_s=patience_s) as connection:
        try:
            return schema.migrate(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise Unable(f"The database's role may not change the schema: {reason(error)}") from error
