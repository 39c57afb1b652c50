"""The queue now: what is due, what waits and why, what runs. None of it counts through runs that have ended.

Instants are compared with `now()`, which an index can be asked for; outside a transaction it is the statement's own.
"""

from typing import Any, Final

from adapters.postgres.event_log import Datastore
from domain.pipeline_run import Priority

_NOW: Final = (
    "SELECT now() AS now,"
    " (SELECT min(next_run_time) FROM customer_pipeline_configs"
    "   WHERE is_active AND deleted_at IS NULL AND next_run_time IS NOT NULL) AS next_slot,"
    " (SELECT count(*) FROM customer_pipeline_configs"
    "   WHERE is_active AND deleted_at IS NULL AND next_run_time <= now()) AS due,"
    " (SELECT count(*) FROM pipeline_execution_queue WHERE state = 'RUNNING' AND deleted_at IS NULL) AS running"
)
# Runs with priority 0 lie in an index of their own, so the waiting ones are asked for in two parts.
# A run waits since it was queued or, when it had to wait until some instant, since that one. Which run of a customer
# was queued first follows from the positions of their events in the log, and only that one is looked up.
_WAITING: Final = (
    "WITH started AS MATERIALIZED (SELECT customer_id, config_id, priority FROM pipeline_execution_queue"
    "  WHERE state = 'RUNNING' AND deleted_at IS NULL AND priority > 0),"
    " running AS MATERIALIZED (SELECT customer_id, count(*) AS runs,"
    "   count(*) FILTER (WHERE priority = %(backfill)s) AS backfilling FROM started GROUP BY customer_id),"
    " busy AS MATERIALIZED (SELECT DISTINCT config_id FROM started WHERE priority IN (%(scheduled)s, %(catch_up)s)),"
    " each AS (SELECT q.customer_id, q.run_id, q.priority, q.position, q.not_before,"
    "   coalesce(q.not_before <= now(), true) AS ready, b.config_id IS NOT NULL AS held"
    "  FROM (SELECT * FROM pipeline_execution_queue WHERE state = 'PENDING' AND deleted_at IS NULL AND priority > 0"
    "   UNION ALL"
    "   SELECT * FROM pipeline_execution_queue WHERE state = 'PENDING' AND deleted_at IS NULL AND priority = 0) AS q"
    "  LEFT JOIN busy b ON b.config_id = q.config_id AND q.priority IN (%(scheduled)s, %(catch_up)s)),"
    " counted AS (SELECT customer_id, count(*) AS pending, count(*) FILTER (WHERE ready) AS ready,"
    "   count(*) FILTER (WHERE ready AND priority = 0) AS unlimited,"
    "   count(*) FILTER (WHERE ready AND NOT held AND priority < %(backfill)s) AS free,"
    "   count(*) FILTER (WHERE ready AND priority = %(backfill)s) AS backfill,"
    "   min(not_before) FILTER (WHERE ready) AS timed, min(not_before) FILTER (WHERE NOT ready) AS next_ready,"
    "   min(to_char(position, 'FM0000000000000000000') || run_id) FILTER (WHERE not_before IS NULL) AS first,"
    "   min(not_before) FILTER (WHERE ready AND NOT held AND priority < %(backfill)s) AS timed_free,"
    "   min(to_char(position, 'FM0000000000000000000') || run_id)"
    "    FILTER (WHERE not_before IS NULL AND NOT held AND priority < %(backfill)s) AS first_free"
    "  FROM each GROUP BY customer_id),"
    " judged AS (SELECT c.customer_id, c.pending, c.ready, c.next_ready, coalesce(r.runs, 0) AS running,"
    "   s.max_concurrent_pipelines AS places,"
    "   least(c.timed, f.created_at) AS since, least(c.timed_free, ff.created_at) AS since_free,"
    "   CASE WHEN c.unlimited > 0 THEN 'worker'"
    "    WHEN s.status <> 'ACTIVE' THEN 'suspended'"
    "    WHEN c.ready = 0 THEN 'later'"
    "    WHEN coalesce(r.runs, 0) >= s.max_concurrent_pipelines THEN 'limit'"
    "    WHEN c.free = 0 AND c.backfill = 0 THEN 'pipeline'"
    "    WHEN c.free = 0 AND coalesce(r.backfilling, 0) >= greatest(1, s.max_concurrent_pipelines / 2) THEN 'backfill'"
    "    ELSE 'worker' END AS waits_for"
    "  FROM counted c LEFT JOIN running r USING (customer_id) LEFT JOIN customer_subscriptions s USING (customer_id)"
    "  LEFT JOIN scheduled_pipeline_runs f ON f.run_id = substr(c.first, 20)"
    "  LEFT JOIN scheduled_pipeline_runs ff ON ff.run_id = substr(c.first_free, 20)),"
    " aged AS (SELECT *,"
    "   CASE WHEN since IS NOT NULL THEN greatest(0, extract(epoch FROM now() - since))::float8 END AS wait_seconds,"
    "   CASE WHEN waits_for = 'worker'"
    "    THEN greatest(0, extract(epoch FROM now() - coalesce(since_free, since)))::float8 END AS startable_seconds"
    "  FROM judged)"
    " SELECT customer_id, pending, ready, next_ready, running, places, wait_seconds, waits_for,"
    "  count(*) OVER ()::bigint AS all_customers, sum(pending) OVER ()::bigint AS all_pending,"
    "  sum(ready) OVER ()::bigint AS all_ready, max(wait_seconds) OVER () AS longest_wait_seconds,"
    "  max(startable_seconds) OVER () AS longest_startable_seconds"
    " FROM aged ORDER BY pending DESC, customer_id LIMIT %(limit)s"
)
_LEASES: Final = (
    "SELECT l.run_id, l.customer_id, l.worker_id, l.attempt, l.begun, l.stop_asked, l.expires_at,"
    " l.expires_at < now() AS expired, extract(epoch FROM l.expires_at - now())::float8 AS seconds_left,"
    " r.provider, r.domain, r.pipeline_template,"
    " CASE WHEN r.run_id IS NOT NULL"
    "  THEN greatest(0, extract(epoch FROM now() - r.actual_start_time))::float8 END AS running_seconds"
    " FROM (SELECT * FROM run_leases ORDER BY expires_at, run_id LIMIT %(limit)s) AS l"
    " LEFT JOIN scheduled_pipeline_runs r USING (run_id) ORDER BY l.worker_id, l.run_id"
)
_HELD: Final = (
    "SELECT worker_id, count(*) AS runs, greatest(0, extract(epoch FROM now() - min(expires_at)))::float8 AS overdue_s"
    " FROM run_leases GROUP BY worker_id ORDER BY worker_id"
)
_KINDS: Final = {
    "scheduled": int(Priority.SCHEDULED),
    "catch_up": int(Priority.CATCH_UP),
    "backfill": int(Priority.BACKFILL),
}


def now(datastore: Datastore) -> dict[str, Any]:
    """`now` by the database's clock, the `next_slot` of all pipelines, how many are `due`, how many runs are `running`.

    The next slot is in the past while pipelines are due.
    """
    with datastore.reading() as cursor:
        return cursor.execute(_NOW, prepare=True).fetchone() or {}


def waiting(datastore: Datastore, *, customers: int) -> list[dict[str, Any]]:
    """The customers with the most waiting runs, and with each of them the totals of all, `all_…` and `longest_…`.

    `waits_for` is the first thing that keeps a customer's runs from starting: `suspended`, `later` (all wait until an
    instant), `limit` (all places are taken), `pipeline` (an earlier run of the same one), `backfill` (its half of the
    places is taken), or `worker`. What it costs follows from how many runs wait.
    """
    with datastore.transaction_cursor() as cursor:
        # Everything that waits is looked at here: joined one by one, it would cost what waits times what runs.
        cursor.execute("SET LOCAL enable_hashjoin = on")
        return cursor.execute(_WAITING, {**_KINDS, "limit": customers}, prepare=True).fetchall()


def leases(datastore: Datastore, *, limit: int) -> list[dict[str, Any]]:
    """Running runs with the leases under which their workers hold them; of many, those that end first."""
    with datastore.reading() as cursor:
        return cursor.execute(_LEASES, {"limit": limit}, prepare=True).fetchall()


def held_by_worker(datastore: Datastore) -> dict[str, tuple[int, float]]:
    """How many runs each worker id holds, and for how many seconds the oldest of its leases has been over."""
    with datastore.reading() as cursor:
        return {row["worker_id"]: (row["runs"], row["overdue_s"]) for row in cursor.execute(_HELD, prepare=True)}
