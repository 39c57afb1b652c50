"""What a worker does when the database, its own threads or its runs do not do as they should."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from adapters.embedded.child import free_port
from adapters.postgres.event_log import Datastore
from adapters.postgres.store import PostgresStore
from adapters.postgres.waiting import seconds_until_ready
from adapters.process import Unable
from adapters.runs_in_hand import Timing, Worker
from adapters.scheduler import _take_over_all, run_takeover
from adapters.worker import run_worker
from application.platform import Platform
from application.ports import Away, RunReport
from domain.run_events import RunClaimed, RunRequeued
from tests.application.world import until
from tests.faults.journal import Journal
from tests.faults.workers import (
    QUICK,
    Altered,
    Recording,
    all_ended,
    crowd,
    life,
    more,
    nothing_in_hand,
    service,
    working,
)

CAN_PASS = RunReport(succeeded=False, error="BigQuery answered 503.", can_pass=True)
CANNOT = RunReport(succeeded=False, error="Bad SQL.")
SLOW = replace(QUICK, lease_s=60, heartbeat_s=30, lost_after_s=45)
EXPIRE = "UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 millisecond'"


@pytest.fixture
def engine(tmp_path) -> Recording:
    return Recording(Journal(tmp_path / "journal"), "w1")


@pytest.fixture
def parts(world, engine, tmp_path) -> Iterator:
    made = service(world, engine, tmp_path)
    yield made
    made.close()


def nowhere() -> str:
    return f"postgresql://someone@127.0.0.1:{free_port()}/nothing"


class TestClaiming:
    def test_of_which_the_answer_is_lost_costs_no_attempt(self, world, parts):
        [run_id] = crowd(world, 1, tenths=0)
        lossy = replace(parts, platform=Platform(LosesAnswers(parts.datastore), parts.mapper))
        with Worker(lossy, "w1") as worker, pytest.raises(Away):
            worker.claim(1)
        assert worker.holding == 0
        assert world.run(run_id)["state"] == "RUNNING"
        world.execute(EXPIRE)
        assert world.take_over() == [run_id]
        assert [e.spent for e in life(world, run_id) if isinstance(e, RunRequeued)] == [False]
        nothing_in_hand(world)

    def test_that_could_not_be_begun_is_given_back_at_once(self, world, engine, parts):
        [run_id] = crowd(world, 1, tenths=0)
        cut = replace(parts, datastore=Datastore(nowhere(), size=1))
        with Worker(cut, "w1") as worker, pytest.raises(Away):
            worker.claim(1)
        cut.datastore.close()
        assert world.run(run_id)["state"] == "PENDING"
        assert [e.spent for e in life(world, run_id) if isinstance(e, RunRequeued)] == [False]
        assert engine.journal.entries() == []
        nothing_in_hand(world)

    def test_that_fails_does_not_end_the_worker(self, world, engine, parts):
        """The first claim's answer is lost; the next one is executed."""
        first = crowd(world, 1, tenths=0)
        lossy = replace(parts, platform=Platform(LosesAnswers(parts.datastore), parts.mapper))
        with working(lossy, SLOW) as thread:
            until(lambda: world.states() == {"RUNNING": 1})
            more(world, 1, tenths=0)
            until(lambda: world.states() == {"RUNNING": 1, "COMPLETED": 1}, seconds=30)
            assert thread.is_alive()
        assert [e.run_id for e in engine.journal.entries("begin")] != first


class LosesAnswers(PostgresStore):
    """Commits the first claim, and then does not say so."""

    def __init__(self, datastore: Datastore) -> None:
        super().__init__(datastore)
        self._lost = False

    @contextmanager
    def transaction(self) -> Iterator[Altered]:
        with super().transaction() as session:
            taking = Taking(session)
            yield taking
        if taking.taken and not self._lost:
            self._lost = True
            raise Away("The answer was lost.")


class Taking(Altered):
    """Knows whether leases were taken."""

    taken = False

    def take_leases(self, leases, seconds) -> None:
        self.taken = bool(leases)
        self.session.take_leases(leases, seconds)


class TestLeases:
    def held_up(self, world, engine, parts, timing: Timing, seconds: float) -> bool:
        """Whether a run ends within that time while a heartbeat hangs in the database."""
        crowd(world, 1, tenths=100)
        with working(parts, timing), psycopg.connect(world.dsn) as blocker:
            until(lambda: engine.journal.in_hand("w1"))
            blocker.execute("SELECT 1 FROM run_leases FOR UPDATE")
            until(world.waiting_sessions)
            end = time.monotonic() + seconds
            while time.monotonic() < end and not engine.journal.entries("stopped"):
                time.sleep(0.05)
            return bool(engine.journal.entries("stopped"))

    def test_that_cannot_be_renewed_end_their_runs_while_the_heartbeat_hangs(self, world, engine, parts):
        timing = replace(QUICK, heartbeat_s=0.2, lost_after_s=1, lease_s=30)
        assert self.held_up(world, engine, parts, timing, 5)
        [row] = world.rows("scheduled_pipeline_runs")
        assert row["state"] == "RUNNING", "nothing is said of it: by then it may be another's"

    def test_that_have_time_left_do_not(self, world, engine, parts):
        """The control."""
        timing = replace(QUICK, heartbeat_s=0.2, lost_after_s=20, lease_s=30, grace_s=1)
        assert not self.held_up(world, engine, parts, timing, 2)

    def test_of_an_engine_that_breaks_down_are_not_renewed_for_ever(self, world, parts):
        class Exits(Recording):
            def run(self, order, progress):
                raise SystemExit

        crowd(world, 1, tenths=0)
        with Worker(replace(parts, engine=Exits(Journal(parts.settings.data_dir / "j"), "w1")), "w1") as worker:
            [order] = worker.claim(1)
            with pytest.raises(SystemExit):
                worker.execute(order)
            assert worker.holding == 0


class HeartbeatsFail(Datastore):
    """Breaks down whenever the heartbeat asks something of it while a run is executed."""

    executing: Callable[[], object]

    @contextmanager
    def reading(self) -> Iterator:
        if threading.current_thread().name == "heartbeat" and self.executing():
            raise RuntimeError
        with super().reading() as cursor:
            yield cursor


def test_a_worker_that_lost_a_part_ends_and_hands_back_what_it_has(world, engine, parts):
    [run_id] = crowd(world, 1, tenths=6000)
    datastore = HeartbeatsFail(world.dsn, size=4)
    datastore.executing = engine.journal.entries
    broken = replace(parts, datastore=datastore)
    with pytest.raises(Unable, match="The heartbeat failed: RuntimeError"):
        run_worker(broken, threading.Event(), timing=QUICK)
    broken.datastore.close()
    assert [e.what for e in engine.journal.entries()] == ["begin", "stopped"]
    assert [e.spent for e in life(world, run_id) if isinstance(e, RunRequeued)] == [False]
    nothing_in_hand(world)


class TestTakingOver:
    def test_goes_on_while_there_are_more(self, world, parts):
        crowd(world, 120, tenths=0)
        world.limits("crowd", max_concurrent_pipelines=200)
        assert len(world.claim(limit=200)) == 120
        world.execute(EXPIRE)
        assert _take_over_all(parts, threading.Event()) == 120
        nothing_in_hand(world)

    @pytest.mark.parametrize("lease_s", [1.5, 0])
    def test_begins_when_a_lease_has_passed(self, world, parts, lease_s):
        """And at once when a lease is no time: the control."""
        crowd(world, 1, tenths=0)
        world.claim()
        world.execute(EXPIRE)
        stop, began = threading.Event(), time.monotonic()
        thread = threading.Thread(target=run_takeover, args=(parts, stop), kwargs={"every_s": 0.05, "lease_s": lease_s})
        thread.start()
        until(lambda: world.states() == {"PENDING": 1})
        took = time.monotonic() - began
        stop.set()
        thread.join(10)
        assert (took >= 1.5) is (lease_s > 0)


class TestWaiting:
    def waits(self, world, seconds: float) -> str:
        [run_id] = crowd(world, 1, tenths=0)
        world.report(world.claim("w0"), "w0", report=CAN_PASS, retry_after=timedelta(seconds=seconds))
        return run_id

    def test_until_a_run_is_ready_is_no_poll(self, world, engine, parts):
        """POLL_INTERVAL_SECONDS is 60 here."""
        run_id = self.waits(world, 1.5)
        ready_at = world.row("pipeline_execution_queue", run_id=run_id)["not_before"].timestamp()
        with working(parts, SLOW):
            until(lambda: engine.journal.entries("begin"), seconds=30)
        [begun] = engine.journal.entries("begin")
        assert 0 <= begun.wall - ready_at < 1, begun.wall - ready_at

    def test_for_what_nobody_says_is_a_poll(self, world, engine, parts):
        """The control: the row is changed by hand, past the worker that sleeps for the other time."""
        run_id = self.waits(world, 3600)
        with working(replace(parts, settings=parts.settings.model_copy(update={"poll_interval_seconds": 4})), SLOW):
            until(world.listeners)
            time.sleep(0.5)
            early = "clock_timestamp() + interval '0.5 s'"
            world.execute(f"UPDATE pipeline_execution_queue SET not_before = {early} WHERE run_id = %s", run_id)
            assert seconds_until_ready(world.datastore, since_s=0) is not None
            time.sleep(1.5)
            assert engine.journal.entries("begin") == []

    def test_counts_from_when_was_looked(self, world):
        self.waits(world, 0)
        assert seconds_until_ready(world.datastore, since_s=60) < 0
        assert seconds_until_ready(world.datastore, since_s=0) is None
        later = more(world, 1, tenths=0)
        assert seconds_until_ready(world.datastore, since_s=0) is None
        world.report(world.claim("w0", run_id=later[0]), "w0", report=CAN_PASS, retry_after=timedelta(seconds=100))
        assert 90 < seconds_until_ready(world.datastore, since_s=0) <= 100

    def test_costs_one_step_of_an_index_however_many_wait(self, world):
        world.execute(
            "INSERT INTO pipeline_execution_queue (run_id, customer_id, priority, scheduled_time, state, not_before,"
            " position) SELECT n, 'x', 30, now(), 'PENDING', now() + make_interval(secs => n - 10000), 0"
            " FROM generate_series(1, 20000) n"
        )
        world.execute("ANALYZE pipeline_execution_queue")
        assert 0 < seconds_until_ready(world.datastore, since_s=0) < 5
        with world.datastore.reading() as cursor:
            from adapters.postgres.waiting import _NEXT  # noqa: PLC0415

            plan = "\n".join(row["QUERY PLAN"] for row in cursor.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {_NEXT}", (0,)))
        assert "Index Cond" in plan, plan
        assert "Rows Removed" not in plan, plan


class TestEnds:
    def test_an_error_that_can_pass_waits_and_another_one_does_not(self, world, engine, parts):
        engine.answers = [CAN_PASS, CANNOT]
        passing, failing = crowd(world, 1, tenths=0), more(world, 1, tenths=0)
        with Worker(parts, "w1") as worker:
            for run_id in (*passing, *failing):
                [order] = worker.claim(1, run_id)
                worker.execute(order)
        assert (world.run(failing[0])["state"], world.run(failing[0])["attempt"]) == ("FAILED", 1)
        assert world.run(passing[0])["state"] == "PENDING"
        row = world.row("pipeline_execution_queue", run_id=passing[0])
        assert timedelta(0) < row["not_before"] - world.run(passing[0])["actual_start_time"] < timedelta(seconds=31)

    def test_the_last_attempt_is_the_one_after_which_a_run_has_failed(self, world):
        """However often it was handed back, or its claim never began: neither counts."""
        [run_id] = crowd(world, 1, tenths=0)
        said = []
        while world.run(run_id)["state"] == "PENDING":
            for _ in range(2):
                world.report(world.claim(), handed_back="The worker shut down.")
                world.claim(begin=False)
                world.execute(EXPIRE)
                world.take_over()
            [order] = world.claim()
            said.append((order.attempt, order.last_attempt))
            world.report([order], report=CAN_PASS, retry_after=timedelta(0))
        assert said == [(5, False), (10, False), (15, True)]
        assert world.run(run_id)["state"] == "FAILED"

    def test_a_cancelled_run_within_a_second(self, world, engine, parts):
        assert self.cancelled_after(world, engine, parts, SLOW) < 1

    def test_a_cancelled_run_at_the_next_heartbeat_when_nobody_listens(self, world, engine, parts):
        """And not within a second, when that is later: the control."""
        took = self.cancelled_after(world, engine, replace(parts, dsn=nowhere()), replace(SLOW, heartbeat_s=2.5))
        assert 1 < took < 5

    def cancelled_after(self, world, engine, parts, timing: Timing) -> float:
        [run_id] = crowd(world, 1, tenths=6000)
        with working(parts, timing):
            until(lambda: engine.journal.in_hand("w1"))
            # Right after a heartbeat, so that the next one is a whole interval away.
            if timing.heartbeat_s < 10:
                before = world.scalar("SELECT expires_at FROM run_leases")
                until(lambda: world.scalar("SELECT expires_at FROM run_leases") != before)
            else:
                until(world.listeners)
            asked = time.monotonic()
            world.cancel(run_id, "crowd")
            until(lambda: engine.journal.entries("stopped"))
            took = engine.journal.entries("stopped")[0].at - asked
            until(lambda: all_ended(world))
        assert world.run(run_id)["state"] == "CANCELLED"
        assert len([e for e in life(world, run_id) if isinstance(e, RunClaimed)]) == 1
        nothing_in_hand(world)
        return took
