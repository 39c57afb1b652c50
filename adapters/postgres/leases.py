"""Leases between events: heartbeats, by the database's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapters.postgres.event_log import Datastore

# Locked in the order in which outcomes are recorded: the two meet on the leases of one worker all the time. A renewal
# that a crash of the server undoes is no loss where one before it reached the disk: then nobody waits for that.
_RENEW: Final = (
    "WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', %(commit)s, true)),"
    " held AS MATERIALIZED (SELECT r.run_id FROM run_leases r"
    " JOIN unnest(%(runs)s::text[], %(attempts)s::integer[]) AS w(run_id, attempt) USING (run_id, attempt)"
    " WHERE r.worker_id = %(worker)s ORDER BY r.run_id FOR UPDATE OF r)"
    " UPDATE run_leases l SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s), begun = true"
    " FROM held, quick WHERE l.run_id = held.run_id RETURNING l.run_id, l.attempt, l.stop_asked"
)


@dataclass(frozen=True, slots=True)
class Held:
    """A run that the worker still holds. `stop_asked`: somebody wants it cancelled."""

    run_id: str
    attempt: int
    stop_asked: bool


def renew(
    datastore: Datastore,
    worker_id: str,
    attempts: Sequence[tuple[str, int]],
    seconds: float,
    *,
    durable: bool = False,
) -> list[Held]:
    """Renew the leases of these runs and attempts with one statement; what is not in the answer is held no more.

    A `durable` renewal outlives a crash of the database.

    From the first renewal on, which comes before a run is executed, an attempt counts as begun.
    Only what is named is renewed: another process of the same worker id may have died with runs of its own.
    """
    wanted = {
        "seconds": seconds,
        "commit": "on" if durable else "off",
        "worker": worker_id,
        "runs": [run_id for run_id, _ in attempts],
        "attempts": [attempt for _, attempt in attempts],
    }
    with datastore.reading() as cursor:
        rows = cursor.execute(_RENEW, wanted, prepare=True).fetchall()
    return [Held(row["run_id"], row["attempt"], row["stop_asked"]) for row in rows]
