"""Days that seeds decide, in which everything fails that can: nothing may be lost, doubled or exceeded."""

from datetime import UTC, datetime, timedelta

import pytest

from domain.plans import Plan
from tests.simulation import audit
from tests.simulation.crew import Crew, Word
from tests.simulation.days import Days
from tests.simulation.desk import Desk
from tests.simulation.life import Life, UseCases
from tests.simulation.mutants import MUTANTS
from tests.simulation.planner import Planner
from tests.simulation.timetable import Pipeline

FEW = 2
"""Virtual days of a seed in every run of the tests."""
MANY = 8


def lived(stage, seed: int, days: int, use: UseCases | None = None) -> Days:
    """The days of one seed; what is wrong with them comes with the command that shows it again."""
    found = Days(stage.dsn, stage.key_file, stage.clock, seed=seed, days=days, use=use)
    try:
        found.run()
    except AssertionError as error:
        last = "\n".join(found.trace[-25:])
        raise AssertionError(
            f"{error}\n{last}\nall of it: python -m tests.simulation --seed {seed} --days {days}"
        ) from error
    return found


@pytest.mark.parametrize("seed", range(24))
def test_nothing_goes_wrong_in_the_days_of(stage, seed):
    lived(stage, seed, FEW)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("block", range(1000, 4000, 100))
def test_nothing_goes_wrong_in_a_hundred_seeds_from(stage, block):
    for seed in range(block, block + 100):
        lived(stage, seed, MANY)


def test_a_seed_tells_the_same_story_again(stage):
    assert lived(stage, 4711, FEW).trace == lived(stage, 4711, FEW).trace


RARE = "a slot may be two runs"
"""Shows only when a slot comes again: when a pipeline is changed by a slow clock, right after one of its slots."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak if name == RARE else ()) for name in MUTANTS]
)
def test_it_is_noticed_when(stage, name):
    """The controls: a service in which this is so does not get through a few seeds."""
    for seed in range(40):
        try:
            lived(stage, seed, FEW, MUTANTS[name])
        except AssertionError:
            return
    pytest.fail("nobody noticed")


@pytest.mark.parametrize(("use", "noticed"), [(UseCases(), False), (MUTANTS[RARE], True)])
def test_a_slot_that_comes_again_is_the_same_run(stage, use, noticed):
    stage.clock.empty()
    stage.clock.set(datetime(2026, 10, 24, 23, 50, tzinfo=UTC))
    life = Life(stage.dsn, stage.key_file, stage.clock, seed=1, use=use)
    desk, planner, crew = Desk(life), Planner(life), Crew(life)
    desk.onboard("alpha", Plan.STARTER)
    pipeline = Pipeline(life.new_id(), "alpha", "0 2 * * *", "Europe/Berlin")
    planner.configure(pipeline, life.now)
    stage.clock.set(datetime(2026, 10, 25, 1, 0, tzinfo=UTC))  # it has been two o'clock twice by now
    crew.trigger()
    [order] = crew.claim("w1", 1, life.now)
    crew.report("w1", [Word(order.run_id, "alpha", order.attempt, "succeeded")], life.now)
    planner.change(pipeline, life.now - timedelta(hours=1, minutes=5), jitter_seconds=5)
    if noticed:
        with pytest.raises(AssertionError, match="became two runs"):
            crew.trigger()
    else:
        crew.trigger()
        audit.rows_agree(life)
        assert len(life.book.runs) == 1
    life.close()


def test_a_row_that_no_event_made_is_noticed(stage):
    """The control of the replay at the end."""
    days = Days(stage.dsn, stage.key_file, stage.clock, seed=1, days=1)
    days.live()
    days.finish()
    days.life.world.execute("UPDATE scheduled_pipeline_runs SET rows_processed = 7 WHERE state = 'COMPLETED'")
    with pytest.raises(AssertionError, match="a replay makes another scheduled_pipeline_runs"):
        audit.replay_agrees(days.life, list(days.life.log.read(0, 100_000)))
    days.life.close()


@pytest.mark.parametrize("catch_up", ["all", "latest", "none"])
@pytest.mark.parametrize("down", [timedelta(hours=30), timedelta(days=9)])
def test_every_slot_that_a_long_outage_missed_is_a_run_or_recorded(stage, catch_up, down):
    """Also those that are older than the window in which each gets a run of its own."""
    stage.clock.empty()
    stage.clock.set(datetime(2027, 12, 30, 12, tzinfo=UTC))
    life = Life(stage.dsn, stage.key_file, stage.clock, seed=1)
    Desk(life).onboard("alpha", Plan.SCALE)
    for cron in ("0 3 * * 1,4", "30 2 * * *", "*/20 * * * *"):
        pipeline = Pipeline(life.new_id(), "alpha", cron, "Europe/Berlin", catch_up)
        Planner(life).configure(pipeline, life.now)
    stage.clock.set(life.now + down)
    Crew(life).trigger()
    audit.rows_agree(life)
    life.close()
