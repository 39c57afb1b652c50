"""The event log in PostgreSQL: the library's recorder, with one lock and one array insert of our own."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import repeat
from typing import Any, Final, LiteralString, Protocol, TypeVar

import msgspec
import psycopg
from eventsourcing import persistence
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Connection, Cursor, Pipeline
from psycopg.abc import Params
from psycopg.rows import DictRow, args_row, dict_row
from psycopg.sql import SQL, Identifier
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout

from adapters.postgres.json_rows import json_of
from adapters.postgres.privileges import may_bind, take_role
from adapters.postgres.silence import AttentiveConnection
from application.ports import Away, Full
from application.session import Superseded

Made = TypeVar("Made")

LOG_LOCK: Final = 0x0C0F_FEE1
"""The advisory lock that every append takes: events become visible in the order of their positions."""

_AWAY: Final = "The database does not answer."
_FULL: Final = "The database's disk is full: nothing can be stored until there is room again."
_FULL_S: Final = 60.0
_BUSY: Final = "Too many others are changing the same thing. Try again."
_SECONDS: Final = 1000
_LONGEST_TRANSACTION_S: Final = 30
_TRANSACTION_TIMEOUT: Final = 170000
"""The first version of PostgreSQL that ends long transactions by itself."""
_GAVE_UP: Final = (
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
"""A process that stood still for so long that the server has ended its transaction; a server that only reads, as one
does that is about to be replaced."""
_OPTIONS: Final = (
    f"-c statement_timeout={30 * _SECONDS} -c lock_timeout={10 * _SECONDS}"
    f" -c idle_in_transaction_session_timeout={20 * _SECONDS} -c TimeZone=UTC"
    # A client that the network swallowed must not hold its locks for hours.
    " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3"
    f" -c tcp_user_timeout={10 * _SECONDS}"
    # Statements look a bounded number of rows up by key. A plan that reads a whole table, since it was small when the
    # statement was prepared, is never the right one for long; nor do other parameters need another plan.
    " -c random_page_cost=1.1 -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
    " -c plan_cache_mode=force_generic_plan"
)


def connection_arguments(dsn: str, *, name: str) -> dict[str, Any]:
    """How every connection of the service is made: UTC, bounded statements, and a dead network noticed in seconds."""
    arguments: dict[str, Any] = {
        "conninfo": dsn,
        "application_name": f"convergence {name}@{socket.gethostname()}"[:63],
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10 * _SECONDS,
        "options": _OPTIONS,
    }
    return arguments


def _configure(connection: Connection[DictRow]) -> None:
    set_json_loads(msgspec.json.decode, connection)
    take_role(connection)
    if connection.info.server_version >= _TRANSACTION_TIMEOUT:
        # The server forgets its clock for idle transactions where the driver has sent a pipeline of statements.
        connection.execute("SELECT set_config('transaction_timeout', %s, false)", (f"{_LONGEST_TRANSACTION_S}s",))


class NotCommitted(Exception):  # noqa: N818 - it says what happened
    """A statement of the transaction had failed, nobody cared, and the server has taken all of it back."""


class PipelinedCursor(Cursor[DictRow]):
    """Sends statements as they come, and waits for the server when their rows are fetched, all at once.

    The server then knows that the client thinks, and ends a transaction whose client thinks for too long.
    """

    def __init__(self, connection: Connection[DictRow], pipeline: Pipeline) -> None:
        super().__init__(connection)
        self._answers = pipeline

    def another(self) -> "PipelinedCursor":
        """For one more statement in the same pipeline, before the rows of the first are fetched."""
        return PipelinedCursor(self.connection, self._answers)

    def made(self, kind: Callable[..., Made], query: LiteralString, parameters: Params) -> list[Made]:
        """What `kind` makes of each row of one more statement, given its columns."""
        cursor: Cursor[Any] = self.another()
        cursor.row_factory = args_row(kind)
        return cursor.execute(query, parameters, prepare=True).fetchall()

    def fetchall(self) -> list[DictRow]:
        if self.pgresult is None:
            self._answers.sync()
        return super().fetchall()


class Reads(Protocol):
    """Where rows are read: by the service itself, or on behalf of one customer."""

    def reading(self) -> AbstractContextManager[Cursor[DictRow]]:
        """A cursor for single statements; raises `Away` when the database is away."""
        ...


class Datastore(PostgresDatastore):
    """The library's datastore over a pool that is made from a URL."""

    def __init__(self, dsn: str, *, size: int = 10, name: str = "service") -> None:
        super().__init__(dbname="", host="", port="", user="", password="", pool_size=1)
        self._full_until = 0.0
        self._binds_tenants = False
        arguments = connection_arguments(dsn, name=name)
        conninfo = arguments.pop("conninfo")
        self.pool = ConnectionPool(  # type: ignore[assignment]
            conninfo,
            connection_class=AttentiveConnection[DictRow],
            kwargs={**arguments, "row_factory": dict_row, "autocommit": True},
            min_size=1,
            max_size=size,
            # A request that fails asks once more, to let go of what it has taken: both within ten seconds.
            timeout=4,
            max_lifetime=3600,
            # Attempts grow twice as far apart each time, until they are given up and the next caller starts anew: a
            # database that was away for long is found again within seconds.
            reconnect_timeout=10,
            configure=_configure,
            check=AttentiveConnection.check,
            open=False,
        )

    def register_type_adapters(self) -> None:
        """Nothing: events are sent as JSON, and a process may start while the database is away."""

    @contextmanager
    def get_connection(self) -> Iterator[Connection[DictRow]]:
        """The library's way to a connection. It would try ten times over when the database is away: `Away` at once."""
        try:
            with super().get_connection() as connection:
                yield connection
        except (persistence.OperationalError, persistence.InterfaceError) as e:
            raise Away(_AWAY) from e

    @contextmanager
    def transaction_cursor(self) -> Iterator[Cursor[DictRow]]:
        """A transaction; raises `Away` when the database is away and `Superseded` when another one was first."""
        with self.connected() as connection, connection.transaction(), connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def pipelined_cursor(self) -> Iterator[PipelinedCursor]:
        """As `transaction_cursor`, and it waits for the server only where rows are fetched, and at the end.

        What a statement raises is raised there at the latest. When it returns, the transaction was committed.
        """
        with self.connected() as connection, pipelined(connection) as cursor:
            yield cursor

    @property
    def full(self) -> bool:
        """Whether the database's disk was full a moment ago, and nothing has been appended since."""
        return time.monotonic() < self._full_until

    def has_stored(self) -> None:
        """There is room again."""
        self._full_until = 0.0

    @contextmanager
    def _noticing_room(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.DiskFull:
            self._full_until = time.monotonic() + _FULL_S
            raise

    @contextmanager
    def connected(self) -> Iterator[Connection[DictRow]]:
        """One of the pool's connections, in autocommit; raises as `transaction_cursor` does."""
        with translated(), self._noticing_room():
            self.pool.open(wait=False)
            with self.pool.connection() as connection:
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Cursor[DictRow]]:
        """A cursor outside any transaction, for single statements."""
        with self.connected() as connection, connection.cursor() as cursor:
            yield cursor

    def binds_tenants(self, connection: Connection[DictRow]) -> bool:
        """Whether statements can be bound to one customer's rows. Once they can be, they are, whatever happens."""
        self._binds_tenants = self._binds_tenants or may_bind(connection)
        return self._binds_tenants


@contextmanager
def pipelined(connection: Connection[DictRow]) -> Iterator[PipelinedCursor]:
    """A transaction on the connection, as `Datastore.pipelined_cursor`; none is left behind, whatever is raised."""
    try:
        # The driver's own transaction would wait for its beginning and for its end.
        with connection.pipeline() as pipeline:
            cursor = PipelinedCursor(connection, pipeline)
            cursor.execute("BEGIN", prepare=False)
            yield cursor
            cursor.execute("COMMIT", prepare=False)
    except BaseException:
        with suppress(psycopg.OperationalError):  # the server rolls back what a lost connection leaves
            connection.rollback()
        raise
    if cursor.statusmessage != "COMMIT":
        raise NotCommitted(cursor.statusmessage)


@contextmanager
def translated() -> Iterator[None]:
    """Say the driver's errors in the application's words."""
    try:
        yield
    except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as e:
        raise Superseded(type(e).__name__) from e
    except psycopg.errors.LockNotAvailable as e:
        raise Away(_BUSY) from e
    except psycopg.errors.DiskFull as e:
        raise Full(_FULL) from e
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, *_GAVE_UP) as e:
        raise Away(_AWAY) from e


class EventRecorder(PostgresApplicationRecorder):
    """The library's recorder, with a lock, a way to insert, and a column of our own.

    An advisory lock stands for the table lock, JSON for composites, and the column says whose an event is.

    The table lock would also queue behind VACUUM. The database functions that the library can create are refused:
    they skip the lock, and a reader that follows the log would miss events for ever.
    """

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = "stored_events") -> None:
        if datastore.enable_db_functions:
            raise ValueError("The event log must not use database functions: they skip the lock that orders it.")
        super().__init__(datastore, events_table_name=events_table_name)
        table = Identifier(datastore.schema, events_table_name)
        self.sql_create_statements.append(SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS customer_id text").format(table))
        self.lock_table_statements = [
            SQL("SELECT pg_advisory_xact_lock({})").format(LOG_LOCK).as_bytes(None),
        ]
        self._insert = (
            SQL(
                "INSERT INTO {} (originator_id, originator_version, topic, state, customer_id)"
                " SELECT i, v, t, s, c FROM ROWS FROM (json_to_recordset(%s) AS (i {}, v bigint, t text, c text),"
                " unnest(%b::bytea[])) AS e(i, v, t, c, s)"
            )
            .format(table, Identifier(datastore.originator_id_type))
            .as_bytes(None)
        )

    def _insert_stored_events(
        self,
        curs: Cursor[DictRow],
        stored_events: Sequence[StoredEvent],
        **_: Any,  # noqa: ANN401 - the library's signature
    ) -> None:
        self._notify_channel(curs)
        self._append(curs, self._insert + b" RETURNING notification_id", stored_events)

    def append(
        self, cursor: Cursor[DictRow], stored_events: Sequence[StoredEvent], customer_ids: Sequence[str] = ()
    ) -> None:
        """Append inside the caller's transaction, in order and without a gap; `customer_ids` says whose each event is.

        The newest one's position is what the connection's sequence says then.
        """
        self._append(cursor, self._insert, stored_events, customer_ids)

    def _append(
        self,
        cursor: Cursor[DictRow],
        statement: bytes,
        stored_events: Sequence[StoredEvent],
        customer_ids: Sequence[str] = (),
    ) -> None:
        owners = customer_ids or repeat(None)
        rows = [
            {"i": e.originator_id, "v": e.originator_version, "t": e.topic, "c": customer_id}
            for e, customer_id in zip(stored_events, owners, strict=False)
        ]
        encoded, states = json_of(rows), [e.state for e in stored_events]
        self._lock_table(cursor)
        cursor.execute(statement, (encoded, states), prepare=True)
