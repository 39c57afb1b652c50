"""Workers whose clocks are wrong: leases run by the database's, and nobody has what another one holds."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.application.world import until
from tests.faults.journal import one_at_a_time
from tests.faults.workers import Workers, all_ended, clock, crowd, ended_once, life, nothing_in_hand

WRONG = {
    "fast": {"offset_s": 600},
    "slow": {"offset_s": -600},
    "backwards": {"offset_s": 0, "rate": -100},
}


@pytest.fixture
def workers(world, tmp_path) -> Iterator[Workers]:
    started = Workers(world, tmp_path)
    yield started
    started.end()


def test_nobody_has_what_another_one_holds(world, workers):
    """Workers of all kinds of wrong clocks work off a queue, for longer than a lease; each run is had once."""
    runs = crowd(world, 24, tenths=25)
    for name, wrong in WRONG.items():
        workers.start(name, **wrong)
    until(lambda: all_ended(world), seconds=90)
    nothing_in_hand(world)
    one_at_a_time(workers.journal, workers.died)
    ended_once(world, workers.journal)
    assert {e.worker for e in workers.journal.entries("begin")} == set(WRONG)
    assert {world.run(run_id)["attempt"] for run_id in runs} == {1}
    for run_id in runs:
        # Whatever the workers' clocks showed, the run ended after it began.
        row = world.run(run_id)
        assert row["actual_start_time"] <= row["actual_end_time"]
        assert len(life(world, run_id)) == 3


def test_with_leases_by_their_own_clocks_they_would(world, workers):
    """The control: the fast one believes that all leases have run out."""
    crowd(world, 4, tenths=6000)
    workers.start("slow", **WRONG["slow"], own_clock=True)
    until(lambda: workers.journal.in_hand("slow"), seconds=60)
    one_at_a_time(workers.journal, workers.died)
    workers.start("fast", **WRONG["fast"], own_clock=True)
    until(lambda: any(e.attempt > 1 for e in workers.journal.entries("begin")), seconds=60)
    with pytest.raises(AssertionError):
        one_at_a_time(workers.journal, workers.died)


def test_a_fast_clock_does_not_begin_the_customers_next_day(world):
    """What a worker whose clock is a day ahead reports counts on the day that the database has."""
    world.at = world.scalar("SELECT clock_timestamp()")
    world.onboard()
    world.request()
    orders = world.claim()
    world.wait(days=1)
    world.report(orders)
    today, tomorrow = world.at.date() - timedelta(days=1), world.at.date()
    assert world.row("customer_usage", usage_date=today)["pipelines_succeeded_today"] == 1
    assert world.rows("customer_usage", usage_date=tomorrow) == []
    # The control: asked for at that clock's time, a run does begin the next day.
    world.request()
    assert len(world.rows("customer_usage", usage_date=tomorrow)) == 1


def test_the_clocks_are_as_wrong_as_they_are_said_to_be():
    fast, back = clock(600, 1), clock(0, -1)
    first = back()
    assert timedelta(seconds=590) < fast() - first < timedelta(seconds=610)
    until(lambda: back() < first)
