"""Workers that are killed, paused and told to end in the middle of runs: nothing is lost, and nothing ends twice."""

import random
import signal
import time
from collections.abc import Iterator

import pytest

from domain.run_events import RunClaimed, RunRequeued
from tests.application.world import World, until
from tests.faults.journal import one_at_a_time
from tests.faults.workers import (
    QUICK,
    Workers,
    all_ended,
    crowd,
    ended_once,
    life,
    more,
    nothing_in_hand,
)


@pytest.fixture
def workers(world, tmp_path) -> Iterator[Workers]:
    started = Workers(world, tmp_path)
    yield started
    started.end()


def requeued(world: World, run_id: str) -> list[RunRequeued]:
    return [event for event in life(world, run_id) if isinstance(event, RunRequeued)]


class TestKilled:
    def test_its_runs_are_taken_over_when_their_leases_end_and_all_end_once(self, world, workers):
        runs = crowd(world, 16, tenths=5)
        workers.start("killed")
        workers.start("other")
        until(lambda: len(workers.journal.in_hand("killed")) >= 2, seconds=60)
        workers.kill("killed")
        interrupted = workers.journal.in_hand("killed")
        with pytest.raises(AssertionError):
            nothing_in_hand(world)
        until(lambda: all_ended(world), seconds=60)
        nothing_in_hand(world)
        ended_once(world, workers.journal)
        one_at_a_time(workers.journal, workers.died)
        assert len(interrupted) >= 2
        for run_id in runs:
            spent = [event.spent for event in requeued(world, run_id)]
            # What it had claimed and not begun cost no attempt; what it had ended and not reported did.
            assert spent in ([True], [False], [])
            assert spent == [True] or run_id not in interrupted
        assert world.usage("crowd") == (16, 16, 0)

    def test_a_lease_that_nobody_looks_after_is_noticed(self, world):
        """The control: the run's lease is gone, and so it is nobody's to take over."""
        crowd(world, 1, tenths=0)
        world.claim()
        world.execute("DELETE FROM run_leases")
        world.take_over()
        assert not all_ended(world)
        with pytest.raises(AssertionError):
            nothing_in_hand(world)

    @pytest.mark.soak
    def test_again_and_again(self, world, workers):
        chance = random.Random(7)  # noqa: S311 - no secret
        crowd(world, 50, tenths=3)
        workers.start("steady")
        for number in range(25):
            name = f"killed{number}"
            more(world, 30, tenths=3)
            workers.start(name)
            until(lambda name=name: workers.journal.entries("begin", name) or all_ended(world), seconds=60)
            time.sleep(chance.uniform(0, 0.5))
            workers.kill(name)
        until(lambda: all_ended(world), seconds=300)
        nothing_in_hand(world)
        one_at_a_time(workers.journal, workers.died)
        ended_once(world, workers.journal, workers.died)
        assert world.states()["COMPLETED"] >= 760


class TestPaused:
    def wakes_up_late(self, world: World, workers: Workers, **how: bool) -> None:
        """One worker sleeps past its lease, another takes over, and the first one goes on as if nothing had been."""
        [run_id] = crowd(world, 1, tenths=6000)
        late_gate, other_gate = workers.directory / "late may end", workers.directory / "other may end"
        late = workers.start("late", gate=str(late_gate), **how)
        until(lambda: workers.journal.in_hand("late"), seconds=60)
        late.send_signal(signal.SIGSTOP)
        workers.start("other", gate=str(other_gate))
        until(lambda: workers.journal.in_hand("other"), seconds=60)
        if how.get("deaf"):
            late_gate.touch()
        late.send_signal(signal.SIGCONT)
        until(lambda: not workers.journal.in_hand("late"), seconds=30)
        if how.get("deaf"):
            until(lambda: "no longer ours" in workers.log("late"), seconds=30)
        if not how.get("unfenced"):
            assert world.run(run_id)["state"] == "RUNNING"
            assert world.run(run_id)["worker_id"] == "other"
        other_gate.touch()
        until(lambda: all_ended(world) and not workers.journal.in_hand("other"), seconds=30)

    @pytest.mark.parametrize("deaf", [True, False])
    def test_what_it_says_too_late_is_refused(self, world, workers, deaf):
        self.wakes_up_late(world, workers, deaf=deaf)
        nothing_in_hand(world)
        ended_once(world, workers.journal)
        [row] = world.rows("scheduled_pipeline_runs")
        assert (row["state"], row["attempt"], row["worker_id"]) == ("COMPLETED", 2, "other")
        # One that listens has stopped by itself, and says nothing.
        assert [e.what for e in workers.journal.entries(worker="late")] == ["begin", "end" if deaf else "stopped"]

    def test_without_a_fencing_token_it_would_end_the_others_attempt(self, world, workers):
        """The control: the late worker reports for whoever holds the run."""
        self.wakes_up_late(world, workers, deaf=True, unfenced=True)
        with pytest.raises(AssertionError, match="another attempt's outcome"):
            ended_once(world, workers.journal)


class TestTold:
    def test_to_end_it_finishes_or_hands_back_and_nothing_is_lost(self, world, workers):
        gate = workers.directory / "may end"
        endless = crowd(world, 3, tenths=6000)
        world.wait(seconds=1)
        short = more(world, 60, tenths=5)
        process = workers.start("told", gate=str(gate), concurrency=6)
        until(lambda: workers.journal.in_hand("told") >= set(endless), seconds=60)
        until(lambda: workers.journal.entries("end", "told"), seconds=30)
        process.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        assert process.wait(40) == 0
        assert time.monotonic() - told_at < QUICK.grace_s + 5
        nothing_in_hand(world)
        assert max(e.at for e in workers.journal.entries("begin")) < told_at + 1
        states = world.states()
        assert states["PENDING"] >= 3 + 20
        assert states["COMPLETED"] == len(workers.journal.entries("end"))
        for run_id in endless:
            assert [event.spent for event in requeued(world, run_id)] == [False]
        assert all(requeued(world, run_id) == [] for run_id in short)

        gate.touch()
        workers.start("next", gate=str(gate), concurrency=8)
        until(lambda: all_ended(world), seconds=60)
        nothing_in_hand(world)
        ended_once(world, workers.journal)
        one_at_a_time(workers.journal, workers.died)
        for run_id in endless:
            assert len([event for event in life(world, run_id) if isinstance(event, RunClaimed)]) == 2
