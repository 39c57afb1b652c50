"""Which waiting runs a worker gets next: fair across customers first, by priority and age inside one customer.

Picking looks at rows and promises nothing: it must only be quick, and leave nobody out. What it costs follows from how
many runs are asked for and how many are running, not from how many wait, whose they are, or what came before.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any, Final

from psycopg import Cursor
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composable, Composed, Literal

from domain.pipeline_run import Priority

_AGE_EVERY: Final = 4
"""Of so many picks one takes what is oldest, whatever its priority: nothing starves behind a stream of manual runs."""

_CUSTOMERS_AT_FIRST: Final = 16
_MOST_CUSTOMERS: Final = 64
_RUNS_OF_ONE: Final = 4
"""How many runs of one customer a pick takes at most on average, while others wait: those of one customer share the
events, the rows and the locks of its subscription."""

_SPARE: Final = 32
"""Runs picked beyond those asked for, since other workers pick at the same time."""

_WINDOW: Final = SQL("CASE WHEN %(by_age)s THEN 20000 ELSE 200 END")
"""How many runs of a customer's busy pipelines are passed over: those behind them are found by the picks by age."""

_WAITING: Final = SQL("q.state = 'PENDING' AND q.deleted_at IS NULL AND q.priority > 0")
_READY_AT: Final = SQL("coalesce(q.not_before, timestamptz '-infinity')")
# Runs that may not start before some instant lie apart from the others, ten seconds by ten seconds: of a span that has
# passed all are ready, and spans to come are not looked at, however many wait there. The index `queue_waiting` has
# this very expression.
_SPAN: Final = SQL(
    "coalesce(date_bin(interval '10 seconds', q.not_before, timestamptz '2000-01-01 00:00Z'), timestamptz '-infinity')"
)
_AT_ONCE: Final = SQL("timestamptz '-infinity'")
_NOW: Final = SQL("(SELECT clock.now FROM clock)")

# One index step per customer and span, however many runs wait there.
_NEXT: Final = SQL(
    "SELECT {span} AS span, hashtext(q.customer_id) AS place, q.customer_id FROM pipeline_execution_queue q"
    " WHERE {waiting} AND {bounds} ORDER BY {span}, hashtext(q.customer_id), q.customer_id LIMIT 1"
)
_ONWARDS: Final = SQL("(hashtext(q.customer_id), q.customer_id) > (w.place, w.customer_id)")


def _next(bounds: Composable) -> Composed:
    return _NEXT.format(span=_SPAN, waiting=_WAITING, bounds=bounds)


def _round(name: str, first: Composable, following: Composable) -> Composed:
    return SQL("{name} AS (({first}) UNION ALL SELECT n.* FROM {name} w CROSS JOIN LATERAL ({following}) n)").format(
        name=SQL(name), first=_next(first), following=_next(following)
    )


# What a customer may start of what waits in one span. The runs of suspended ones are all wanted, to be skipped.
_STARTABLE: Final = SQL(
    "SELECT array_agg(t.run_id) AS run_ids, array_agg(t.priority) AS priorities, array_agg(t.scheduled_time) AS times,"
    " array_agg(t.pipeline) AS pipelines FROM ("
    "SELECT x.* FROM (VALUES {priorities}) AS p(priority, scheduled, backfill) CROSS JOIN LATERAL ("
    "SELECT y.run_id, y.priority, y.scheduled_time, CASE WHEN p.scheduled THEN y.config_id END AS pipeline FROM ("
    "SELECT q.run_id, q.priority, q.scheduled_time, q.config_id FROM pipeline_execution_queue q"
    " WHERE {span} = c.span AND hashtext(q.customer_id) = c.place AND q.customer_id = c.customer_id AND {waiting}"
    " AND q.priority = p.priority AND {ready_at} <= {now}"
    " ORDER BY {ready_at}, q.scheduled_time, q.run_id LIMIT {window}) y"
    " WHERE NOT s.active OR NOT p.scheduled OR y.config_id <> ALL (r.busy)"
    " LIMIT least(CASE WHEN p.backfill THEN s.half ELSE s.free END, %(limit)s)) x"
    " ORDER BY CASE WHEN %(by_age)s THEN 0 ELSE x.priority END, x.scheduled_time, x.run_id"
    " LIMIT least(s.free, %(limit)s)) t"
).format(
    span=_SPAN,
    waiting=_WAITING,
    ready_at=_READY_AT,
    now=_NOW,
    window=_WINDOW,
    priorities=SQL(", ").join(
        SQL("({}, {}, {})").format(
            Literal(int(p)), Literal(p in {Priority.SCHEDULED, Priority.CATCH_UP}), Literal(p is Priority.BACKFILL)
        )
        for p in Priority
        if p is not Priority.ONBOARDING
    ),
)
# The first customers met on a walk who may start a run, with those runs.
_INVITED: Final = SQL(
    "(SELECT c.customer_id, r.runs, s.places, s.free, t.* FROM ({walk}) c"
    " CROSS JOIN LATERAL (SELECT count(*) AS runs, count(*) FILTER (WHERE q.priority = {backfill}) AS filling,"
    "  coalesce(array_agg(q.config_id) FILTER (WHERE q.priority IN ({scheduled}, {catch_up})), '{{}}') AS busy"
    "  FROM pipeline_execution_queue q WHERE q.customer_id = c.customer_id AND q.state = 'RUNNING'"
    "  AND q.deleted_at IS NULL AND q.priority > 0) r"
    " CROSS JOIN LATERAL (SELECT u.status = 'ACTIVE' AS active, greatest(u.max_concurrent_pipelines, 1) AS places,"
    "  CASE WHEN u.status = 'ACTIVE' THEN u.max_concurrent_pipelines - r.runs ELSE %(limit)s END AS free,"
    "  CASE WHEN u.status = 'ACTIVE' THEN greatest(greatest(u.max_concurrent_pipelines / 2, 1) - r.filling, 0)"
    "   ELSE %(limit)s END AS half"
    "  FROM customer_subscriptions u WHERE u.customer_id = c.customer_id OFFSET 0) s"
    " CROSS JOIN LATERAL ({startable} OFFSET 0) t"
    " WHERE s.free > 0 AND t.run_ids IS NOT NULL LIMIT %(customers)s)"
)


def _invited(walk: str) -> Composed:
    return _INVITED.format(
        walk=SQL(walk),
        startable=_STARTABLE,
        backfill=Literal(int(Priority.BACKFILL)),
        scheduled=Literal(int(Priority.SCHEDULED)),
        catch_up=Literal(int(Priority.CATCH_UP)),
    )


# A round over the customers who wait, begun at a random place, and a walk over the spans that have passed, the oldest
# first and each customer's oldest only, unless it is by age: each ends as soon as enough were met who may start a run.
# Their runs are taken in the order of the share of its places that each customer would then use. Whoever has the same
# share comes in an order that is new every time.
_PICK: Final = SQL(
    "WITH RECURSIVE clock AS MATERIALIZED (SELECT clock_timestamp() AS now), {onwards}, {around},"
    " late AS (SELECT n.*, '{{}}'::text[] AS met FROM ({first_late}) n UNION ALL"
    "  SELECT n.*, CASE WHEN w.customer_id = ANY (w.met) THEN w.met ELSE w.met || w.customer_id END"
    "  FROM late w CROSS JOIN LATERAL ({next_late}) n),"
    " invited AS MATERIALIZED ({from_round} UNION ALL {from_spans}),"
    " runs AS (SELECT i.customer_id, i.runs, i.places, i.free, t.*,"
    "  CASE WHEN %(by_age)s THEN 0 ELSE t.priority END AS first,"
    "  row_number() OVER (PARTITION BY coalesce(t.pipeline, t.run_id)"
    "   ORDER BY CASE WHEN %(by_age)s THEN 0 ELSE t.priority END, t.scheduled_time, t.run_id) AS turn"
    "  FROM invited i CROSS JOIN LATERAL unnest(i.run_ids, i.priorities, i.times, i.pipelines)"
    "   AS t(run_id, priority, scheduled_time, pipeline)),"
    " shares AS (SELECT r.*, row_number() OVER"
    "   (PARTITION BY r.customer_id ORDER BY r.first, r.scheduled_time, r.run_id) AS nth FROM runs r WHERE r.turn = 1)"
    " SELECT run_id FROM ("
    "  (SELECT q.run_id, -1::float8 AS share, 0 AS lot, row_number() OVER () AS nth FROM pipeline_execution_queue q"
    "   WHERE q.state = 'PENDING' AND q.deleted_at IS NULL AND q.priority = 0 AND {ready_at} <= {now}"
    "   ORDER BY q.scheduled_time, q.run_id LIMIT %(most)s)"
    "  UNION ALL"
    "  SELECT s.run_id, (s.runs + s.nth - 1)::float8 / s.places, hashtextextended(s.customer_id, %(lot)s), s.nth"
    "  FROM shares s WHERE s.nth <= s.free"
    " ) AS picked ORDER BY share, lot, nth LIMIT %(most)s"
).format(
    onwards=_round(
        "onwards",
        SQL("{} = {} AND hashtext(q.customer_id) >= %(pivot)s").format(_SPAN, _AT_ONCE),
        SQL("{} = {} AND {}").format(_SPAN, _AT_ONCE, _ONWARDS),
    ),
    around=_round(
        "around",
        SQL("{} = {} AND hashtext(q.customer_id) < %(pivot)s").format(_SPAN, _AT_ONCE),
        SQL("{} = {} AND {} AND hashtext(q.customer_id) < %(pivot)s").format(_SPAN, _AT_ONCE, _ONWARDS),
    ),
    first_late=_next(SQL("{0} > {1} AND {0} <= {2}").format(_SPAN, _AT_ONCE, _NOW)),
    next_late=_next(
        SQL("({0}, hashtext(q.customer_id), q.customer_id) > (w.span, w.place, w.customer_id) AND {0} <= {1}").format(
            _SPAN, _NOW
        )
    ),
    from_round=_invited("SELECT * FROM onwards UNION ALL SELECT * FROM around"),
    from_spans=_invited("SELECT * FROM late WHERE %(by_age)s OR customer_id <> ALL (met)"),
    ready_at=_READY_AT,
    now=_NOW,
)
# Found by an array of ids, and ordered by their places, so that no plan reads more of the queue than these. The places
# lie in an object: looked up in the array, they would cost the square of how many there are.
_LOCK: Final = SQL(
    "WITH picked AS MATERIALIZED (SELECT array_agg(run_id) AS run_ids, jsonb_object_agg(run_id, place) AS places"
    "  FROM unnest(string_to_array(%(picked)s, ',')) WITH ORDINALITY AS p(run_id, place))"
    " SELECT q.run_id, q.customer_id FROM pipeline_execution_queue q"
    " WHERE q.run_id = ANY((SELECT run_ids FROM picked)::text[])"
    " AND q.state = 'PENDING' AND q.deleted_at IS NULL AND coalesce(q.not_before <= clock_timestamp(), true)"
    " ORDER BY (SELECT places FROM picked) -> q.run_id LIMIT %(limit)s FOR UPDATE OF q SKIP LOCKED"
)
# All that waits, if that is not much; in the order of a single customer's. Found in the order of the two indexes.
_FEW: Final = SQL(
    "WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now)"
    " SELECT run_id FROM ("
    "(SELECT q.run_id, q.priority, q.scheduled_time FROM pipeline_execution_queue q"
    "  WHERE q.state = 'PENDING' AND q.deleted_at IS NULL AND q.priority = 0"
    "  ORDER BY q.scheduled_time, q.run_id LIMIT %(most)s)"
    " UNION ALL"
    " (SELECT q.run_id, q.priority, q.scheduled_time FROM pipeline_execution_queue q"
    "  WHERE {waiting} AND {span} <= {now}"
    "  ORDER BY {span}, hashtext(q.customer_id), q.customer_id LIMIT %(most)s)) AS few"
    " ORDER BY CASE WHEN %(by_age)s THEN 0 ELSE priority END, scheduled_time, run_id LIMIT %(most)s"
).format(waiting=_WAITING, span=_SPAN, now=_NOW)
# As bytes: the driver would put the pieces together anew at every execution.
_PICK_STATEMENT: Final = _PICK.as_bytes(None)
_LOCK_STATEMENT: Final = _LOCK.as_bytes(None)
_FEW_STATEMENT: Final = _FEW.as_bytes(None)


class Picker:
    """Picks for one process: every fourth time by age, each time beginning with other customers.

    After a look that found too little it first sees whether all that waits is no more than is wanted: then there is
    nothing to share, and it need not be looked for. What of that cannot be started is left out by the look after it.
    Where customers have many runs waiting, fewer of them are looked at the next time, and more where they have few.
    `chance` says with whom a round begins: a seeded one makes the same picks again.
    """

    def __init__(self, chance: random.Random | None = None, *, age_every: int = _AGE_EVERY) -> None:
        self._age_every = age_every
        self._chance = chance or random.Random()  # noqa: S311 - where a round begins is no secret
        self._picks = itertools.count(1)
        self._glances = itertools.count(1)
        self._may_be_few = True
        self._customers = _CUSTOMERS_AT_FIRST

    def lock_next(self, cursor: Cursor[DictRow], limit: int) -> Sequence[tuple[str, str]]:
        """Lock at most `limit` waiting runs, the next ones first; what other transactions hold is passed over."""
        if self._may_be_few:
            by_age = next(self._glances) % self._age_every == 0
            few = cursor.execute(_FEW_STATEMENT, {"most": limit + 1, "by_age": by_age}, prepare=True).fetchall()
            if len(few) <= limit:
                self._may_be_few = not few
                return _locked(cursor, [row["run_id"] for row in few], limit) if few else []
        most = limit + _SPARE
        wanted: dict[str, Any] = {
            "limit": limit,
            "most": most,
            "customers": self._customers,
            "pivot": self._chance.randint(-(2**31), 2**31 - 1),
            "lot": self._chance.randint(-(2**63), 2**63 - 1),
        }
        # By age is also how what hides behind busy pipelines is found, when nothing else is left to start.
        for by_age in (True,) if next(self._picks) % self._age_every == 0 else (False, True):
            found = cursor.execute(_PICK_STATEMENT, {**wanted, "by_age": by_age}, prepare=True).fetchall()
            self._may_be_few = len(found) < limit
            if found:
                self._look_at(limit, plenty=len(found) == most, scarce=len(found) < limit)
                return _locked(cursor, [row["run_id"] for row in found], limit)
        return []

    def _look_at(self, limit: int, *, plenty: bool, scarce: bool) -> None:
        """How many customers to meet the next time."""
        if plenty:
            self._customers //= 2
        elif scarce:
            self._customers *= 2
        fewest = max(_RUNS_OF_ONE, limit // _RUNS_OF_ONE)
        self._customers = min(max(self._customers, fewest), _MOST_CUSTOMERS)


def any_waits(cursor: Cursor[DictRow]) -> bool:
    """Whether a run waits that is ready; it may not start all the same. Nothing is locked."""
    found = cursor.execute(_FEW_STATEMENT, {"most": 1, "by_age": False}, prepare=True).fetchall()
    return bool(found)


def lock_named(cursor: Cursor[DictRow], run_id: str) -> Sequence[tuple[str, str]]:
    """Lock this run, if it waits and nobody else has it."""
    return _locked(cursor, [run_id], 1)


def _locked(cursor: Cursor[DictRow], picked: list[str], limit: int) -> Sequence[tuple[str, str]]:
    wanted = {"picked": ",".join(picked), "limit": limit}
    found = cursor.execute(_LOCK_STATEMENT, wanted, prepare=True).fetchall()
    return [(row["run_id"], row["customer_id"]) for row in found]
