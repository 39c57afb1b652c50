"""Which waiting runs a worker gets next: fair across customers first, by priority and age inside one customer.

Picking looks at rows and promises nothing: it must only be quick, and leave no customer out. What it costs follows
from how many runs are asked for, not from how many wait, which customers there are, or what came before.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

from psycopg import Cursor
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composable, Composed

_FEWEST_CUSTOMERS: Final = 16
_MOST_CUSTOMERS: Final = 64
_SPARE: Final = 32
"""Runs picked beyond those asked for, since other workers pick at the same time."""

_WAITING: Final = SQL("q.state = 'PENDING' AND q.deleted_at IS NULL")
_READY: Final = SQL("(q.not_before IS NULL OR q.not_before <= clock_timestamp())")
# One index step per customer, however many runs of one wait.
_NEXT_CUSTOMER: Final = SQL(
    "SELECT hashtext(q.customer_id) AS place, q.customer_id FROM pipeline_execution_queue q"
    " WHERE {waiting} AND {bounds} ORDER BY hashtext(q.customer_id), q.customer_id LIMIT 1"
)
_AFTER: Final = SQL("(hashtext(q.customer_id), q.customer_id) > (w.place, w.customer_id)")


def _next_customer(bounds: Composable) -> Composed:
    return _NEXT_CUSTOMER.format(waiting=_WAITING, bounds=bounds)


# A round over the customers who wait, begun at a random place, ends as soon as enough were met who may start a run.
# Their runs are taken in the order of the share of its places that each customer would then use.
_PICK: Final = SQL(
    "WITH RECURSIVE onwards AS (({onwards}) UNION ALL"
    "  SELECT n.* FROM onwards w CROSS JOIN LATERAL ({onwards_next}) n),"
    " around AS (({around}) UNION ALL"
    "  SELECT n.* FROM around w CROSS JOIN LATERAL ({around_next}) n),"
    " invited AS MATERIALIZED ("
    "  SELECT c.place, c.customer_id, r.runs, greatest(s.max_concurrent_pipelines, 1) AS places,"
    "   CASE WHEN s.status = 'ACTIVE' THEN s.max_concurrent_pipelines - r.runs ELSE %(limit)s END AS free"
    "  FROM (SELECT * FROM onwards UNION ALL SELECT * FROM around) c"
    "  CROSS JOIN LATERAL (SELECT count(*) AS runs FROM pipeline_execution_queue q WHERE q.customer_id = c.customer_id"
    "   AND q.state = 'RUNNING' AND q.deleted_at IS NULL AND q.priority > 0) r"
    "  CROSS JOIN LATERAL (SELECT s.status, s.max_concurrent_pipelines FROM customer_subscriptions s"
    "   WHERE s.customer_id = c.customer_id OFFSET 0) s"
    "  WHERE (s.status <> 'ACTIVE' OR r.runs < s.max_concurrent_pipelines)"
    "   AND (SELECT true FROM pipeline_execution_queue q WHERE hashtext(q.customer_id) = c.place"
    "    AND q.customer_id = c.customer_id AND {waiting} AND {ready} AND q.priority > 0 LIMIT 1)"
    "  LIMIT %(customers)s)"
    " SELECT run_id FROM ("
    "  (SELECT q.run_id, -1::float8 AS share, q.priority, q.scheduled_time FROM pipeline_execution_queue q"
    "   WHERE {waiting} AND {ready} AND q.priority = 0 ORDER BY q.scheduled_time, q.run_id LIMIT %(most)s)"
    "  UNION ALL"
    "  SELECT t.run_id, (i.runs + t.nth - 1)::float8 / i.places, t.priority, t.scheduled_time FROM invited i"
    "  CROSS JOIN LATERAL (SELECT x.*, row_number() OVER () AS nth FROM ("
    "    SELECT q.run_id, q.priority, q.scheduled_time FROM pipeline_execution_queue q"
    "    WHERE hashtext(q.customer_id) = i.place AND q.customer_id = i.customer_id AND {waiting} AND {ready}"
    "     AND q.priority > 0 ORDER BY q.priority, q.scheduled_time, q.run_id LIMIT least(i.free, %(limit)s)) x) t"
    " ) AS picked ORDER BY share, priority, scheduled_time, run_id LIMIT %(most)s"
).format(
    onwards=_next_customer(SQL("hashtext(q.customer_id) >= %(pivot)s")),
    onwards_next=_next_customer(_AFTER),
    around=_next_customer(SQL("hashtext(q.customer_id) < %(pivot)s")),
    around_next=_next_customer(SQL("{} AND hashtext(q.customer_id) < %(pivot)s").format(_AFTER)),
    waiting=_WAITING,
    ready=_READY,
)
_LOCK: Final = SQL(
    "SELECT q.run_id, q.customer_id FROM pipeline_execution_queue q"
    " WHERE q.run_id = ANY(%(picked)s) AND {waiting} AND {ready}"
    " ORDER BY array_position(%(picked)s, q.run_id) LIMIT %(limit)s FOR UPDATE OF q SKIP LOCKED"
).format(waiting=_WAITING, ready=_READY)
# As bytes: the driver would put the pieces together anew at every execution.
_PICK_STATEMENT: Final = _PICK.as_bytes(None)
_LOCK_STATEMENT: Final = _LOCK.as_bytes(None)


def lock_next(cursor: Cursor[DictRow], limit: int) -> Sequence[tuple[str, str]]:
    """Lock at most `limit` waiting runs, the next ones first; what other transactions hold is passed over."""
    wanted: dict[str, Any] = {
        "limit": limit,
        "most": limit + _SPARE,
        "customers": min(max(limit, _FEWEST_CUSTOMERS), _MOST_CUSTOMERS),
        "pivot": random.randint(-(2**31), 2**31 - 1),  # noqa: S311 - where the round begins is no secret
    }
    picked = [row["run_id"] for row in cursor.execute(_PICK_STATEMENT, wanted, prepare=True)]
    return _locked(cursor, picked, limit)


def lock_named(cursor: Cursor[DictRow], run_id: str) -> Sequence[tuple[str, str]]:
    """Lock this run, if it waits and nobody else has it."""
    return _locked(cursor, [run_id], 1)


def _locked(cursor: Cursor[DictRow], picked: list[str], limit: int) -> Sequence[tuple[str, str]]:
    if not picked:
        return []
    found = cursor.execute(_LOCK_STATEMENT, {"picked": picked, "limit": limit}, prepare=True).fetchall()
    return [(row["run_id"], row["customer_id"]) for row in found]
