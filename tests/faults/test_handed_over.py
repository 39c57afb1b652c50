"""Workers that are killed, paused, cut off and told to end while runs are handed to them: nothing is lost."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from adapters.attempt import Attempt, Stop
from adapters.postgres.event_log import Datastore
from adapters.postgres.offers import OFFER_LOCK
from adapters.runs_in_hand import Timing, Worker
from application.command import Command
from application.ports import Away
from domain.run_events import RunClaimed, RunRequeued
from tests.application.test_handing_over import idler
from tests.application.world import World, until
from tests.faults import racers
from tests.faults.journal import Journal, one_at_a_time
from tests.faults.workers import (
    QUICK,
    Recording,
    Workers,
    all_ended,
    crowd,
    ended_once,
    life,
    more,
    nothing_in_hand,
    service,
    working,
)

SOON = "UPDATE run_leases SET expires_at = clock_timestamp() + interval '1 second'"


@pytest.fixture
def workers(world, tmp_path) -> Iterator[Workers]:
    world.onboard("crowd", "SCALE")
    world.limits("crowd", max_pipelines_per_day=10_000, max_pipelines_per_month=10_000, max_concurrent_pipelines=50)
    started = Workers(world, tmp_path)
    yield started
    started.end()


def on_the_line(world: World) -> int:
    """How many offers are made by somebody who listens."""
    return world.scalar(
        "SELECT count(*) FROM idle_workers JOIN pg_locks ON locktype = 'advisory' AND classid = %s"
        " AND objid::bigint = hashtext(offer_id::text)::bigint & 4294967295 AND mode = 'ExclusiveLock'"
        " WHERE free > 0",
        OFFER_LOCK,
    )


def requeued(world: World) -> list[bool]:
    """Whether each attempt that went back to the queue counts."""
    return [e.spent for e in world.events() if isinstance(e, RunRequeued)]


def claims(world: World, run_id: str) -> list[str]:
    """Whose the run was, one after the other."""
    return [event.worker_id for event in life(world, run_id) if isinstance(event, RunClaimed)]


def test_what_is_asked_for_is_an_idle_workers_at_once(world, workers):
    workers.start("idle")
    until(lambda: on_the_line(world) == 1, seconds=60)
    runs = more(world, 3, tenths=1)
    assert {world.run(run_id)["worker_id"] for run_id in runs} == {"idle"}
    until(lambda: all_ended(world))
    nothing_in_hand(world)
    ended_once(world, workers.journal)
    assert [claims(world, run_id) for run_id in runs] == [["idle"]] * 3


def test_no_more_than_it_has_threads_for(world, workers):
    gate = workers.directory / "may end"
    workers.start("small", concurrency=2, gate=str(gate))
    until(lambda: on_the_line(world) == 1, seconds=60)
    runs = more(world, 9, tenths=6000)
    assert world.states() == {"RUNNING": 2, "PENDING": 7}
    gate.touch()
    until(lambda: all_ended(world))
    nothing_in_hand(world)
    ended_once(world, workers.journal)
    one_at_a_time(workers.journal, workers.died)
    assert [claims(world, run_id) for run_id in runs] == [["small"]] * 9
    # And it offers itself again.
    until(lambda: on_the_line(world) == 1)
    [run_id] = more(world, 1, tenths=0)
    assert world.run(run_id)["worker_id"] == "small"


class TestKilled:
    def test_it_is_handed_nothing_from_then_on(self, world, workers):
        workers.start("killed", concurrency=8)
        workers.start("other")
        until(lambda: on_the_line(world) == 2, seconds=60)
        workers.kill("killed")
        until(lambda: on_the_line(world) == 1)
        runs = more(world, 4, tenths=1)
        assert [claims(world, run_id) for run_id in runs] == [["other"]] * 4
        until(lambda: all_ended(world))
        nothing_in_hand(world)

    def test_with_what_it_was_handed_that_goes_to_another(self, world, workers):
        """Also what it was handed while the database could not know: its connection lies on somewhere."""
        with held_on(world, workers, "killed"):
            workers.kill("killed")
            runs = more(world, 3, tenths=1)
            assert [claims(world, run_id) for run_id in runs] == [["killed"]] * 3
            world.execute(SOON)
            workers.start("other")
            until(lambda: all_ended(world), seconds=30)
        nothing_in_hand(world)
        ended_once(world, workers.journal)
        for run_id in runs:
            assert claims(world, run_id) == ["killed", "other"]
            assert [e.spent for e in life(world, run_id) if isinstance(e, RunRequeued)] == [False]


@contextmanager
def held_on(world: World, workers: Workers, name: str) -> Iterator[None]:
    """A worker whose sign somebody else shows from now on."""
    workers.start(name)
    until(lambda: on_the_line(world) == 1, seconds=60)
    with psycopg.connect(world.dsn, autocommit=True) as other:
        offer_id = world.scalar("SELECT offer_id FROM idle_workers")
        [backend] = other.execute("SELECT pid FROM pg_locks WHERE classid = %s", (OFFER_LOCK,)).fetchone()
        workers.processes[name].send_signal(signal.SIGSTOP)
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))
        other.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (OFFER_LOCK, str(offer_id)))
        yield


def test_who_stands_still_finds_that_what_it_was_handed_is_anothers(world, workers):
    stopped = workers.start("stopped")
    until(lambda: on_the_line(world) == 1, seconds=60)
    stopped.send_signal(signal.SIGSTOP)
    [run_id] = more(world, 1, tenths=1)
    assert claims(world, run_id) == ["stopped"]
    world.execute(SOON)
    workers.start("other")
    until(lambda: all_ended(world), seconds=30)
    stopped.send_signal(signal.SIGCONT)
    until(lambda: on_the_line(world) == 2, seconds=30)
    more(world, 8, tenths=1)
    until(lambda: all_ended(world), seconds=30)
    nothing_in_hand(world)
    ended_once(world, workers.journal)
    one_at_a_time(workers.journal, workers.died)
    assert claims(world, run_id) == ["stopped", "other"]
    assert run_id not in {e.run_id for e in workers.journal.entries(worker="stopped")}


def test_who_is_told_to_end_finishes_what_it_was_handed_and_gets_no_more(world, workers):
    told = workers.start("told")
    until(lambda: on_the_line(world) == 1, seconds=60)
    runs = more(world, 2, tenths=5)
    told.send_signal(signal.SIGTERM)
    while told.poll() is None:
        runs += more(world, 1, tenths=0)
    assert told.wait(0) == 0
    assert world.scalar("SELECT count(*) FROM idle_workers") == 0
    nothing_in_hand(world)
    ends = [world.run(run_id)["state"] for run_id in runs]
    assert ends[:2] == ["COMPLETED"] * 2
    assert set(ends) == {"COMPLETED", "PENDING"}
    assert ends[-1] == "PENDING"


class TestUntilTheLeaseIsRenewedForGood:
    """The database may forget in a crash that a run was taken up: then it is another's as if it never had been."""

    @pytest.fixture
    def worker(self, world, tmp_path) -> Iterator[Worker]:
        world.onboard("crowd", "SCALE")
        parts = service(world, Recording(Journal(tmp_path / "journal"), "w1"), tmp_path)
        with (
            psycopg.connect(world.dsn, autocommit=True) as line,
            Worker(parts, "w1") as made,
        ):
            line.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (OFFER_LOCK, str(made.offer_id)))
            made.offer(1, 60)
            yield made
            made.hand_back_all()
        parts.close()

    def taken_up(self, world: World, worker: Worker) -> Attempt:
        more(world, 1, tenths=0)
        [order] = worker.take_up(9)
        return worker._held[order.run_id, order.attempt]

    def test_it_is_the_workers_for_less_than_it_was_handed_over_for(self, world, worker):
        attempt = self.taken_up(world, worker)
        assert 5 < attempt.ours_until - time.monotonic() < 7.5
        world.execute("UPDATE run_leases SET begun = false, expires_at = expires_at - interval '50 seconds'")
        assert world.leased(attempt.order.run_id)["seconds"] > attempt.ours_until - time.monotonic()

    def test_the_renewal_comes_soon_and_waits_for_the_disk(self, world, worker):
        attempt = self.taken_up(world, worker)
        assert not worker.must_renew
        until(lambda: worker.must_renew, seconds=2)
        before = flushed(world)
        assert worker.renew()
        assert flushed(world) > before
        assert not worker.must_renew
        assert attempt.ours_until - time.monotonic() > 40
        until(lambda: flushed(world) == written(world))
        assert worker.renew()
        assert flushed(world) < written(world), "the control: later ones do not wait"

    def test_one_that_fails_is_tried_again(self, world, worker):
        attempt = self.taken_up(world, worker)
        until(lambda: worker.must_renew, seconds=2)
        with psycopg.connect(world.dsn) as blocker:
            blocker.execute("SELECT 1 FROM run_leases FOR UPDATE")
            with ThreadPoolExecutor(1) as pool:
                renewed = pool.submit(worker.renew)
                until(world.waiting_sessions)
                cancel(world)
                assert renewed.result() is False
        assert attempt.ours_until - time.monotonic() < 7.5
        until(lambda: worker.must_renew, seconds=2)
        assert worker.renew()

    def test_what_is_held_no_more_is_not_renewed_again_and_again(self, world, worker):
        attempt = self.taken_up(world, worker)
        until(lambda: worker.must_renew, seconds=2)
        world.execute("DELETE FROM run_leases")
        assert worker.renew()
        assert attempt.reason is Stop.LOST
        assert not worker.must_renew

    def test_the_heartbeat_sees_to_it(self, world, tmp_path):
        """And where it cannot, the run ends before it can be another's."""
        world.onboard("crowd", "SCALE")
        engine = Recording(Journal(tmp_path / "journal"), "w1")
        with working(service(world, engine, tmp_path), Timing()):
            until(lambda: on_the_line(world) == 1)
            more(world, 1, tenths=6000)
            until(lambda: engine.journal.in_hand("w1"))
            with psycopg.connect(world.dsn) as blocker:
                blocker.execute("SELECT 1 FROM run_leases FOR UPDATE")
                until(lambda: engine.journal.entries("stopped"), seconds=10)
                [begun], [stopped] = engine.journal.entries("begin"), engine.journal.entries("stopped")
                assert 4 < stopped.at - begun.at < 10
            # The database has not crashed, and has it as begun: nobody waits for the end of that.
            until(lambda: requeued(world) == [False])


def flushed(world: World) -> int:
    return world.scalar("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint")


def written(world: World) -> int:
    return world.scalar("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")


def cancel(world: World) -> None:
    """End the statements that wait for a lock, as the time limit would."""
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


def test_what_was_handed_over_without_a_word_is_found_by_polling(world, tmp_path):
    """The notification was lost with its connection: here it went to another offer of the same name."""
    world.onboard("crowd", "SCALE")
    engine = Recording(Journal(tmp_path / "journal"), "w1")
    with working(service(world, engine, tmp_path, poll_interval_seconds=1), Timing()):
        until(lambda: on_the_line(world) == 1)
        offer_id = world.scalar("SELECT offer_id FROM idle_workers")
        with idler(world, "w1", free=99) as silent:
            [run_id] = more(world, 1, tenths=0)
            assert world.leased(run_id)["handed_to"] == silent.offer_id
            world.execute("UPDATE run_leases SET handed_to = %s", offer_id)
        until(lambda: world.run(run_id)["state"] == "COMPLETED", seconds=5)
    assert claims(world, run_id) == ["w1"]
    assert requeued(world) == []


class TestBusy:
    def test_who_waits_for_a_customers_lock_is_handed_nothing(self, world, workers, tmp_path):
        """Its claim waits for somebody else's transaction, and it would not hear of what it is handed."""
        world.onboard("slow", "SCALE")
        workers.start("w1", QUICK)
        workers.start("w2", QUICK)
        until(lambda: on_the_line(world) == 2, seconds=60)
        with psycopg.connect(world.dsn) as blocker:
            blocker.execute("SELECT 1 FROM customer_subscriptions WHERE customer_id = 'slow' FOR UPDATE")
            asked = request_in_queue(world, "slow")
            until(lambda: on_the_line(world) <= 1 and world.waiting_sessions())
            runs = more(world, 4, tenths=0)
            until(lambda: all(world.run(run_id)["state"] == "COMPLETED" for run_id in runs), seconds=5)
        until(lambda: all_ended(world))
        assert world.run(asked)["state"] == "COMPLETED"
        assert requeued(world) == []

    def test_it_holds_no_more_runs_than_it_has_threads(self, world, tmp_path):
        world.onboard("crowd", "SCALE")
        world.limits("crowd", max_pipelines_per_day=10_000, max_pipelines_per_month=10_000, max_concurrent_pipelines=50)
        world.onboard("other", "SCALE")
        template = {"provider": "gcp", "domain": "example", "pipeline_template": "dryrun"}
        for _ in range(6):
            world.pipeline("other", parameters={"days": 2}, **template)
        engine = Recording(Journal(tmp_path / "journal"), "w1")
        held: list[int] = []
        with working(service(world, engine, tmp_path, worker_concurrency=3), Timing()):
            for _ in range(6):
                until(lambda: all_ended(world) and on_the_line(world) == 1)
                world.wait(days=1)
                with ThreadPoolExecutor(7) as pool:
                    asked = [pool.submit(world.trigger), *(pool.submit(more, world, 1, 2) for _ in range(6))]
                    [each.result() for each in asked]
                while not all_ended(world):
                    held.append(world.scalar("SELECT count(*) FROM run_leases WHERE begun"))
        assert max(held) == 3
        nothing_in_hand(world)

    def test_an_offer_whose_answer_was_lost_is_withdrawn_in_the_end(self, world, tmp_path):
        datastore = LosesAnAnswer(world.dsn, size=4)
        parts = replace(service(world, Recording(Journal(tmp_path / "j"), "w1"), tmp_path), datastore=datastore)
        with working(parts, Timing()):
            until(lambda: on_the_line(world) == 1)
            world.execute("DELETE FROM idle_workers")
            datastore.lose = True
            with psycopg.connect(world.dsn, autocommit=True) as anybody:
                anybody.execute("SELECT pg_notify('convergence_queue', '')")
            until(lambda: not datastore.lose)
        assert world.scalar("SELECT count(*) FROM idle_workers") == 0


def request_in_queue(world: World, customer_id: str) -> str:
    """A run that waits, although somebody is idle: its customer is held by somebody else."""
    run_id = str(uuid4())
    order = replace(racers.order(world, customer_id), parameters={"days": 0})
    world.platform.transact(Command(**world.stamp()), lambda tx: tx.run(UUID(run_id), customer_id).append([order]))
    return run_id


class LosesAnAnswer(Datastore):
    """Does what the next statement says, and then does not say so."""

    lose = False

    @contextmanager
    def reading(self) -> Iterator[Any]:
        with super().reading() as cursor:
            yield cursor
        if self.lose:
            self.lose = False
            raise Away("The answer was lost.")


def test_what_was_taken_up_without_an_answer_goes_back_and_costs_no_attempt(world, tmp_path):
    [run_id] = crowd(world, 1, tenths=0)
    world.cancel(run_id, "crowd")
    engine = Recording(Journal(tmp_path / "journal"), "w1")
    parts = service(world, engine, tmp_path)
    datastore = LosesAnAnswer(world.dsn, size=2)
    with (
        psycopg.connect(world.dsn, autocommit=True) as line,
        Worker(replace(parts, datastore=datastore), "w1", timing=QUICK) as worker,
    ):
        line.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (OFFER_LOCK, str(worker.offer_id)))
        worker.offer(2, 60)
        lost, kept = more(world, 2, tenths=0)
        world.execute("UPDATE run_leases SET handed_to = NULL WHERE run_id = %s", kept)
        datastore.lose = True
        with pytest.raises(Away):
            worker.take_up(9)
        assert worker.holding == 0
        world.execute("UPDATE run_leases SET handed_to = %s WHERE run_id = %s", worker.offer_id, kept)
        assert [order.run_id for order in worker.take_up(9)] == [kept]
        until(lambda: world.run(lost)["state"] == "PENDING")
        worker.withdraw()
        assert worker.take_up(9) == [], "what is in hand is not taken up again"
        [order] = worker.claim(1)
        assert (order.run_id, order.attempt, order.last_attempt) == (lost, 2, False)
        for run in (kept, lost):
            worker.execute(worker._held[run, 1 if run == kept else 2].order)
    datastore.close()
    parts.close()
    assert [e.spent for e in life(world, lost) if isinstance(e, RunRequeued)] == [False]
    nothing_in_hand(world)
    assert {world.run(run)["state"] for run in (kept, lost)} == {"COMPLETED"}
