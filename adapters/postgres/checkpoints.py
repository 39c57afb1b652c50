"""How far projections have come, the log they follow, and who may lead one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from zlib import crc32

import psycopg

from adapters.postgres.event_log import Datastore, EventRecorder, connection_arguments, translated
from application.mapper import EventMapper
from projections.follow import Overtaken, Placed


class PostgresLog:
    """The log as projections read it: in order, page by page."""

    def __init__(self, recorder: EventRecorder, mapper: EventMapper) -> None:
        self._recorder = recorder
        self._mapper = mapper

    def read(self, after: int, limit: int) -> Sequence[Placed]:
        """At most `limit` events after position `after`; raises `UnreadableEvent` at one this code cannot read."""
        with translated():
            found = self._recorder.select_notifications(start=after, limit=limit, inclusive_of_start=False)
        return [Placed(r.event, r.envelope) for r in map(self._mapper.to_domain_event, found)]

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


@contextmanager
def leading(dsn: str, projection: str) -> Iterator[bool]:
    """Whether this process leads the projection. The lead ends with the block, or with the connection."""
    arguments = connection_arguments(dsn, name=f"lead {projection}")
    with translated(), psycopg.connect(**arguments, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(%s, %s)", (0x0C0F, crc32(projection.encode()) - 2**31)
        ).fetchone()
        yield bool(row and row[0])
