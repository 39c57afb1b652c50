"""What a connection reads that made its plans when there was next to nothing: no more for all that happens later."""

from collections.abc import Iterator

import pytest

from tests.application.world import World

TABLES = (
    "stored_events",
    "snapshots",
    "customer_subscriptions",
    "customer_usage",
    "customer_pipeline_configs",
    "customer_provider_configs",
    "scheduled_pipeline_runs",
    "pipeline_execution_queue",
    "run_leases",
)
SLACK = 10


@pytest.fixture
def young(database_url, tmp_path) -> Iterator[World]:
    """ACME and one pipeline on a database that knows how small it is, and is not told that it grows."""
    with World(database_url, tmp_path / "key", size=1) as world:
        world.onboard(plan="SCALE")
        world.limits(max_pipelines_per_day=100_000, max_pipelines_per_month=100_000)
        world.pipeline(cron="0 * * * *")
        for table in TABLES:
            world.tamper(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            world.tamper(f"ANALYZE {table}")
        yield world
        for table in TABLES:
            world.tamper(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


def live(world: World, customer_id: str = "acme") -> None:
    """One run that is asked for and one of a slot, from their beginning to their end."""
    world.request(customer_id)
    world.wait(hours=1)
    world.trigger()
    world.report(world.claim())


def read(world: World) -> int:
    """How many rows were read so far, in whatever way, as the world's only connection reports it."""
    world.execute("SELECT pg_stat_force_next_flush()")
    return world.scalar(
        "SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::integer FROM pg_stat_user_tables"
        " WHERE schemaname = 'public' AND relname = ANY(%s)",
        list(TABLES),
    )


def read_by_living(world: World) -> int:
    before = read(world)
    live(world)
    return read(world) - before


@pytest.mark.parametrize("whole_tables", [False, True], ids=["", "control"])
def test_what_is_read_does_not_grow_with_what_happened_since(young, whole_tables):
    """The control lets small tables be read as a whole, which is what the planner thinks best of them."""
    if whole_tables:
        young.execute("SET enable_seqscan = on")
    for _ in range(3):
        live(young)
    first = read_by_living(young)
    for number in range(20):
        young.onboard(f"other_{number}")
        live(young, f"other_{number}")
        live(young)
    grown = read_by_living(young) - first
    assert (grown <= SLACK) is not whole_tables, grown
