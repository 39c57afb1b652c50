"""Runs, as far as rows tell: newest first, whoever they belong to, and how many are in which state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from psycopg.sql import SQL, Identifier

from adapters.postgres.event_log import Datastore, Reads
from domain.pipeline_run import RunState
from projections.tables import SCHEDULED_PIPELINE_RUNS

_COLUMNS: Final = SQL(", ").join(map(Identifier, (*SCHEDULED_PIPELINE_RUNS.names, "position")))
# The few that are active are found in the queue. Waiting ones with priority 0 lie in an index of their own there.
_ACTIVE: Final[dict[RunState, LiteralString]] = {
    RunState.PENDING: (
        "run_id IN (SELECT run_id FROM pipeline_execution_queue"
        "  WHERE state = 'PENDING' AND deleted_at IS NULL AND priority > 0 UNION ALL SELECT run_id"
        "  FROM pipeline_execution_queue WHERE state = 'PENDING' AND deleted_at IS NULL AND priority = 0)"
    ),
    RunState.RUNNING: (
        "run_id IN (SELECT run_id FROM pipeline_execution_queue WHERE state = 'RUNNING' AND deleted_at IS NULL)"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which runs: of a customer, of a template, of one scheduled pipeline, in a state, created in a span of time."""

    customer_id: str | None = None
    template: str | None = None
    config_id: str | None = None
    state: RunState | None = None
    since: datetime | None = None
    until: datetime | None = None

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether the run is one of them, as this row shows it."""
        return (
            self.customer_id in {None, row["customer_id"]}
            and self.template in {None, row["pipeline_template"]}
            and self.config_id in {None, row["config_id"]}
            and self.state in {None, row["state"]}
            and (self.since is None or row["created_at"] >= self.since)
            and (self.until is None or row["created_at"] < self.until)
        )


def newest(datastore: Datastore, wanted: Wanted, *, limit: int) -> list[dict[str, Any]]:
    """At most `limit` runs, newest first, with all columns and the `position` of the last event of each."""
    conditions: dict[LiteralString, Any] = {
        "customer_id = %s": wanted.customer_id,
        "pipeline_template = %s": wanted.template,
        "config_id = %s": wanted.config_id,
        "state = %s": wanted.state,
        "created_at >= %s": wanted.since,
        "created_at < %s": wanted.until,
    }
    asked = {condition: value for condition, value in conditions.items() if value is not None}
    texts: list[LiteralString] = ["deleted_at IS NULL", *asked]
    if wanted.state in _ACTIVE:
        texts.append(_ACTIVE[wanted.state])
    statement = SQL("SELECT {} FROM scheduled_pipeline_runs WHERE {} ORDER BY created_at DESC, run_id DESC LIMIT %s")
    with datastore.reading() as cursor:
        return cursor.execute(
            statement.format(_COLUMNS, SQL(" AND ").join(map(SQL, texts))), [*asked.values(), limit]
        ).fetchall()


def named(datastore: Datastore, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of these runs."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            SQL("SELECT {} FROM scheduled_pipeline_runs WHERE run_id = ANY(%s)").format(_COLUMNS), (list(run_ids),)
        ).fetchall()
    return {row["run_id"]: row for row in found}


def has_ended(reads: Reads, run_id: str) -> bool:
    """Whether the run is in a state that it will not leave."""
    with reads.reading() as cursor:
        row = cursor.execute(
            "SELECT state FROM scheduled_pipeline_runs WHERE run_id = %s", (run_id,), prepare=True
        ).fetchone()
    return row is not None and RunState(row["state"]).ended


def counts_by_state(datastore: Datastore) -> dict[str, int]:
    """Waiting and running runs, and those that ended on the current UTC day. None of it counts through the history."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            # In two parts: those with priority 0 lie in an index of their own.
            "SELECT (SELECT count(*) FROM pipeline_execution_queue"
            "   WHERE state = 'PENDING' AND deleted_at IS NULL AND priority > 0)"
            "  + (SELECT count(*) FROM pipeline_execution_queue"
            "   WHERE state = 'PENDING' AND deleted_at IS NULL AND priority = 0)"
            '   AS "PENDING",'
            " (SELECT count(*) FROM pipeline_execution_queue WHERE state = 'RUNNING' AND deleted_at IS NULL)"
            '   AS "RUNNING",'
            ' coalesce(sum(pipelines_succeeded_today), 0)::bigint AS "COMPLETED",'
            ' coalesce(sum(pipelines_failed_today), 0)::bigint AS "FAILED"'
            " FROM customer_usage WHERE usage_date = (now() AT TIME ZONE 'UTC')::date",
            prepare=True,
        ).fetchone()
    return dict(row or {})
