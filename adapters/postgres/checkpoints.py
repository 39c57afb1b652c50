"""How far projections have come, the log they follow, and who may lead one."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from zlib import crc32

import psycopg
from eventsourcing.persistence import Notification
from psycopg.rows import TupleRow

from adapters.postgres.event_log import Datastore, EventRecorder, connection_arguments, translated
from adapters.postgres.reads import events
from adapters.postgres.silence import AttentiveConnection
from application.mapper import EventMapper, UnreadableEvent
from projections.follow import Overtaken, Placed, Problem


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
                found: Sequence[Notification] = self._recorder.select_notifications(
                    start=after, limit=limit, inclusive_of_start=False
                )
            return found

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
                    placed += [Placed(r.event, r.envelope) for r in self._mapper.to_domain_events(stored)]
                except UnreadableEvent:
                    if placed:
                        return placed
                    raise
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
            move_on(cursor, projection, expected, to)

    def stand(self, projection: str, problem: Problem) -> None:
        """Say what keeps a projection from going on; only who leads it may. It is over when the checkpoint moves on.

        Said again of the same thing, it goes on since when it was said first.
        """
        with self._datastore.reading() as cursor:
            cursor.execute(
                "INSERT INTO checkpoints AS c"
                " (projection, position, problem, problem_kind, problem_position, problem_since, problem_met_at)"
                " VALUES (%(p)s, 0, %(text)s, %(kind)s, %(at)s, clock_timestamp(), clock_timestamp())"
                " ON CONFLICT (projection) DO UPDATE SET problem = %(text)s, problem_kind = %(kind)s,"
                " problem_position = %(at)s, problem_met_at = clock_timestamp(), problem_since = CASE"
                "  WHEN c.problem_kind = %(kind)s AND c.problem_position IS NOT DISTINCT FROM %(at)s"
                "  THEN c.problem_since ELSE clock_timestamp() END",
                {"p": projection, "text": problem.text, "kind": problem.kind.value, "at": problem.position},
            )

    def go_on(self, projection: str) -> None:
        """Take back what was said to keep the projection from going on."""
        with self._datastore.reading() as cursor:
            cursor.execute(
                "UPDATE checkpoints SET problem = NULL, problem_kind = NULL, problem_position = NULL,"
                " problem_since = NULL, problem_met_at = NULL WHERE projection = %s AND problem IS NOT NULL",
                (projection,),
            )


def move_on(cursor: psycopg.Cursor[Any], projection: str, expected: int, to: int) -> None:
    """Move a checkpoint on from `expected`, in the caller's transaction if there is one.

    Raises `Overtaken` when another process moved it meanwhile; until the transaction ends, no other one moves it.
    """
    cursor.execute(
        "INSERT INTO checkpoints AS c (projection, position) SELECT %(p)s, %(to)s"
        " WHERE %(expected)s = 0 OR EXISTS (SELECT 1 FROM checkpoints WHERE projection = %(p)s)"
        " ON CONFLICT (projection) DO UPDATE SET position = %(to)s, updated_at = clock_timestamp(),"
        " problem = NULL, problem_kind = NULL, problem_position = NULL, problem_since = NULL,"
        " problem_met_at = NULL, events_per_second = (%(to)s - c.position) / greatest(0.001,"
        "  extract(epoch FROM clock_timestamp() - c.updated_at)) WHERE c.position = %(expected)s",
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


def lead_key(projection: str) -> tuple[int, int]:
    """The advisory lock that who leads the projection holds."""
    return 0x0C0F, crc32(projection.encode()) - 2**31


@contextmanager
def leading(dsn: str, projection: str, *, wait_s: float = 0) -> Iterator[Lead]:
    """The lead of a projection, if nobody has it, or gives it up within `wait_s`.

    It ends with the connection, which the server notices a moment after the block. Who leads looks now and then whether
    the lead is `wanted`.
    """
    key = lead_key(projection)
    arguments = connection_arguments(dsn, name=f"lead {projection}")
    with translated(), AttentiveConnection[TupleRow].connect(**arguments, autocommit=True) as connection:
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
