"""Runs, the queue and its workers, as far as rows tell."""

from typing import Any

from adapters.postgres.event_log import Datastore
from domain.pipeline_run import RunState


def has_ended(datastore: Datastore, run_id: str) -> bool:
    """Whether the run is in a state that it will not leave."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT state FROM scheduled_pipeline_runs WHERE run_id = %s", (run_id,), prepare=True
        ).fetchone()
    return row is not None and RunState(row["state"]).ended


def scheduler_status(datastore: Datastore) -> dict[str, Any]:
    """Due pipelines, waiting and running runs, and how long the oldest one waits, by the database's clock."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT clock_timestamp() AS now,"
            " (SELECT count(*) FROM customer_pipeline_configs WHERE is_active AND deleted_at IS NULL"
            "   AND next_run_time <= clock_timestamp()) AS due,"
            " (SELECT min(next_run_time) FROM customer_pipeline_configs WHERE is_active AND deleted_at IS NULL"
            "   AND next_run_time IS NOT NULL) AS next_slot,"
            " count(*) FILTER (WHERE state = 'PENDING') AS pending,"
            " count(*) FILTER (WHERE state = 'RUNNING') AS running,"
            " extract(epoch FROM clock_timestamp() - min(coalesce(not_before, scheduled_time))"
            "   FILTER (WHERE state = 'PENDING'))::float8 AS oldest_pending_age_seconds"
            " FROM pipeline_execution_queue WHERE deleted_at IS NULL",
            prepare=True,
        ).fetchone()
        leases = cursor.execute(
            "SELECT run_id, customer_id, worker_id, attempt, expires_at, expires_at < clock_timestamp() AS expired"
            " FROM run_leases ORDER BY worker_id, run_id LIMIT 1000",
            prepare=True,
        ).fetchall()
    return {**(row or {}), "leases": leases}


def counts_by_state(datastore: Datastore) -> dict[str, int]:
    """Waiting and running runs, and those that ended on the current UTC day. None of it counts through the history."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT (SELECT count(*) FROM pipeline_execution_queue WHERE state = 'PENDING' AND deleted_at IS NULL)"
            '   AS "PENDING",'
            " (SELECT count(*) FROM pipeline_execution_queue WHERE state = 'RUNNING' AND deleted_at IS NULL)"
            '   AS "RUNNING",'
            ' coalesce(sum(pipelines_succeeded_today), 0)::bigint AS "COMPLETED",'
            ' coalesce(sum(pipelines_failed_today), 0)::bigint AS "FAILED"'
            " FROM customer_usage WHERE usage_date = (clock_timestamp() AT TIME ZONE 'UTC')::date",
            prepare=True,
        ).fetchone()
    return dict(row or {})
