"""Which pipelines are due, whose they are, and which runs their next ones overlap."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from adapters.postgres.event_log import PipelinedCursor
from application.session import DuePipeline, Lane

_CUSTOMERS: Final = (
    "SELECT customer_id, count(*) AS due FROM (SELECT customer_id FROM customer_pipeline_configs"
    "  WHERE is_active AND deleted_at IS NULL AND next_run_time <= %s AND abs(hashtext(customer_id)::bigint) %% %s = %s"
    "  AND config_id <> ALL(%s) ORDER BY next_run_time, customer_id LIMIT %s) AS first GROUP BY customer_id"
)
# The columns are those of a due pipeline, in their order.
_PIPELINES: Final = (
    "SELECT c.config_id, c.customer_id, c.provider, c.domain, c.pipeline_template, c.schedule_cron, c.timezone,"
    " c.next_run_time, c.date_offset_days, c.catch_up, c.overlap, coalesce(c.jitter_seconds, 0), c.parameters,"
    " CASE WHEN c.overlap = 'skip' THEN (SELECT count(*) FROM pipeline_execution_queue q"
    "  WHERE q.config_id = c.config_id AND q.deleted_at IS NULL AND q.priority IN (30, 40)) ELSE 0 END AS active_runs"
    " FROM customer_pipeline_configs c WHERE c.customer_id = ANY(%s) AND c.is_active AND c.deleted_at IS NULL"
    " AND c.next_run_time <= %s AND c.config_id <> ALL(%s)"
    " ORDER BY c.next_run_time, c.customer_id, c.config_id LIMIT %s"
)
# The priorities of scheduled runs: what was asked for by hand, tried again or filled in overlaps with nothing.
_OVERLAPPED: Final = (
    "SELECT c.config_id, active.run_ids FROM customer_pipeline_configs c CROSS JOIN LATERAL ("
    "  SELECT array_agg(q.run_id) AS run_ids FROM pipeline_execution_queue q"
    "  WHERE q.config_id = c.config_id AND q.deleted_at IS NULL AND q.priority IN (30, 40)) AS active"
    " WHERE c.customer_id = ANY(%s) AND c.is_active AND c.deleted_at IS NULL AND c.next_run_time <= %s"
    " AND c.overlap = 'cancel_running' AND active.run_ids IS NOT NULL"
)


def customers(
    cursor: PipelinedCursor, now: datetime, limit: int, lane: Lane, besides: Collection[str]
) -> Mapping[str, int]:
    """Whose the first `limit` due pipelines in the lane are, and how many of them; without those `besides`."""
    wanted = (now, lane.of, lane.number, list(besides), limit)
    found = cursor.execute(_CUSTOMERS, wanted, prepare=True).fetchall()
    return {row["customer_id"]: row["due"] for row in found}


def pipelines(
    cursor: PipelinedCursor, customer_ids: Sequence[str], now: datetime, limit: int, besides: Collection[str]
) -> Sequence[DuePipeline]:
    """The first `limit` due pipelines of these customers, the longest due first; without those `besides`."""
    return cursor.made(DuePipeline, _PIPELINES, (list(customer_ids), now, list(besides), limit))


def overlapped_runs(cursor: PipelinedCursor, customer_ids: Sequence[str], now: datetime) -> Mapping[str, Sequence[str]]:
    """The scheduled runs that wait or run, by due pipeline of these customers whose overlap is cancel_running."""
    found = cursor.execute(_OVERLAPPED, (list(customer_ids), now), prepare=True).fetchall()
    return {row["config_id"]: row["run_ids"] for row in found}
