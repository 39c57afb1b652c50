"""A run's life: what may follow what, who may say so, and how often it is tried."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from domain.pipeline_run import MAX_ATTEMPTS, PipelineRun, Priority, RunState, evolve
from domain.refusals import Conflict
from domain.run_events import (
    CancelRequested,
    RunCancelled,
    RunClaimed,
    RunCompleted,
    RunFailed,
    RunRequeued,
    RunScheduled,
    RunSkipped,
    StepFinished,
    Trigger,
)
from tests.domain.story import Story

NOON = datetime(2025, 11, 17, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)
SECOND = timedelta(seconds=1)
ORDER = RunScheduled(
    customer_id="acme_corp",
    provider="GCP",
    domain="COST",
    template="cost_billing",
    pipeline_id="gcp-cost-cost_billing",
    trigger_type=Trigger.SCHEDULED,
    trigger_by="scheduler",
    run_date=date(2025, 11, 16),
    scheduled_for=NOON,
    priority=Priority.SCHEDULED,
    config_id="config-1",
    counted_on=NOON.date(),
)


def pending() -> Story:
    return Story(evolve).given(ORDER)


def running(worker: str = "w1", at: datetime = NOON) -> Story:
    return pending().when(lambda run: run.claim(worker, at, LEASE))


def step(attempt: int, index: int = 0) -> StepFinished:
    return StepFinished(
        attempt=attempt,
        index=index,
        name="extract",
        type="bigquery_query",
        status="COMPLETED",
        started_at=NOON,
        ended_at=NOON,
    )


class TestClaim:
    def test_takes_the_run_for_a_lease(self):
        running().then(RunClaimed(worker_id="w1", attempt=1, started_at=NOON, lease_expires_at=NOON + LEASE))

    def test_a_second_claimant_is_refused(self):
        with pytest.raises(Conflict, match="RUNNING already"):
            running().state.claim("w2", NOON, LEASE)

    def test_not_before_its_time(self):
        story = running().when(lambda run: run.fail("w1", 1, NOON, "503", NOON + 5 * SECOND))
        with pytest.raises(Conflict, match="waits for its next attempt"):
            story.state.claim("w1", NOON + 4 * SECOND, LEASE)
        story.when(lambda run: run.claim("w1", NOON + 5 * SECOND, LEASE)).then_kinds(RunClaimed)


def ways_to_speak(worker: str, attempt: int):
    """Everything that a worker can say about its run."""
    return [
        lambda run: run.finish_step(worker, step(attempt)),
        lambda run: run.complete(worker, attempt, NOON, 1),
        lambda run: run.fail(worker, attempt, NOON, "bad SQL", None),
        lambda run: run.fail(worker, attempt, NOON, "503", NOON),
        lambda run: run.hand_back(worker, attempt, NOON, "shutdown"),
        lambda run: run.stop_cancelled(worker, attempt, NOON),
    ]


class TestFencing:
    @pytest.mark.parametrize("say", range(6))
    def test_who_holds_the_run_is_heard(self, say):
        assert ways_to_speak("w1", 1)[say](running().state)

    @pytest.mark.parametrize("say", range(6))
    @pytest.mark.parametrize(("worker", "attempt"), [("w1", 1), ("w1", 3), ("w2", 1), ("w1", 2)])
    def test_after_a_takeover_nobody_but_the_new_holder_is(self, say, worker, attempt):
        story = running().when(lambda run: run.expire(NOON, begun=True)).when(lambda run: run.claim("w2", NOON, LEASE))
        with pytest.raises(Conflict, match="no longer holds the run"):
            ways_to_speak(worker, attempt)[say](story.state)
        assert ways_to_speak("w2", 2)[say](story.state)

    @pytest.mark.parametrize("say", range(6))
    def test_a_run_that_ended_hears_nobody(self, say):
        story = running().when(lambda run: run.complete("w1", 1, NOON, 1))
        with pytest.raises(Conflict):
            ways_to_speak("w1", 1)[say](story.state)

    def test_the_same_worker_that_slept_through_its_lease_is_refused_too(self):
        """The attempt is the token, not the name: the worker itself may have claimed the run again."""
        story = running().when(lambda run: run.expire(NOON, begun=True)).when(lambda run: run.claim("w1", NOON, LEASE))
        with pytest.raises(Conflict):
            story.state.complete("w1", 1, NOON, 1)


class TestSteps:
    def test_the_same_step_twice_is_one(self):
        story = running().when(lambda run: run.finish_step("w1", step(1))).then(step(1))
        story.when(lambda run: run.finish_step("w1", step(1))).then()
        story.when(lambda run: run.finish_step("w1", step(1, index=1))).then_kinds(StepFinished)

    def test_each_attempt_has_its_own(self):
        story = (
            running().when(lambda run: run.finish_step("w1", step(1))).when(lambda run: run.expire(NOON, begun=True))
        )
        story.when(lambda run: run.claim("w2", NOON, LEASE))
        story.when(lambda run: run.finish_step("w2", step(2))).then_kinds(StepFinished)


class TestAttempts:
    def test_an_error_that_can_pass_is_tried_three_times(self):
        story = pending()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            story.when(lambda run: run.claim("w1", NOON, LEASE))
            story.when(lambda run, attempt=attempt: run.fail("w1", attempt, NOON, "503", NOON))
            story.then_kinds(RunRequeued if attempt < MAX_ATTEMPTS else RunFailed)
        assert story.state.state is RunState.FAILED

    def test_one_that_cannot_is_tried_once(self):
        running().when(lambda run: run.fail("w1", 1, NOON, "bad SQL", None)).then_kinds(RunFailed)

    def test_workers_that_die_use_attempts_up(self):
        story = pending()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            story.when(lambda run: run.claim("w1", NOON, LEASE)).when(lambda run: run.expire(NOON, begun=True))
            story.then_kinds(RunRequeued if attempt < MAX_ATTEMPTS else RunFailed)
        assert story.decided[0].error == "Worker w1 stopped answering during attempt 3."

    def test_a_run_that_is_handed_back_loses_none(self):
        """Five deployments during one long run do not fail it."""
        story = pending()
        for attempt in range(1, 6):
            story.when(lambda run: run.claim("w1", NOON, LEASE))
            story.when(lambda run, attempt=attempt: run.hand_back("w1", attempt, NOON, "shutdown"))
            story.then(RunRequeued(attempt=attempt, not_before=NOON, reason="shutdown", spent=False))
        story.when(lambda run: run.claim("w1", NOON, LEASE)).when(lambda run: run.fail("w1", 6, NOON, "503", NOON))
        story.then_kinds(RunRequeued)

    def test_only_a_run_that_never_started_gives_its_unit_back(self):
        story = pending()
        assert not story.state.started
        story.when(lambda run: run.claim("w1", NOON, LEASE)).when(lambda run: run.hand_back("w1", 1, NOON, "shutdown"))
        assert story.state.started


class TestCancelling:
    def test_a_waiting_run_ends_at_once(self):
        story = pending().when(lambda run: run.cancel(NOON, "not needed"))
        story.then(RunCancelled(attempt=0, ended_at=NOON, reason="not needed", config_id="config-1"))

    def test_a_running_one_is_asked_once_and_stops_when_its_worker_sees_it(self):
        story = running().when(lambda run: run.cancel(NOON, "not needed")).then(CancelRequested(reason="not needed"))
        story.when(lambda run: run.cancel(NOON, "again")).then()
        story.when(lambda run: run.stop_cancelled("w1", 1, NOON)).then_kinds(RunCancelled)

    @pytest.mark.parametrize(
        "instead",
        [
            lambda run: run.fail("w1", 1, NOON, "503", NOON),
            lambda run: run.hand_back("w1", 1, NOON, "shutdown"),
            lambda run: run.expire(NOON, begun=True),
        ],
        ids=["a retry", "a shutdown", "a crash"],
    )
    def test_a_cancelled_run_never_goes_back_to_the_queue(self, instead):
        story = running().when(lambda run: run.cancel(NOON, "not needed")).when(instead)
        story.then_kinds(RunCancelled)
        assert story.state.state is RunState.CANCELLED

    def test_who_was_faster_than_the_request_has_ended_as_it_says(self):
        story = running().when(lambda run: run.cancel(NOON, "not needed"))
        story.when(lambda run: run.complete("w1", 1, NOON, 7)).then_kinds(RunCompleted)

    def test_what_has_ended_cannot_be_cancelled(self):
        story = running().when(lambda run: run.complete("w1", 1, NOON, 1))
        with pytest.raises(Conflict, match="COMPLETED already and cannot be cancelled"):
            story.state.cancel(NOON, "too late")


class TestExpiry:
    def test_says_nothing_of_a_run_that_nobody_holds(self):
        pending().when(lambda run: run.expire(NOON, begun=True)).then()
        running().when(lambda run: run.complete("w1", 1, NOON, 1)).when(lambda run: run.expire(NOON, begun=True)).then()

    def test_puts_the_run_back_at_once(self):
        story = running().when(lambda run: run.expire(NOON + LEASE, begun=True))
        assert story.decided[0].not_before == NOON + LEASE
        assert story.state.worker_id is None


def test_a_run_is_skipped_only_while_it_waits():
    pending().when(lambda run: run.skip(NOON, "no quota")).then(
        RunSkipped(ended_at=NOON, reason="no quota", config_id="config-1")
    )
    with pytest.raises(Conflict):
        running().state.skip(NOON, "no quota")


@pytest.mark.parametrize(
    "end",
    [
        lambda run, at: run.complete("w1", 1, at, 1),
        lambda run, at: run.fail("w1", 1, at, "bad SQL", None),
        lambda run, at: run.stop_cancelled("w1", 1, at),
    ],
)
def test_no_run_ends_before_it_began_whatever_the_workers_clock_says(end):
    story = running().when(lambda run: end(run, NOON - timedelta(minutes=10)))
    assert story.decided[0].ended_at == story.decided[0].started_at == NOON


class Workers(RuleBasedStateMachine):
    """Two workers who say anything at any time, about any attempt, and a customer who cancels."""

    held = PipelineRun._held

    @initialize()
    def schedule(self):
        self.story = pending()
        self.seen = [self.story.state]
        self.holder: tuple[str, int] | None = None

    def _tell(self, decision):
        try:
            self.story.when(decision)
        except Conflict:
            return False
        self.seen.append(self.story.state)
        return True

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def claim(self, worker):
        if self._tell(lambda run: run.claim(worker, NOON, LEASE)):
            assert self.holder is None
            self.holder = (worker, self.story.state.attempt)

    @rule(worker=st.sampled_from(["w1", "w2"]), attempt=st.integers(1, 4), say=st.integers(0, 5))
    def speak(self, worker, attempt, say):
        heard = self._tell(ways_to_speak(worker, attempt)[say])
        assert heard == (self.holder == (worker, attempt))
        if heard and say > 0:
            self.holder = None

    @rule()
    def expire(self):
        self._tell(lambda run: run.expire(NOON, begun=True))
        self.holder = None

    @rule()
    def cancel(self):
        if self._tell(lambda run: run.cancel(NOON, "not needed")) and self.story.state.state.ended:
            self.holder = None

    @invariant()
    def the_run_moves_forward_only(self):
        if not hasattr(self, "seen"):
            return
        assert (self.story.state.state is RunState.RUNNING) == (self.holder is not None)
        assert self.story.state.attempts_spent < MAX_ATTEMPTS
        for before, after in pairwise(self.seen):
            assert after.attempt >= before.attempt
            assert not before.state.ended or after.state is before.state
        self.seen = self.seen[-1:]


MACHINE = settings(max_examples=150, stateful_step_count=25, deadline=None, derandomize=True, database=None)


def test_nobody_without_the_token_is_ever_heard():
    run_state_machine_as_test(Workers, settings=MACHINE)


def test_the_machine_notices_a_missing_fence():
    """The control: a run that does not ask for the attempt."""

    class Unfenced(PipelineRun):
        __slots__ = ()

        def _held(self, worker_id: str, attempt: int) -> None:
            if self.state is not RunState.RUNNING or self.worker_id != worker_id:
                raise Conflict("not yours")

    def unfenced(run, event):
        told = evolve(run, event)
        return Unfenced(**{name: getattr(told, name) for name in PipelineRun.__dataclass_fields__})

    class Careless(Workers):
        @initialize()
        def schedule(self):
            super().schedule()
            self.story = Story(unfenced).given(ORDER)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Careless, settings=MACHINE)


def test_a_run_whose_claims_never_began_has_not_started():
    story = running().when(lambda run: run.expire(NOON, begun=False))
    assert not story.state.started
    story.when(lambda run: run.claim("w2", NOON, LEASE))
    assert story.state.started
    story.when(lambda run: run.hand_back("w2", 2, NOON, "The worker shut down."))
    assert story.state.started
