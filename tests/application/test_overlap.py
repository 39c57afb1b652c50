"""A slot that comes while earlier runs of its pipeline wait or run: queue, skip, or cancel_running."""

import threading
from contextlib import contextmanager
from datetime import date, timedelta

import psycopg
import pytest

from adapters.postgres.store import PostgresStore
from application.backfill import Backfill, backfill
from application.platform import Platform
from application.ports import RunReport
from application.scheduling import OVERLAPPED
from application.session import Session
from tests.application.world import World, race, until


@pytest.fixture
def hourly(acme) -> World:
    """ACME at noon, ahead of the database's clock."""
    acme.limits(max_pipelines_per_day=1000, max_pipelines_per_month=100_000)
    return acme


def slot(world: World, count: int = 1) -> None:
    """The next slots come, one after the other."""
    for _ in range(count):
        world.wait(hours=1)
        world.trigger()


def found(world: World, **where) -> list[tuple[str, str]]:
    """The states of the runs, by their slots."""
    rows = sorted(world.rows("scheduled_pipeline_runs", **where), key=lambda r: r["scheduled_time"])
    return [(row["scheduled_time"].strftime("%H:%M"), row["state"]) for row in rows]


def runs_of(world: World) -> list[str]:
    rows = sorted(world.rows("scheduled_pipeline_runs"), key=lambda r: r["scheduled_time"])
    return [row["run_id"] for row in rows]


def others_of(world: World, config_id: str) -> None:
    """Runs of the same pipeline that nobody scheduled: by hand, tried again, filled in."""
    world.request(domain="cost", template="cost_billing")
    slot(world)
    [scheduled] = world.rows("scheduled_pipeline_runs", trigger_type="scheduled")
    world.cancel(scheduled["run_id"])
    world.retry(scheduled["run_id"])
    yesterday = world.at.date() - timedelta(days=1)
    command = Backfill(**world.stamp(), customer_id="acme", config_id=config_id, first=yesterday, last=yesterday)
    backfill(command, world.platform, world.catalogue)


class TestQueue:
    def test_lets_them_wait(self, hourly):
        hourly.pipeline(cron="0 * * * *")
        slot(hourly, 3)
        assert hourly.states() == {"PENDING": 3}


class TestSkip:
    def test_lets_no_second_run_begin(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="skip")
        slot(hourly, 2)
        assert found(hourly) == [("13:00", "PENDING"), ("14:00", "SKIPPED")]
        orders = hourly.claim()
        slot(hourly)
        assert hourly.states() == {"RUNNING": 1, "SKIPPED": 2}
        hourly.report(orders)
        slot(hourly)
        assert hourly.states() == {"COMPLETED": 1, "SKIPPED": 2, "PENDING": 1}

    def test_a_run_that_waits_for_its_next_attempt_counts(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="skip")
        slot(hourly)
        report = RunReport(succeeded=False, error="503")
        hourly.report(hourly.claim(), report=report, retry_after=timedelta(hours=5))
        slot(hourly)
        assert found(hourly) == [("13:00", "PENDING"), ("14:00", "SKIPPED")]

    def test_holds_among_slots_that_are_caught_up(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="skip", catch_up="all")
        hourly.wait(hours=3)
        hourly.trigger()
        assert [state for _, state in found(hourly)] == ["PENDING", "SKIPPED", "SKIPPED"]

    def test_counts_scheduled_runs_alone(self, hourly):
        config_id = hourly.pipeline(cron="0 * * * *", overlap="skip")
        others_of(hourly, config_id)
        slot(hourly)
        assert [state for _, state in found(hourly, trigger_type="scheduled")] == ["CANCELLED", "PENDING"]

    def test_manual_runs_are_not_held_up(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="skip")
        slot(hourly)
        assert hourly.run(hourly.request(domain="cost", template="cost_billing"))["state"] == "PENDING"


class TestCancelRunning:
    def test_a_waiting_run_ends_and_gives_its_unit_back(self, hourly):
        config_id = hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly, 2)
        assert found(hourly) == [("13:00", "CANCELLED"), ("14:00", "PENDING")]
        assert hourly.run(runs_of(hourly)[0])["error_message"] == OVERLAPPED
        assert hourly.usage() == (1, 1, 0)
        row = hourly.row("customer_pipeline_configs", config_id=config_id)
        assert (row["last_run_time"], row["last_run_state"]) == (hourly.at, "PENDING")

    def test_a_running_run_is_asked_to_stop_and_the_new_one_begins_after_it(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        orders = hourly.claim()
        slot(hourly)
        assert found(hourly) == [("13:00", "RUNNING"), ("14:00", "PENDING")]
        assert [held.stop_asked for held in hourly.beat("w1")] == [True]
        [asked] = [event for event in hourly.events() if type(event).__name__ == "CancelRequested"]
        assert asked.reason == OVERLAPPED
        assert hourly.claim("w2") == []
        hourly.report(orders, cancelled=True)
        first, second = runs_of(hourly)
        assert hourly.run(first)["error_message"] == OVERLAPPED
        assert [order.run_id for order in hourly.claim("w2")] == [second]
        assert hourly.usage() == (2, 2, 1)

    def test_of_many_slots_during_one_long_run_the_newest_waits(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        hourly.claim()
        slot(hourly, 4)
        assert hourly.states() == {"RUNNING": 1, "CANCELLED": 3, "PENDING": 1}
        assert hourly.kinds().count("CancelRequested") == 1
        assert hourly.usage() == (2, 2, 1)

    def test_a_run_that_was_begun_before_gives_nothing_back(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        report = RunReport(succeeded=False, error="503")
        hourly.report(hourly.claim(), report=report, retry_after=timedelta(hours=5))
        slot(hourly)
        assert found(hourly) == [("13:00", "CANCELLED"), ("14:00", "PENDING")]
        assert hourly.usage() == (2, 2, 0)

    def test_a_full_day_has_room_for_who_takes_anothers_place(self, hourly):
        hourly.limits(max_pipelines_per_day=1)
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly, 3)
        assert [state for _, state in found(hourly)] == ["CANCELLED", "CANCELLED", "PENDING"]
        assert hourly.usage() == (1, 1, 0)
        assert "RunRefused" not in hourly.kinds()

    def test_nothing_ends_for_a_run_that_is_not_let_in(self, hourly):
        """The waiting run has a unit of yesterday's, which is no room today."""
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        hourly.wait(hours=10, minutes=30)
        slot(hourly)
        hourly.limits(max_pipelines_per_day=1)
        hourly.wait(minutes=30)
        hourly.request()
        slot(hourly)
        assert [state for _, state in found(hourly, trigger_type="scheduled")] == ["PENDING", "SKIPPED"]
        hourly.limits(max_pipelines_per_day=2)
        slot(hourly)
        assert [s for _, s in found(hourly, trigger_type="scheduled")] == ["CANCELLED", "SKIPPED", "PENDING"]
        assert hourly.usage(day=hourly.at.date() - timedelta(days=1))[0] == 0
        assert hourly.usage() == (2, 2, 0)

    def test_a_template_that_is_gone_ends_nothing(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        hourly.catalogue.names.clear()
        slot(hourly)
        assert [state for _, state in found(hourly)] == ["PENDING", "SKIPPED"]

    def test_what_nobody_scheduled_goes_on(self, hourly):
        config_id = hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        others_of(hourly, config_id)
        slot(hourly, 2)
        assert hourly.states(trigger_type="scheduled") == {"CANCELLED": 2, "PENDING": 1}
        for trigger in ("manual", "retry", "backfill"):
            assert hourly.states(trigger_type=trigger) == {"PENDING": 1}

    def test_of_slots_that_are_caught_up_the_newest_is_left(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running", catch_up="all")
        slot(hourly)
        hourly.wait(hours=3)
        done = hourly.trigger()
        assert (done.triggered, done.queued, done.skipped) == (1, 1, 2)
        assert [state for _, state in found(hourly)] == ["CANCELLED", "CANCELLED", "CANCELLED", "PENDING"]
        assert hourly.usage() == (1, 1, 0)

    @pytest.mark.parametrize("batch", [1, 3, 500])
    def test_many_pipelines_of_many_customers(self, hourly, batch):
        hourly.onboard("beta", "SCALE")
        for customer_id in ("acme", "beta"):
            for overlap in ("cancel_running", "queue", "cancel_running"):
                hourly.pipeline(customer_id, "0 * * * *", overlap=overlap)
        for _ in range(3):
            hourly.wait(hours=1)
            assert hourly.trigger(batch=batch).queued == 6
        assert hourly.states() == {"CANCELLED": 8, "PENDING": 10}
        assert hourly.usage("acme") == hourly.usage("beta") == (5, 5, 0)

    def test_twenty_triggers_at_once_end_each_run_once(self, database_url, tmp_path):
        with World(database_url, tmp_path / "key", size=20) as world:
            world.onboard("acme", "SCALE")
            for _ in range(6):
                world.pipeline(cron="0 * * * *", overlap="cancel_running")
            slot(world)
            world.claim(limit=3)
            world.wait(hours=1)
            done = race(20, lambda _: world.trigger(batch=2))
            assert sum(d.queued for d in done) == 6
            assert world.states() == {"RUNNING": 3, "CANCELLED": 3, "PENDING": 6}
            assert world.usage() == (9, 9, 3)
            assert world.kinds().count("CancelRequested") == 3


class Through:
    """A session as it is."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __getattr__(self, name: str):
        return getattr(self.session, name)


class Unsteady(Through):
    """The first look of the first try sees nothing: the run comes just after it."""

    looks: list[int]

    def overlapped_runs(self, customer_ids, now):
        self.looks.append(1)
        return {} if len(self.looks) == 1 else self.session.overlapped_runs(customer_ids, now)


class Late(Through):
    """Locks runs after customers: the wrong way round."""

    def lock_runs(self, run_ids):
        self.later = run_ids

    def due_pipelines(self, customer_ids, now, limit, besides):
        self.session.lock_runs(self.later)
        return self.session.due_pipelines(customer_ids, now, limit, besides)


class Counted(Through):
    """Says what was asked of the database."""

    asked: list[str]

    def __getattr__(self, name: str):
        self.asked.append(name)
        return super().__getattr__(name)


def with_session(world: World, kind: type[Through]) -> Platform:
    class Store(PostgresStore):
        @contextmanager
        def transaction(self):
            with super().transaction() as session:
                yield kind(session)

    return Platform(Store(world.datastore), world.mapper)


class TestLocks:
    def test_a_run_that_comes_between_looking_and_locking_is_met_at_the_next_try(self, hourly):
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        Unsteady.looks = []
        hourly.platform = with_session(hourly, Unsteady)
        slot(hourly)
        assert [state for _, state in found(hourly)] == ["CANCELLED", "PENDING"]
        assert len(Unsteady.looks) == 4  # twice in each of two tries

    @pytest.mark.parametrize(("kind", "free"), [(Through, True), (Late, False)], ids=["right", "wrong"])
    def test_the_customer_is_not_held_while_a_run_is_waited_for(self, hourly, kind, free):
        """Who holds a run may want its customer next, as every claim does. The control takes the customer first."""
        hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        hourly.wait(hours=1)
        hourly.platform = with_session(hourly, kind)
        trigger = threading.Thread(target=hourly.trigger)
        with psycopg.connect(hourly.dsn) as claimer:
            claimer.execute("SELECT 1 FROM pipeline_execution_queue FOR UPDATE")
            trigger.start()
            until(lambda: hourly.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted"))
            try:
                claimer.execute("SELECT 1 FROM customer_subscriptions FOR UPDATE NOWAIT")
                was_free = True
            except psycopg.errors.LockNotAvailable:
                was_free = False
        trigger.join()
        assert was_free is free
        assert [state for _, state in found(hourly)] == ["CANCELLED", "PENDING"]


@pytest.mark.parametrize(("batch", "same"), [(500, True), (1, False)], ids=["in one batch", "one by one"])
def test_what_is_asked_of_the_database_does_not_grow_with_the_runs(hourly, batch, same):
    """The control takes one pipeline at a time."""
    counts = []
    for _ in range(2):
        for _ in range(5):
            hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
        slot(hourly)
        hourly.claim(limit=2)
        platform, hourly.platform = hourly.platform, with_session(hourly, Counted)
        Counted.asked = []
        hourly.wait(hours=1)
        hourly.trigger(batch=batch)
        counts.append(len(Counted.asked))
        hourly.platform = platform
    assert (counts[0] == counts[1]) is same


def test_days_of_the_data_are_those_of_the_slots(hourly):
    hourly.pipeline(cron="0 * * * *", overlap="cancel_running")
    slot(hourly, 2)
    assert {row["run_date"] for row in hourly.rows("scheduled_pipeline_runs")} == {
        date.fromordinal(hourly.at.date().toordinal() - 1)
    }
