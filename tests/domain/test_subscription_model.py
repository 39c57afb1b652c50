"""Anything that can happen to a subscription, beside a book in which every unit and place is written down."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from domain.plans import LIMITS, Overrides, Plan
from domain.refusals import Conflict, QuotaExceeded
from domain.subscription import Start, Subscription
from domain.subscription_events import SlotReleased, SlotTaken
from domain.usage import Usage
from tests.domain.test_subscription import admit, opened

KINDS = (
    {},
    {},
    {"pipeline": "daily"},
    {"pipeline": "hourly"},
    {"backfill": True},
    {"backfill": True},
)
"""What a run is to the book: asked for by hand, of a schedule, or filling in the past."""


class AgainstAModel(RuleBasedStateMachine):
    """Anything that can happen to a subscription, beside a book in which every unit and place is written down."""

    released = staticmethod(Subscription.release_slots)
    taken = staticmethod(Subscription.take_slots)
    startable = staticmethod(Subscription.startable)

    @initialize(plan=st.sampled_from(Plan))
    def open(self, plan):
        self.now = datetime(2024, 2, 27, 22, tzinfo=UTC)
        self.story = opened(plan, self.now)
        self.units: dict[str, date] = {}
        self.kinds: dict[str, Start] = {}
        self.places: set[str] = set()
        self.started: set[str] = set()
        self.ended: list[tuple[date, bool]] = []
        self.serial = 0

    def _on(self, day: date) -> int:
        return sum(1 for unit in self.units.values() if unit == day)

    def _in_month(self, day: date) -> int:
        return sum(1 for unit in self.units.values() if (unit.year, unit.month) == (day.year, day.month))

    def _fits(self, start: Start, held: set[str]) -> bool:
        """Whether this run may start beside those that hold a place."""
        others = [self.kinds[run_id] for run_id in held]
        limit = self.story.state.limits.max_concurrent_pipelines
        if len(others) >= limit:
            return False
        if start.backfill:
            return sum(other.backfill for other in others) < max(1, limit // 2)
        return start.pipeline is None or start.pipeline not in {other.pipeline for other in others}

    def _first_that_fit(self, waiting: Sequence[Start]) -> list[Start]:
        chosen: list[Start] = []
        for start in waiting:
            if self._fits(start, self.places | {each.run_id for each in chosen}):
                chosen.append(start)
        return chosen

    @rule(
        count=st.integers(1, 9),
        starting=st.booleans(),
        behind=st.sampled_from([0, 0, 3, 30]),
        kind=st.sampled_from(KINDS),
    )
    def admit(self, count, starting, behind, kind):
        """Also by callers whose clock is hours behind: never into a day that is over."""
        asked = self.now - timedelta(hours=behind)
        day = max(asked.date(), self.story.state.usage.day)
        wanted = [f"r{self.serial + i}" for i in range(count)]
        self.serial += count
        limits = self.story.state.limits
        daily, monthly = (
            limits.max_pipelines_per_day - self._on(day),
            limits.max_pipelines_per_month - self._in_month(day),
        )
        room = max(0, min(daily, monthly, count))
        if starting and len(self.places) >= limits.max_concurrent_pipelines:
            room = 0
        admission = admit(self.story, wanted, asked, starting=starting)
        assert admission.admitted == tuple(wanted[:room])
        assert (admission.refusal is None) == (room == count)
        assert admission.day == day
        self.units.update(dict.fromkeys(admission.admitted, day))
        self.kinds.update({run_id: Start(run_id, **kind) for run_id in admission.admitted})

    @rule(data=st.data())
    def give_back(self, data):
        waiting = sorted(set(self.units) - self.started)
        if waiting:
            run_id = data.draw(st.sampled_from(waiting))
            day = self.units.pop(run_id)
            self.story.when(lambda s: s.return_admissions([run_id], day, self.now))
            [event] = self.story.decided
            assert (event.day, event.admitted_that_day) == (day, self._on(day))

    @rule(data=st.data(), count=st.integers(1, 8))
    def take(self, data, count):
        """The first that fit, in the order in which they wait, and never one more."""
        waiting = sorted(set(self.units) - self.started)
        some = [self.kinds[run_id] for run_id in data.draw(st.permutations(waiting))[:count]]
        free = max(0, self.story.state.limits.max_concurrent_pipelines - len(self.places))
        assert self.story.state.places() == free
        fitting = self._first_that_fit(some)
        chosen = type(self).startable(self.story.state, some)
        assert chosen == fitting
        if len(fitting) < len(some):
            with pytest.raises(QuotaExceeded if len(some) > free else Conflict):
                type(self).taken(self.story.state, some, self.now)
        self.story.when(lambda s: type(self).taken(s, chosen, self.now))
        self.places.update(start.run_id for start in chosen)
        self.started.update(start.run_id for start in chosen)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def take_again(self, data):
        """A run that holds a place takes no other."""
        held = data.draw(st.sampled_from(sorted(self.places)))
        assert self.story.state.take_slots([self.kinds[held]], self.now) == ()

    @precondition(lambda self: self.started)
    @rule(data=st.data(), outcome=st.sampled_from([True, False, None]))
    def release(self, data, outcome):
        """Also of runs that ended before."""
        some = data.draw(st.lists(st.sampled_from(sorted(self.started)), min_size=1, max_size=4))
        self.story.when(lambda s: type(self).released(s, dict.fromkeys(some, outcome), self.now))
        if outcome is not None:
            self.ended += [(self.now.date(), outcome) for _ in self.places.intersection(some)]
        self.places.difference_update(some)

    @rule(hours=st.sampled_from([1, 5, 24, 24 * 27]))
    def pass_time(self, hours):
        self.now += timedelta(hours=hours)

    @rule(plan=st.sampled_from(Plan))
    def change_plan(self, plan):
        self.story.when(lambda s: s.change_plan(plan, "test", self.now))

    @rule(day=st.none() | st.integers(0, 9), concurrent=st.none() | st.integers(0, 4))
    def override(self, day, concurrent):
        overrides = Overrides(max_pipelines_per_day=day, max_concurrent_pipelines=concurrent)
        self.story.when(lambda s: s.override_limits(overrides, "test", self.now))
        assert self.story.state.limits == overrides.over(LIMITS[self.story.state.plan])

    @invariant()
    def the_books_agree(self):
        if not hasattr(self, "story"):
            return
        state, today = self.story.state, self.now.date()
        assert state.running == self.places
        kinds = [self.kinds[run_id] for run_id in self.places]
        assert state.backfilling == {start.run_id for start in kinds if start.backfill}
        assert state.busy == {start.run_id: start.pipeline for start in kinds if start.pipeline}
        assert len(set(state.busy.values())) == len(state.busy), "two scheduled runs of one pipeline run at a time"
        assert state.usage.at(self.now) == Usage(
            day=today,
            admitted=self._on(today),
            succeeded=self.ended.count((today, True)),
            failed=self.ended.count((today, False)),
            month_admitted=self._in_month(today),
            running=len(self.places),
        )
        assert len(state.refused) == len({limit for limit, _ in state.refused})


MACHINE = settings(max_examples=200, stateful_step_count=30, deadline=None, derandomize=True, database=None)


NO_SHRINKING = settings(MACHINE, phases=[Phase.generate])


def test_every_unit_and_place_is_accounted_for():
    run_state_machine_as_test(AgainstAModel, settings=MACHINE)


def test_the_model_notices_a_place_that_is_freed_twice():
    """The control: a release that trusts its caller instead of its own list."""

    def trusting(state: Subscription, outcomes: dict[str, bool | None], now: datetime):
        usage = state.usage.at(now)
        usage = replace(usage, running=max(0, usage.running - len(outcomes)))
        return (SlotReleased(run_ids=tuple(outcomes), usage=usage, limits=state.limits),)

    class Trusting(AgainstAModel):
        released = staticmethod(trusting)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Trusting, settings=NO_SHRINKING)


def test_the_model_notices_backfill_that_takes_more_than_its_half():
    """The control: a choice that sees no difference between today's runs and those of the past."""

    def blind(state: Subscription, waiting: Sequence[Start]):
        alike = [replace(start, backfill=False) for start in waiting]
        return [waiting[alike.index(start)] for start in Subscription.startable(state, alike)]

    class Blind(AgainstAModel):
        startable = staticmethod(blind)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Blind, settings=NO_SHRINKING)


def test_the_model_notices_two_runs_of_one_pipeline():
    """The control: places are taken without a word about whose they are, so that nobody knows who is busy."""

    def silent(state: Subscription, wanted: Sequence[Start], now: datetime):
        events = Subscription.take_slots(state, wanted, now)
        return tuple(replace(event, pipelines={}) if isinstance(event, SlotTaken) else event for event in events)

    class Silent(AgainstAModel):
        taken = staticmethod(silent)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Silent, settings=NO_SHRINKING)
