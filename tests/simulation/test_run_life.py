"""Anything that can happen to runs, in any order, on a real database: Hypothesis chooses, and the book must agree."""

from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from application.ports import RunOrder
from domain.plans import Plan
from tests.simulation import audit
from tests.simulation.book import ENDED
from tests.simulation.conftest import Stage
from tests.simulation.crew import Crew, Word
from tests.simulation.desk import Desk
from tests.simulation.life import Life, UseCases
from tests.simulation.mutants import MUTANTS
from tests.simulation.planner import Planner
from tests.simulation.timetable import Pipeline

BEGINNING = datetime(2026, 10, 31, 20, 30, tzinfo=UTC)
"""A few hours before a month ends, and before New York's clocks go back."""

CUSTOMERS = st.sampled_from(("small", "large"))
WORKERS = st.sampled_from(("w1", "w2"))
HOW = st.sampled_from(("succeeded", "failed", "retry", "cancelled", "handed_back", "step"))


class RunLife(RuleBasedStateMachine):
    """Two customers with three schedules; workers that may have heard nothing of what happened since they claimed."""

    stage: ClassVar[Stage]
    use: ClassVar[UseCases] = UseCases()

    def __init__(self) -> None:
        super().__init__()
        self.stage.clock.empty()
        self.stage.clock.set(BEGINNING)
        self.life = Life(self.stage.dsn, self.stage.key_file, self.stage.clock, seed=1, use=self.use)
        self.desk, self.planner, self.crew = Desk(self.life), Planner(self.life), Crew(self.life)
        self.claims: list[tuple[str, Word]] = []
        self.offered: dict[str, str] = {}
        self.desk.onboard("small", Plan.STARTER)
        self.desk.onboard("large", Plan.PROFESSIONAL)
        for customer_id, catch_up, overlap in (
            ("small", "all", "queue"),
            ("large", "latest", "skip"),
            ("large", "none", "cancel_running"),
        ):
            self.planner.configure(
                Pipeline(self.life.new_id(), customer_id, "*/30 * * * *", "America/New_York", catch_up, overlap),
                self.life.now,
            )

    def teardown(self) -> None:
        try:
            placed = list(self.life.log.read(0, 1_000_000))
            audit.log_is_sound(placed)
            audit.replay_agrees(self.life, placed)
        finally:
            self.life.close()

    @rule(calls=st.none() | st.integers(0, 8))
    def fail(self, calls):
        """The next transaction is cut off after so many calls, or its answer is lost."""
        self.life.store.cut_before, self.life.platform.silent = calls, calls is None

    # callers

    @rule(customer_id=CUSTOMERS, count=st.integers(1, 4), behind=st.sampled_from((0, 0, 10, 300)))
    def request(self, customer_id, count, behind):
        for _ in range(count):
            self.desk.request(customer_id, self.life.now - timedelta(minutes=behind))

    @rule(data=st.data(), customer_id=CUSTOMERS, what=st.sampled_from(("request", "cancel", "cancel", "retry")))
    def ask_again(self, data, customer_id, what):
        """About a run that there is."""
        known = [run.run_id for run in self.life.book.of(customer_id, "PENDING", "RUNNING", *ENDED)]
        if known:
            run_id, now = data.draw(st.sampled_from(known[-10:])), self.life.now
            match what:
                case "request":
                    self.desk.request(customer_id, now, run_id)
                case "cancel":
                    self.desk.cancel(customer_id, run_id, now)
                case "retry":
                    self.desk.retry(customer_id, run_id, now)

    @rule(data=st.data(), days=st.integers(1, 5), first=st.sampled_from((3, 20)))
    def fill_in(self, data, days, first):
        pipeline = data.draw(st.sampled_from(list(self.life.timetable.pipelines.values())))
        since = (self.life.now - timedelta(days=first)).date()
        self.planner.fill_in(pipeline, self.life.now, since, min(days, first), f"{pipeline.config_id} {first}")

    # operators

    @rule(
        customer_id=CUSTOMERS,
        what=st.sampled_from(("suspend", "reactivate", "reactivate", "pause", "resume", "recount"))
        | st.sampled_from(Plan),
    )
    def operate(self, customer_id, what):
        now = self.life.now
        match what:
            case Plan():
                self.desk.change_plan(customer_id, what, now)
            case "pause" | "resume":
                getattr(self.planner, what)(customer_id, now)
            case _:
                getattr(self.desk, what)(customer_id, now)

    @rule(customer_id=CUSTOMERS, places=st.sampled_from((None, 1, 2)), per_day=st.sampled_from((None, 3)))
    def override(self, customer_id, places, per_day):
        limits = {"max_concurrent_pipelines": places, "max_pipelines_per_day": per_day}
        self.desk.override(customer_id, self.life.now, **limits)

    # schedulers and workers

    @rule()
    def trigger(self):
        self.crew.trigger()

    @rule(worker=WORKERS, limit=st.integers(1, 5), dies=st.booleans())
    def claim(self, worker, limit, dies):
        """And begin, or die before that."""
        orders = self._claimed(worker, limit)
        if orders and not dies:
            self.crew.renew(worker, [(order.run_id, order.attempt) for order in orders])

    def _claimed(self, worker: str, limit: int) -> list[RunOrder]:
        return self._in_hand(worker, self.crew.claim(worker, limit, self.life.now))

    def _in_hand(self, worker: str, orders: list[RunOrder]) -> list[RunOrder]:
        self.claims += [(worker, Word(o.run_id, o.customer_id, o.attempt, "step")) for o in orders]
        return orders

    @rule(worker=WORKERS, free=st.integers(1, 3), seconds=st.sampled_from((10, 100_000)))
    def offer(self, worker, free, seconds):
        offer_id = self.offered.setdefault(worker, self.life.new_id())
        self.crew.offer(worker, offer_id, free, seconds)

    @precondition(lambda self: self.offered)
    @rule(data=st.data(), what=st.sampled_from(("take up", "take up", "take up", "withdraw", "die")))
    def answer_offers(self, data, what):
        worker = data.draw(st.sampled_from(sorted(self.offered)))
        match what:
            case "take up":
                self._in_hand(worker, self.crew.take_up(worker, self.offered[worker]))
            case "withdraw":
                self.crew.withdraw(self.offered[worker])
            case "die":
                self.crew.die(self.offered.pop(worker))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), how=HOW, after=st.sampled_from((0, 30)))
    def report(self, data, how, after):
        self._reported(data, self.claims[-3:], how, after)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), how=HOW, after=st.sampled_from((0, 30)))
    def report_late(self, data, how, after):
        """What was reported before, perhaps, or is another's by now."""
        self._reported(data, self.claims[-12:], how, after)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), how=HOW, worker=WORKERS)
    def speak_too_late(self, data, how, worker):
        """The leases run out, somebody else claims, and then the first one says how it went."""
        claims = self.claims[-5:]
        self._taken_over(61)
        self._claimed(worker, 5)
        self._reported(data, claims, how, 0)

    def _reported(self, data: st.DataObject, claims: list[tuple[str, Word]], how: str, after: int) -> None:
        worker, word = data.draw(st.sampled_from(claims))
        told = Word(word.run_id, word.customer_id, word.attempt, how, timedelta(seconds=after))
        self.crew.report(worker, [told], self.life.now)

    @precondition(lambda self: self.claims)
    @rule(worker=WORKERS)
    def beat(self, worker):
        mine = [(word.run_id, word.attempt) for name, word in self.claims if name == worker]
        self.crew.renew(worker, list(dict.fromkeys(mine)))

    @rule(seconds=st.sampled_from((0, 59, 61, 61)))
    def take_over(self, seconds):
        self._taken_over(seconds)

    def _taken_over(self, seconds: int) -> None:
        self.life.clock.set(self.life.now + timedelta(seconds=seconds))
        self.crew.take_over()

    @rule(seconds=st.sampled_from((0.5, 20, 60, 3600, 4 * 3600)))
    def wait(self, seconds):
        self.life.clock.set(self.life.now + timedelta(seconds=seconds))

    @invariant()
    def the_database_agrees(self):
        if not (self.life.platform.silent or self.life.store.cut_before is not None):
            audit.rows_agree(self.life)
            audit.states_agree(self.life)


A_FEW = settings(
    max_examples=12,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def machine(stage) -> type[RunLife]:
    RunLife.stage = stage
    return RunLife


def test_runs_units_and_places_are_what_the_book_says(machine):
    run_state_machine_as_test(machine, settings=A_FEW)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_they_are_in_thousands_of_lives(machine):
    many = settings(A_FEW, max_examples=3000, stateful_step_count=60, derandomize=False)
    run_state_machine_as_test(machine, settings=many)


@pytest.mark.parametrize(
    "name",
    [
        "a late worker is believed",
        "a place is given back twice",
        "places are not counted",
        "everybody is let in",
    ],
)
def test_it_is_noticed_when(machine, name):
    """The controls."""

    class Mutant(machine):
        use = MUTANTS[name]

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Mutant, settings=settings(A_FEW, max_examples=60, phases=[Phase.generate]))
