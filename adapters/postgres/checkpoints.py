"""How far projections have come, the log they follow, and who may lead one."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import cast
from zlib import crc32

import psycopg
from eventsourcing.persistence import Notification

from adapters.postgres.event_log import Datastore, EventRecorder, connection_arguments, translated
from adapters.postgres.reads import events
from application.mapper import EventMapper, UnreadableEvent
from projections.follow import Overtaken, Placed


class PostgresLog:
    """The log as projections read it: in order, page by page."""

    def __init__(self, recorder: EventRecorder, mapper: EventMapper) -> None:
        self._recorder = recorder
        self._datastore = cast("Datastore", recorder.datastore)
        self._mapper = mapper

    def read(self, after: int, limit: int, skipping: Collection[int] = frozenset()) -> Sequence[Placed]:
        """At most `limit` events after position `after`, none only at the end of the log.

        Those at the positions `skipping` are passed over unread. Ends before an event that this code cannot read;
        raises `UnreadableEvent`, with its position, when that is the first one.
        """

        def following(after: int) -> Sequence[Notification]:
            with translated():
                return self._recorder.select_notifications(start=after, limit=limit, inclusive_of_start=False)

        return self._decoded(following, after, skipping)

    def read_of(
        self, customer_id: str, after: int, limit: int, skipping: Collection[int] = frozenset()
    ) -> Sequence[Placed]:
        """As `read`, but only events of this customer, its subscription and its runs."""

        def following(after: int) -> Sequence[Notification]:
            return events.following(self._datastore, customer_id, after=after, limit=limit)

        return self._decoded(following, after, skipping)

    def _decoded(
        self, following: Callable[[int], Sequence[Notification]], after: int, skipping: Collection[int]
    ) -> Sequence[Placed]:
        while found := following(after):
            placed: list[Placed] = []
            for stored in found:
                if stored.id in skipping:
                    continue
                try:
                    recorded = self._mapper.to_domain_event(stored)
                except UnreadableEvent:
                    if placed:
                        return placed
                    raise
                placed.append(Placed(recorded.event, recorded.envelope))
            if placed:
                return placed
            after = found[-1].id
        return []

    def end(self) -> int:
        """The position of the newest event, 0 for an empty log."""
        with translated():
            return self._recorder.max_notification_id() or 0


class PostgresCheckpoints:
    """One row per projection, fenced: a batch counts only from the position it started at."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def position(self, projection: str) -> int:
        with self._datastore.reading() as cursor:
            row = cursor.execute(
                "SELECT position FROM checkpoints WHERE projection = %s", (projection,), prepare=True
            ).fetchone()
        return 0 if row is None else row["position"]

    def advance(self, projection: str, expected: int, to: int) -> None:
        """Move on from `expected`; raises `Overtaken` when another process moved it meanwhile."""
        with self._datastore.reading() as cursor:
            cursor.execute(
                "INSERT INTO checkpoints AS c (projection, position) SELECT %(p)s, %(to)s"
                " WHERE %(expected)s = 0 OR EXISTS (SELECT 1 FROM checkpoints WHERE projection = %(p)s)"
                " ON CONFLICT (projection) DO UPDATE SET position = %(to)s, updated_at = clock_timestamp()"
                " WHERE c.position = %(expected)s",
                {"p": projection, "to": to, "expected": expected},
                prepare=True,
            )
            if cursor.rowcount == 0:
                raise Overtaken(projection)


class Lead:
    """Whether this process leads a projection: true or false as it stands."""

    def __init__(self, connection: psycopg.Connection, key: tuple[int, int], *, held: bool) -> None:
        self._connection = connection
        self._key = key
        self._held = held

    def __bool__(self) -> bool:
        return self._held

    def wanted(self) -> bool:
        """Whether another process waits to lead: a rebuild, which needs the tables to itself for a moment."""
        with translated():
            row = self._connection.execute(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 2"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND classid::bigint = %s AND objid::bigint = %s)",
                [number % 2**32 for number in self._key],
            ).fetchone()
        return bool(row and row[0])


@contextmanager
def leading(dsn: str, projection: str, *, wait_s: float = 0) -> Iterator[Lead]:
    """The lead of a projection, if nobody has it, or gives it up within `wait_s`.

    It ends with the block, or with the connection. Who leads looks now and then whether the lead is `wanted`.
    """
    key = (0x0C0F, crc32(projection.encode()) - 2**31)
    arguments = connection_arguments(dsn, name=f"lead {projection}")
    with translated(), psycopg.connect(**arguments, autocommit=True) as connection:
        yield Lead(connection, key, held=_take_lead(connection, key, wait_s))


def _take_lead(connection: psycopg.Connection, key: tuple[int, int], wait_s: float) -> bool:
    if wait_s:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{wait_s * 1000:.0f}ms",))
        connection.execute("SELECT set_config('statement_timeout', '0', false)")
        try:
            connection.execute("SELECT pg_advisory_lock(%s, %s)", key)
        except psycopg.errors.LockNotAvailable:
            return False
        return True
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
    return bool(row and row[0])
