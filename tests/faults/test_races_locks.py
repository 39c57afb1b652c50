"""Everything at once to the same few customers: nobody waits for ever, and the books agree afterwards."""

from collections.abc import Iterator

import pytest

from domain import pipeline_run
from domain.identity import subscription_stream
from domain.pipeline_run import RunState
from domain.run_events import Trigger
from domain.subscription_events import SlotTaken
from tests.application.world import World
from tests.faults import crowd
from tests.faults.crowd import CUSTOMERS, Done
from tests.faults.racing import Act, Racers

PROCESSES = 8


@pytest.fixture(scope="module")
def processes(shared_database, tmp_path_factory) -> Iterator[Racers]:
    with Racers(PROCESSES, shared_database, tmp_path_factory.mktemp("keys") / "key") as made:
        yield made


@pytest.fixture
def world(database_url, processes) -> Iterator[World]:
    with World(database_url, processes.key_file) as made:
        for customer_id in CUSTOMERS:
            made.onboard(customer_id, "SCALE")
            made.limits(customer_id, max_pipelines_per_day=100_000, max_pipelines_per_month=100_000)
            for overlap in ("queue", "queue", "queue", "skip"):
                made.pipeline(customer_id, "* * * * *", overlap=overlap)
        yield made


def race(world: World, processes: Racers, act: Act, *arguments: object) -> Done:
    """What all of them did; fails when two waited for each other, or when beginning again was more than rare."""
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = world.scalar(query)
    done = sum(processes.race(act, world.at, *arguments), Done())
    # Connections have told their figures once they are closed, and those of the processes are.
    assert world.scalar(query) == before
    assert done.superseded["DeadlockDetected"] == 0
    # A cancellation or a change may meet a trigger on the same run or pipeline. That must stay rare.
    assert done.superseded.total() <= done.transactions / 50, done
    return done


def books_agree(world: World) -> None:
    """What the subscriptions count is what the runs say, and so do all rows."""
    runs: dict[str, pipeline_run.PipelineRun] = {}
    for n in world.store.recorder.select_notifications(start=0, limit=1_000_000):
        if n.topic.startswith("run."):
            run_id = str(n.originator_id)
            runs[run_id] = pipeline_run.evolve(runs.get(run_id), world.mapper.to_domain_event(n).event)
    running = {run_id for run_id, run in runs.items() if run.state is RunState.RUNNING}
    assert {row["run_id"] for row in world.rows("scheduled_pipeline_runs", state="RUNNING")} == running
    assert {row["run_id"] for row in world.rows("pipeline_execution_queue", state="RUNNING")} == running
    with world.datastore.reading() as cursor:
        held = cursor.execute("SELECT run_id FROM run_leases").fetchall()
    assert {row["run_id"] for row in held} == running
    for customer_id in CUSTOMERS:
        theirs = [run for run in runs.values() if run.customer_id == customer_id]
        going = [run for run in theirs if run.state is RunState.RUNNING]
        counted = sum(1 for run in theirs if counts(run) and run.order.counted_on == world.at.date())
        assert world.usage(customer_id) == (counted, counted, len(going))
        of_schedules = [run.order.config_id for run in going if run.order.trigger_type is Trigger.SCHEDULED]
        assert len(of_schedules) == len(set(of_schedules))
        for recorded in world.platform.history(subscription_stream(customer_id)):
            if isinstance(recorded.event, SlotTaken):
                assert recorded.event.usage.running <= recorded.event.limits.max_concurrent_pipelines


def counts(run: pipeline_run.PipelineRun) -> bool:
    """Whether a run holds a unit of quota: it was given one, and did not end before it began."""
    never_began = run.state in {RunState.CANCELLED, RunState.SKIPPED} and not run.started
    return run.order.counted_on is not None and not never_began


def run_the_crowd(world: World, processes: Racers, seconds: float) -> Done:
    done = race(world, processes, crowd.join, seconds)
    books_agree(world)
    for customer_id in CUSTOMERS:
        world.reactivate(customer_id)
    world.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 s'")
    while world.take_over():
        pass
    books_agree(world)
    assert {world.usage(customer_id)[2] for customer_id in CUSTOMERS} == {0}
    return done


def test_eight_processes_end_with_consistent_books(world, processes):
    done = run_the_crowd(world, processes, 6)
    assert done.deeds.total() > 60, done


@pytest.mark.soak
def test_eight_processes_for_two_minutes(world, processes):
    done = run_the_crowd(world, processes, 120)
    deeds = {deed.__name__ for deed in crowd.Somebody(world, 0).deeds}
    assert deeds <= set(done.deeds), deeds - set(done.deeds)


def test_locks_that_are_taken_crosswise_are_noticed(world, processes):
    """The control."""
    run_id = world.request(CUSTOMERS[0])
    with pytest.raises(AssertionError, match="scalar"):
        race(world, processes, crowd.cross, run_id)


def test_a_place_that_leaks_is_noticed(world):
    """The control: a run ends without its place being given back, as if two transactions had done it."""
    world.request("alpha")
    [order] = world.claim()
    books_agree(world)
    world.execute("UPDATE customer_usage SET concurrent_pipelines_running = 0")
    with pytest.raises(AssertionError):
        books_agree(world)
    world.report([order])
    books_agree(world)
