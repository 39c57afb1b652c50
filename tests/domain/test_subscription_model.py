"""Anything that can happen to a subscription, beside a book in which every unit and place is written down."""

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
from domain.refusals import QuotaExceeded
from domain.subscription import (
    SlotReleased,
    Subscription,
)
from domain.usage import Usage
from tests.domain.test_subscription import admit, opened, starts


class AgainstAModel(RuleBasedStateMachine):
    """Anything that can happen to a subscription, beside a book in which every unit and place is written down."""

    released = staticmethod(Subscription.release_slots)

    @initialize(plan=st.sampled_from(Plan))
    def open(self, plan):
        self.now = datetime(2024, 2, 27, 22, tzinfo=UTC)
        self.story = opened(plan, self.now)
        self.units: dict[str, date] = {}
        self.places: set[str] = set()
        self.started: set[str] = set()
        self.ended: list[tuple[date, bool]] = []
        self.serial = 0

    def _on(self, day: date) -> int:
        return sum(1 for unit in self.units.values() if unit == day)

    def _in_month(self, day: date) -> int:
        return sum(1 for unit in self.units.values() if (unit.year, unit.month) == (day.year, day.month))

    @rule(count=st.integers(1, 9), starting=st.booleans(), behind=st.sampled_from([0, 0, 3, 30]))
    def admit(self, count, starting, behind):
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

    @rule(data=st.data())
    def give_back(self, data):
        waiting = sorted(set(self.units) - self.started)
        if waiting:
            run_id = data.draw(st.sampled_from(waiting))
            day = self.units.pop(run_id)
            self.story.when(lambda s: s.return_admissions([run_id], day, self.now))
            [event] = self.story.decided
            assert (event.day, event.admitted_that_day) == (day, self._on(day))

    @rule(count=st.integers(1, 6))
    def take(self, count):
        waiting = sorted(set(self.units) - self.started)[:count]
        free = max(0, self.story.state.limits.max_concurrent_pipelines - len(self.places))
        assert self.story.state.places() == free
        if len(waiting) > free:
            with pytest.raises(QuotaExceeded):
                self.story.state.take_slots(starts(waiting), self.now)
        self.story.when(lambda s: s.take_slots(starts(waiting[:free]), self.now))
        self.places.update(waiting[:free])
        self.started.update(waiting[:free])

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
