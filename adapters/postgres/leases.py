"""Leases between events: heartbeats, by the database's clock."""

from dataclasses import dataclass
from typing import Final

from adapters.postgres.event_log import Datastore

_RENEW: Final = (
    "UPDATE run_leases SET expires_at = clock_timestamp() + make_interval(secs => %s)"
    " WHERE worker_id = %s RETURNING run_id, attempt, stop_asked"
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
        rows = cursor.execute(_RENEW, (seconds, worker_id), prepare=True).fetchall()
    return [Held(row["run_id"], row["attempt"], row["stop_asked"]) for row in rows]
