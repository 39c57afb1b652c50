"""What picking costs: pages touched, which no other load changes, as lines and customers grow; and what it locks."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from adapters.postgres import claims
from adapters.postgres.claims import Picker
from tests.application.lines import InOneLine
from tests.application.world import World

LIMIT = 10
AHEAD = "now() + interval '1 hour'"
PASSED = "now() - random() * interval '1 hour'"


class Explained:
    """A cursor that keeps what the server says of each statement: its plan, and how many pages it touched."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.plans: list[dict[str, Any]] = []

    def execute(self, statement: bytes | str, parameters: Any, **how: Any) -> Any:
        text = statement.decode() if isinstance(statement, bytes) else statement
        [row] = self._cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", parameters).fetchall()
        self.plans.append(row["QUERY PLAN"][0]["Plan"])
        return self._cursor.execute(statement, parameters, **how)

    @property
    def scanned(self) -> set[str]:
        """The tables that were read from one end to the other."""
        found, nodes = set(), list(self.plans)
        while nodes:
            node = nodes.pop()
            nodes.extend(node.get("Plans", []))
            if node["Node Type"] == "Seq Scan":
                found.add(node["Relation Name"])
        return found

    @property
    def pages(self) -> int:
        return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in self.plans)


@pytest.fixture
def rows(world) -> Iterator[World]:
    """A world in which only rows matter. What autovacuum might do in between would change the plans."""
    world.execute("ALTER TABLE pipeline_execution_queue SET (autovacuum_enabled = off)")
    yield world
    world.execute("ALTER TABLE pipeline_execution_queue RESET (autovacuum_enabled)")


def queue(world: World, customers: int, each: int, *, not_before: str = "NULL", places: int = 10, **more: Any) -> None:
    """Customers with so many waiting runs each, besides those that have ended."""
    kind = more.get("kind", "c")
    world.execute(
        "INSERT INTO customer_subscriptions (subscription_id, customer_id, status, max_concurrent_pipelines, position)"
        " SELECT %s || c, %s || c, 'ACTIVE', %s, 1 FROM generate_series(1, %s) c",
        *(kind, kind, places, customers),
    )
    world.execute(
        "INSERT INTO pipeline_execution_queue"
        " (run_id, customer_id, config_id, priority, scheduled_time, state, not_before, position)"
        f" SELECT gen_random_uuid()::text, %s || c, c || '.' || n %% %s, %s, now(), 'PENDING', {not_before}, 1"
        " FROM generate_series(1, %s) c, generate_series(1, %s) n",
        *(kind, more.get("pipelines", each), more.get("priority", 30), customers, each),
    )


def ended(world: World, runs: int = 20_000) -> None:
    world.execute(
        "INSERT INTO pipeline_execution_queue"
        " (run_id, customer_id, priority, scheduled_time, state, deleted_at, position)"
        " SELECT gen_random_uuid()::text, 'c' || n %% 100, 30, now(), 'COMPLETED', now(), 1"
        " FROM generate_series(1, %s) n",
        runs,
    )
    for table in ("pipeline_execution_queue", "customer_subscriptions"):
        world.execute(f"VACUUM ANALYZE {table}")


def cost(world: World, picker: Picker, *, found: int = LIMIT) -> int:
    """Pages touched by the dearest of four picks, one of which is by age."""
    dearest = 0
    with psycopg.connect(world.dsn, row_factory=dict_row) as connection:
        for _ in range(4):
            explained = Explained(connection.cursor())
            assert len(picker.lock_next(explained, LIMIT)) == found
            connection.rollback()
            if not isinstance(picker, InOneLine):
                assert "pipeline_execution_queue" not in explained.scanned
            dearest = max(dearest, explained.pages)
    return dearest


def costs(world: World, picker: Callable[[], Picker], sizes: list[tuple[int, int]]) -> list[int]:
    found = []
    for customers, each in sizes:
        world.execute("TRUNCATE pipeline_execution_queue, customer_subscriptions")
        queue(world, customers, each)
        ended(world)
        found.append(cost(world, picker()))
    return found


def test_costs_the_same_with_a_hundred_times_as_many_waiting(rows):
    few, many = costs(rows, Picker, [(100, 10), (100, 1000)])
    assert many < 2 * few, (few, many)


def test_costs_the_same_with_a_thousand_times_as_many_customers(rows):
    few, some, many = costs(rows, Picker, [(20, 5), (1000, 5), (20_000, 5)])
    assert max(some, many) < 2 * few, (few, some, many)


def test_a_few_are_seen_at_a_glance(rows):
    """And nothing at all as well: that is what an idle worker looks at."""
    ended(rows)
    picker = Picker()
    with psycopg.connect(rows.dsn, row_factory=dict_row) as connection:
        nothing = Explained(connection.cursor())
        assert picker.lock_next(nothing, LIMIT) == []
        queue(rows, 3, 2)
        few = Explained(connection.cursor())
        assert len(picker.lock_next(few, LIMIT)) == 6
    assert (len(nothing.plans), len(few.plans)) == (1, 2)
    assert "pipeline_execution_queue" not in nothing.scanned | few.scanned
    assert max(nothing.pages, few.pages) < 100


def test_what_was_picked_is_locked_in_its_order_and_passes_over_what_others_hold(rows):
    """More of it than nine: places are numbers, and ten comes after two."""
    queue(rows, 4, 5)
    picked = [row["run_id"] for row in rows.rows("pipeline_execution_queue")]
    random.Random(1).shuffle(picked)  # noqa: S311 - no secret
    with rows.datastore.transaction_cursor() as other, rows.datastore.transaction_cursor() as cursor:
        assert [run_id for run_id, _ in claims._locked(other, picked, 3)] == picked[:3]
        assert [run_id for run_id, _ in claims._locked(cursor, picked, 12)] == picked[3:15]


class Counting(InOneLine):
    """The control: fair by counting everybody's waiting runs, at every pick."""

    def lock_next(self, cursor: Any, limit: int) -> Any:
        query = (
            "SELECT run_id, customer_id FROM (SELECT *, row_number() OVER (PARTITION BY customer_id"
            " ORDER BY priority, scheduled_time, run_id) AS nth FROM pipeline_execution_queue"
            " WHERE state = 'PENDING' AND deleted_at IS NULL) AS line ORDER BY nth LIMIT %s"
        )
        return cursor.execute(query, (limit,)).fetchall()


def test_would_not_if_everybody_were_counted(rows):
    few, many = costs(rows, Counting, [(100, 10), (100, 1000)])
    assert many > 2 * few


LINES = {
    "one customer's runs that are not ready": {"customers": 1, "each": 10_000, "not_before": AHEAD},
    "ten thousand customers' runs that are not ready": {"customers": 10_000, "each": 1, "not_before": AHEAD},
    "one customer's runs whose instants have passed": {"customers": 1, "each": 10_000, "not_before": PASSED},
    "the same at its limit": {"customers": 1, "each": 10_000, "not_before": PASSED, "places": 0},
    "one customer's back-fill": {"customers": 1, "each": 10_000, "priority": 50},
}


@pytest.mark.parametrize("line", LINES)
def test_is_not_slowed_by(rows, line):
    queue(rows, 20, 5)
    ended(rows)
    alone = cost(rows, Picker())
    queue(rows, kind="other", **LINES[line])
    ended(rows, 0)
    assert cost(rows, Picker()) < 10 * alone
