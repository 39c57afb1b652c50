"""Back-fills: how far each is, and its runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from psycopg.sql import SQL, Identifier

from adapters.postgres.event_log import Reads
from adapters.postgres.reads.listing import Mark
from domain.pipeline_run import RunState
from projections.tables import SCHEDULED_PIPELINE_RUNS

_COUNTS: Final = (
    "SELECT state, min(config_id) AS config_id, min(run_date) AS first, max(run_date) AS last, count(*) AS runs"
    " FROM scheduled_pipeline_runs WHERE backfill_id = %s AND customer_id = %s GROUP BY state"
)
_RUNS: Final = SQL(
    "SELECT {} FROM scheduled_pipeline_runs WHERE backfill_id = %(id)s AND customer_id = %(customer)s"
    " AND (%(at)s::timestamptz IS NULL OR (scheduled_time, run_id) < (%(at)s, %(key)s))"
    " ORDER BY scheduled_time DESC, run_id DESC LIMIT %(limit)s"
).format(SQL(", ").join(map(Identifier, SCHEDULED_PIPELINE_RUNS.names)))
_RUNS_STATEMENT: Final = _RUNS.as_bytes(None)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a back-fill is: its runs by state, and the days they are for."""

    config_id: str
    first: date
    last: date
    states: Mapping[RunState, int]

    @property
    def total(self) -> int:
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        """How many of its runs are in a state that they will not leave."""
        return sum(runs for state, runs in self.states.items() if state.ended)


def progress(reads: Reads, customer_id: str, backfill_id: str) -> Progress | None:
    """How far the back-fill is, None for one that the customer does not have."""
    with reads.reading() as cursor:
        rows = cursor.execute(_COUNTS, (backfill_id, customer_id), prepare=True).fetchall()
    if not rows:
        return None
    return Progress(
        config_id=rows[0]["config_id"],
        first=min(row["first"] for row in rows),
        last=max(row["last"] for row in rows),
        states={RunState(row["state"]): row["runs"] for row in rows},
    )


def newest_days_first(
    reads: Reads, customer_id: str, backfill_id: str, *, after: Mark | None, limit: int
) -> list[dict[str, Any]]:
    """At most `limit` runs of the back-fill, those that are queued last first."""
    wanted = {
        "id": backfill_id,
        "customer": customer_id,
        "at": after.created_at if after else None,
        "key": after.key if after else None,
        "limit": limit,
    }
    with reads.reading() as cursor:
        return cursor.execute(_RUNS_STATEMENT, wanted, prepare=True).fetchall()
