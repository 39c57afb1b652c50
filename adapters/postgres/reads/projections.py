"""How far projections have come, what keeps them from going on, and which events they pass over."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from psycopg import Connection
from psycopg.rows import DictRow

from adapters.postgres.checkpoints import lead_key
from adapters.postgres.event_log import Datastore
from application.mapper import envelope_of
from domain.projection import POSTGRES, PROJECTIONS
from projections.follow import ProblemKind

# The log's end is read once; the oldest event after each position is one index step.
_STANDING: Final = (
    "WITH log AS MATERIALIZED (SELECT coalesce(max(notification_id), 0) AS log_end, clock_timestamp() AS now"
    "  FROM stored_events)"
    " SELECT n.projection, c.position, c.updated_at, c.problem, c.problem_kind, c.problem_position, c.problem_since,"
    " c.problem_met_at, c.events_per_second, l.log_end, l.now, e.topic AS next_topic, e.state AS next_state,"
    " s.topic AS problem_topic, coalesce(k.skipped, 0) AS skipped,"
    " EXISTS (SELECT FROM pg_locks p WHERE p.locktype = 'advisory' AND p.granted AND p.objsubid = 2"
    "  AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    "  AND p.classid::bigint = n.class AND p.objid::bigint = n.object) AS led"
    " FROM log l CROSS JOIN unnest(%s::text[], %s::bigint[], %s::bigint[]) AS n(projection, class, object)"
    " LEFT JOIN checkpoints c ON c.projection = n.projection"
    " LEFT JOIN LATERAL (SELECT topic, state FROM stored_events WHERE notification_id > coalesce(c.position, 0)"
    "  ORDER BY notification_id LIMIT 1) e ON n.projection <> %s"
    " LEFT JOIN stored_events s ON s.notification_id = c.problem_position"
    " LEFT JOIN (SELECT projection, count(*) AS skipped FROM projection_skips GROUP BY projection) k"
    "  ON k.projection = n.projection ORDER BY n.projection"
)
_RECENTLY_S: Final = 60.0
_NOWHERE: Final = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a projection has come, and what its leader said last.

    `behind` is in events, `behind_seconds` the age of the oldest of them by the database's clock, None where that
    event's own instant cannot be read. `led` says whether a process works on it: it leads, or was seen to within a
    minute. `problem_seconds` is how long the problem lasts, `events_per_second` how fast the checkpoint last moved.
    """

    projection: str
    position: int
    log_end: int
    behind: int
    behind_seconds: float | None
    events_per_second: float | None
    led: bool
    problem: str | None
    problem_kind: ProblemKind | None
    problem_position: int | None
    problem_topic: str | None
    problem_since: datetime | None
    problem_seconds: float | None
    skipped: int

    @property
    def stopped(self) -> bool:
        """Whether it stands at an event that it can make nothing of."""
        return self.problem_kind is ProblemKind.EVENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """An event that an operator had a projection pass over."""

    projection: str
    position: int
    topic: str
    reason: str
    skipped_by: str
    skipped_at: datetime


def skipped(datastore: Datastore, projection: str) -> frozenset[int]:
    """The positions of the events that the projection passes over; `postgres` for the tables of the service itself."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT skipped_position FROM projection_skips WHERE projection = %s", (projection,), prepare=True
        ).fetchall()
    return frozenset(row["skipped_position"] for row in found)


def skips(datastore: Datastore) -> list[Skip]:
    """Every event that is passed over, in the order of the log."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT projection, skipped_position AS position, topic, reason, skipped_by, skipped_at"
            " FROM projection_skips ORDER BY skipped_position, projection",
            prepare=True,
        ).fetchall()
    return [Skip(**row) for row in found]


def standings(datastore: Datastore, now: datetime | None = None) -> list[Standing]:
    """Where every projection stands; spans count up to `now`, by the database's clock unless it is given.

    Raises `Away` with the database.
    """
    with datastore.reading() as cursor:
        return standings_on(cursor.connection, now)


def standings_on(connection: Connection[DictRow], now: datetime | None = None) -> list[Standing]:
    """As `standings`, on a connection; raises the driver's errors."""
    names = sorted(PROJECTIONS)
    keys = [[number % 2**32 for number in lead_key(name)] for name in names]
    parameters = (names, [key[0] for key in keys], [key[1] for key in keys], POSTGRES)
    found = connection.execute(_STANDING, parameters, prepare=True).fetchall()
    return [_standing(row, now or row["now"]) for row in found]


def _standing(row: Mapping[str, Any], now: datetime) -> Standing:
    def since(instant: datetime | None) -> float | None:
        return None if instant is None else max(0.0, (now - instant).total_seconds())

    # Its rows are written with the events: what it says to keep it from going on is about making them anew.
    with_events = row["projection"] == POSTGRES
    position = row["log_end"] if with_events else row["position"] or 0
    behind = max(0, row["log_end"] - position)
    met, moved = since(row["problem_met_at"]), since(row["updated_at"])
    return Standing(
        projection=row["projection"],
        position=position,
        log_end=row["log_end"],
        behind=behind,
        behind_seconds=since(_instant(row)) if behind else 0.0,
        events_per_second=row["events_per_second"] if moved is not None and moved < _RECENTLY_S else None,
        led=with_events or row["led"] or (met is not None and met < _RECENTLY_S),
        problem=row["problem"],
        problem_kind=ProblemKind(row["problem_kind"]) if row["problem_kind"] else None,
        problem_position=row["problem_position"],
        problem_topic=row["problem_topic"],
        problem_since=row["problem_since"],
        problem_seconds=since(row["problem_since"]),
        skipped=row["skipped"],
    )


def _instant(row: Mapping[str, Any]) -> datetime | None:
    """When the oldest event that waits happened."""
    if row["next_state"] is None:
        return None
    envelope = envelope_of(StoredEvent(_NOWHERE, 1, row["next_topic"], bytes(row["next_state"])))
    return envelope.at if envelope is not None and envelope.at.tzinfo is not None else None
