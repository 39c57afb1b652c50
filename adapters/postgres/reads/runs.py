"""Runs, the queue and its workers, as far as rows tell."""


from adapters.postgres.event_log import Datastore
from domain.pipeline_run import RunState


def has_ended(datastore: Datastore, run_id: str) -> bool:
    """Whether the run is in a state that it will not leave."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT state FROM scheduled_pipeline_runs WHERE run_id = %s", (run_id,), prepare=True
        ).fetchone()
    return row is not None and RunState(row["state"]).ended


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
