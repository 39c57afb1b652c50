"""Leases between events: heartbeats, by the database's clock."""

from dataclasses import dataclass
from typing import Final

from adapters.postgres.event_log import Datastore

# Locked in the order in which outcomes are recorded: the two meet on the leases of one worker all the time.
_RENEW: Final = (
    "WITH held AS MATERIALIZED"
    " (SELECT run_id FROM run_leases WHERE worker_id = %(worker)s ORDER BY run_id FOR UPDATE)"
    " UPDATE run_leases l SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)"
    " FROM held WHERE l.run_id = held.run_id RETURNING l.run_id, l.attempt, l.stop_asked"
)


@dataclass(frozen=True, slots=True)
class Held:
    """A run that the worker still holds. `stop_asked`: somebody wants it cancelled."""

    run_id: str
    attempt: int
    stop_asked: bool


def renew(datastore: Datastore, worker_id: str, seconds: float) -> list[Held]:
    """Renew all leases of a worker with one statement; what is not in the answer is held no more."""
    with datastore.reading() as cursor:
        rows = cursor.execute(_RENEW, {"seconds": seconds, "worker": worker_id}, prepare=True).fetchall()
    return [Held(row["run_id"], row["attempt"], row["stop_asked"]) for row in rows]
