"""The processes of the service that live, each a row that it renews itself, by the database's clock."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from adapters.postgres.event_log import Datastore

ROLES: Final = ("api", "scheduler", "worker", "projector")
DEAD_AFTER_S: Final = 60.0
"""A process that was not seen for this long counts as dead."""
_FORGOTTEN_AFTER_S: Final = 86_400.0

# A row that a crash of the server undoes comes back with the next renewal, so nobody waits for the disk.
_RENEW: Final = (
    "WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),"
    " forgotten AS (DELETE FROM processes WHERE instance_id IN (SELECT instance_id FROM processes"
    "  WHERE seen_at < clock_timestamp() - make_interval(secs => %(forgotten_after)s)"
    "  AND instance_id <> %(instance_id)s FOR UPDATE SKIP LOCKED))"
    " INSERT INTO processes AS p (instance_id, roles, worker_id, host, pid, version,"
    "  concurrency, holding, finished, finished_last_minute)"
    " SELECT %(instance_id)s, %(roles)s::text[], %(worker_id)s, %(host)s, %(pid)s, %(version)s,"
    "  %(concurrency)s::integer, %(holding)s::integer, %(finished)s::bigint, %(finished_last_minute)s::integer"
    " FROM quick ON CONFLICT (instance_id) DO UPDATE SET seen_at = clock_timestamp(),"
    "  concurrency = excluded.concurrency, holding = excluded.holding, finished = excluded.finished,"
    "  finished_last_minute = excluded.finished_last_minute"
)
_SEEN: Final = (
    "SELECT instance_id::text, roles, worker_id, host, pid, version, started_at, seen_at,"
    " extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen_seconds_ago,"
    " seen_at > clock_timestamp() - make_interval(secs => %(dead_after)s) AS alive,"
    " concurrency, holding, finished, finished_last_minute"
    " FROM processes ORDER BY seen_at > clock_timestamp() - make_interval(secs => %(dead_after)s) DESC,"
    " CASE WHEN seen_at > clock_timestamp() - make_interval(secs => %(dead_after)s) THEN started_at END,"
    " seen_at DESC LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Who a process is. `worker_id` is the name under which it would claim runs, whatever its roles."""

    instance_id: UUID
    roles: tuple[str, ...]
    worker_id: str
    host: str
    pid: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker has in hand and has done since it started."""

    concurrency: int
    holding: int
    finished: int
    finished_last_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A process as its row shows it. The figures of the last minute are as old as the row."""

    instance_id: str
    roles: tuple[str, ...]
    worker_id: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    seen_seconds_ago: float
    alive: bool
    concurrency: int | None
    holding: int | None
    finished: int | None
    finished_last_minute: int | None


def renew(
    datastore: Datastore, process: Process, work: Work | None, *, forgotten_after_s: float = _FORGOTTEN_AFTER_S
) -> None:
    """Say that the process lives now. Rows of others that were not seen for `forgotten_after_s` are removed.

    Raises `Away` with the database.
    """
    figures: dict[str, Any] = asdict(work) if work else dict.fromkeys(Work.__dataclass_fields__)
    with datastore.reading() as cursor:
        cursor.execute(
            _RENEW,
            {**asdict(process), "roles": list(process.roles), **figures, "forgotten_after": forgotten_after_s},
            prepare=True,
        )


def remove(datastore: Datastore, instance_id: UUID) -> None:
    """The process has stopped in order. Raises `Away` with the database."""
    with datastore.reading() as cursor:
        cursor.execute("DELETE FROM processes WHERE instance_id = %s", (instance_id,))


def seen(datastore: Datastore, *, dead_after_s: float = DEAD_AFTER_S, limit: int = 200) -> Sequence[Seen]:
    """The processes that live, oldest first, and after them those that died within the last day, newest death first."""
    with datastore.reading() as cursor:
        found = cursor.execute(_SEEN, {"dead_after": dead_after_s, "limit": limit}, prepare=True).fetchall()
    return [Seen(**{**row, "roles": tuple(row["roles"])}) for row in found]


def alive_by_role(datastore: Datastore, *, dead_after_s: float = DEAD_AFTER_S) -> dict[str, int]:
    """How many processes of each of the `ROLES` live."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT role, count(*) AS processes FROM processes, unnest(roles) AS role"
            " WHERE seen_at > clock_timestamp() - make_interval(secs => %s) GROUP BY role ORDER BY role",
            (dead_after_s,),
            prepare=True,
        ).fetchall()
    return dict.fromkeys(ROLES, 0) | {row["role"]: row["processes"] for row in found}
