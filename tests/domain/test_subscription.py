"""Quota, as the customer reads it in the guide: who gets in, what they are told, and what is given back."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from domain import subscription_events
from domain.plans import LIMITS, Overrides, Plan
from domain.refusals import Conflict, Forbidden, Invalid, Limit, QuotaExceeded
from domain.subscription import Admission, Start, evolve, open_subscription
from domain.subscription_events import (
    AdmissionsReturned,
    Cancelled,
    LimitsOverridden,
    PlanChanged,
    RunRefused,
    RunsAdmitted,
    SlotReleased,
    SlotTaken,
    UsageReset,
)
from domain.usage import Usage
from tests.domain.story import Story

NOON = datetime(2025, 11, 17, 12, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def opened(plan: Plan = Plan.PROFESSIONAL, at: datetime = NOON) -> Story:
    return Story(evolve).given(open_subscription("acme_corp", plan, at))


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def starts(run_ids: list[str]) -> list[Start]:
    return [Start(run_id) for run_id in run_ids]


def admit(story: Story, run_ids: list[str], at: datetime = NOON, *, starting: bool = True) -> Admission:
    admission = story.state.admit(run_ids, at, starting=starting)
    story.given(*admission.events)
    return admission


def limited(at: datetime = NOON, **limits: int) -> Story:
    return opened(at=at).when(lambda s: s.override_limits(Overrides(**limits), "test", at))


def test_the_plans_are_the_guides():
    rows = {
        plan: (
            limits.max_team_members,
            limits.max_providers,
            limits.max_pipelines_per_day,
            limits.max_pipelines_per_month,
            limits.max_concurrent_pipelines,
        )
        for plan, limits in LIMITS.items()
    }
    assert rows == {
        Plan.STARTER: (2, 3, 6, 180, 3),
        Plan.PROFESSIONAL: (6, 6, 25, 750, 5),
        Plan.SCALE: (11, 10, 100, 3000, 10),
    }


class TestWhatARefusedCallerReads:
    def test_daily(self):
        story = opened()
        assert admit(story, ids("r", 25)).refusal is None
        refusal = admit(story, ["one more"]).refusal
        assert str(refusal) == "Daily pipeline quota exceeded. Used 25/25 pipelines today."
        assert isinstance(refusal, QuotaExceeded)
        assert refusal.resets_at == datetime(2025, 11, 18, tzinfo=UTC)
        assert refusal.resets_on is None

    def test_monthly(self):
        story = limited(max_pipelines_per_day=1000)
        assert admit(story, ids("r", 750)).refusal is None
        refusal = admit(story, ["one more"]).refusal
        assert str(refusal) == "Monthly pipeline quota exceeded. Used 750/750 pipelines this month."
        assert isinstance(refusal, QuotaExceeded)
        assert refusal.resets_on == date(2025, 12, 1)
        assert refusal.resets_at is None

    def test_concurrent(self):
        story = opened().when(lambda s: s.take_slots(starts(ids("r", 5)), NOON))
        refusal = admit(story, ["one more"]).refusal
        assert str(refusal) == "Concurrent pipeline limit reached. 5/5 pipelines currently running."
        assert isinstance(refusal, QuotaExceeded)
        assert (refusal.resets_at, refusal.resets_on) == (None, None)

    def test_suspended(self):
        story = opened().when(lambda s: s.pause("unpaid"))
        refusal = admit(story, ["r"]).refusal
        assert isinstance(refusal, Forbidden)
        assert str(refusal) == "Account suspended"


def test_the_rules_are_checked_in_the_guides_order():
    """Suspended, daily, monthly, concurrent: with all of them broken, mending the first shows the second."""
    story = limited(max_pipelines_per_day=0, max_pipelines_per_month=0, max_concurrent_pipelines=0)
    story.when(lambda s: s.pause("unpaid"))
    assert isinstance(admit(story, ["r"]).refusal, Forbidden)
    story.when(lambda s: s.resume("paid"))
    seen = []
    for mended in ({"max_pipelines_per_day": 1}, {"max_pipelines_per_month": 1}, {"max_concurrent_pipelines": 1}):
        seen.append(admit(story, ["r"]).refusal.limit)
        overrides = replace(story.state.overrides, **mended)
        story.when(lambda s, overrides=overrides: s.override_limits(overrides, "mended", NOON))
    assert seen == [Limit.DAILY, Limit.MONTHLY, Limit.CONCURRENT]
    assert admit(story, ["r"]).refusal is None


def test_a_batch_is_admitted_as_far_as_there_is_room_in_its_order():
    story = limited(max_pipelines_per_day=3)
    admission = admit(story, ids("r", 5), starting=False)
    assert admission.admitted == ("r0", "r1", "r2")
    assert admission.refusal.limit is Limit.DAILY
    assert story.state.usage.admitted == story.state.usage.month_admitted == 3


def test_a_scheduled_run_waits_for_a_place_instead_of_being_refused():
    story = opened().when(lambda s: s.take_slots(starts(ids("r", 5)), NOON))
    assert admit(story, ["scheduled"], starting=False).refusal is None


class TestRefusalsAreRecordedOnce:
    def test_per_limit_and_day(self):
        story = limited(max_pipelines_per_day=0)
        first = admit(story, ["r"])
        assert first.events == (RunRefused(limit=Limit.DAILY, used=0, allowed=0, day=NOON.date()),)
        for _ in range(3):
            again = admit(story, ["r"])
            assert again.refusal is not None
            assert again.events == ()
        tomorrow = NOON + timedelta(days=1)
        assert [e.day for e in admit(story, ["r"], tomorrow).events] == [tomorrow.date()]
        assert admit(story, ["r"], tomorrow).events == ()

    def test_each_limit_on_its_own(self):
        story = limited(max_pipelines_per_day=1).when(lambda s: s.take_slots(starts(ids("r", 5)), NOON))
        assert [e.limit for e in admit(story, ["a"]).events] == [Limit.CONCURRENT]
        admit(story, ["b"], starting=False)
        assert [e.limit for e in admit(story, ["c"]).events] == [Limit.DAILY]
        assert admit(story, ["d"]).events == ()

    def test_whatever_else_happens_on_that_day(self):
        """What is counted first on a new day wipes nothing away that was recorded on it."""
        story = limited(max_pipelines_per_month=1)
        admit(story, ["r"])
        story.when(lambda s: s.take_slots(starts(["r"]), NOON))
        tomorrow = NOON + timedelta(days=1)
        assert [e.day for e in admit(story, ["a"], tomorrow).events] == [tomorrow.date()]
        story.when(lambda s: s.release_slots({"r": True}, tomorrow))
        assert admit(story, ["b"], tomorrow).events == ()

    def test_by_clocks_on_both_sides_of_midnight(self):
        story = limited(max_pipelines_per_month=1)
        admit(story, ["r"])
        midnight = NOON.replace(hour=0) + timedelta(days=1)
        asked = [midnight - TICK, midnight, midnight - TICK, midnight, midnight - TICK]
        assert [len(admit(story, ["a"], at).events) for at in asked] == [1, 1, 0, 0, 0]

    def test_a_suspended_customer_leaves_no_record(self):
        story = opened().when(lambda s: s.pause("unpaid"))
        assert admit(story, ["r"]).events == ()


@pytest.mark.parametrize(
    ("last", "new_month"),
    [
        (datetime(2025, 11, 17, tzinfo=UTC), False),
        (datetime(2025, 11, 30, tzinfo=UTC), True),
        (datetime(2025, 12, 31, tzinfo=UTC), True),
        (datetime(2024, 2, 28, tzinfo=UTC), False),
        (datetime(2024, 2, 29, tzinfo=UTC), True),
        (datetime(2025, 2, 28, tzinfo=UTC), True),
        (datetime(2100, 2, 28, tzinfo=UTC), True),
    ],
)
def test_counts_start_again_at_midnight_utc_to_the_microsecond(last, new_month):
    midnight = last + timedelta(days=1)
    story = limited(max_pipelines_per_day=2, max_pipelines_per_month=2, at=last)
    admit(story, ["a", "b"], last)
    before = admit(story, ["c"], midnight - TICK).refusal
    assert before.limit is Limit.DAILY
    assert before.resets_at == midnight
    after = admit(story, ["c"], midnight)
    if new_month:
        assert after.refusal is None
        assert after.day == midnight.date()
        assert story.state.usage == Usage(day=midnight.date(), admitted=1, month_admitted=1)
    else:
        assert after.refusal.limit is Limit.MONTHLY
        assert story.state.usage.at(midnight) == Usage(day=midnight.date(), admitted=0, month_admitted=2)


def test_a_reader_sees_the_new_day_without_any_traffic():
    story = opened()
    admit(story, ids("r", 3))
    story.when(lambda s: s.take_slots(starts(["r0"]), NOON))
    assert story.state.usage.at(NOON + timedelta(days=1)) == Usage(day=date(2025, 11, 18), month_admitted=3, running=1)


def test_the_day_is_utcs_wherever_the_clock_stands():
    eastern = timezone(timedelta(hours=-5))
    story = opened()
    admit(story, ["r"], datetime(2025, 11, 17, 23, 30, tzinfo=eastern))
    assert story.state.usage.day == date(2025, 11, 18)


class TestAClockThatRunsBackwards:
    def test_does_not_bring_yesterday_back(self):
        story = limited(max_pipelines_per_day=1)
        tomorrow = NOON + timedelta(days=1)
        admit(story, ["a"], tomorrow)
        refusal = admit(story, ["b"], NOON).refusal
        assert refusal.limit is Limit.DAILY
        assert refusal.resets_at == datetime(2025, 11, 19, tzinfo=UTC)

    def test_says_which_day_was_charged(self):
        """Asked a tick before midnight, admitted after somebody else was admitted behind it."""
        midnight = datetime(2025, 12, 1, tzinfo=UTC)
        story = opened(at=midnight - TICK)
        admit(story, ["a"], midnight)
        late = admit(story, ["b"], midnight - TICK)
        assert late.day == midnight.date()
        story.when(lambda s: s.return_admissions(["b"], late.day, midnight))
        assert story.state.usage.admitted == story.state.usage.month_admitted == 1


class TestUnitsGoBackToTheDayTheyCameFrom:
    def test_on_the_same_day(self):
        story = opened()
        admit(story, ids("r", 3))
        story.when(lambda s: s.return_admissions(["r1"], NOON.date(), NOON))
        story.then_kinds(AdmissionsReturned)
        assert (story.state.usage.admitted, story.state.usage.month_admitted) == (2, 2)

    def test_a_day_later_the_day_before_gets_it_and_the_month_too(self):
        story = opened()
        admit(story, ids("r", 3))
        tomorrow = NOON + timedelta(days=1)
        admit(story, ["s"], tomorrow)
        story.when(lambda s: s.return_admissions(["r1"], NOON.date(), tomorrow))
        [event] = story.decided
        assert (event.day, event.admitted_that_day) == (NOON.date(), 2)
        assert event.usage == Usage(day=tomorrow.date(), admitted=1, month_admitted=3)

    def test_a_month_later_the_new_month_is_left_alone(self):
        story = opened()
        admit(story, ids("r", 3))
        later = datetime(2025, 12, 1, tzinfo=UTC)
        admit(story, ["s"], later)
        story.when(lambda s: s.return_admissions(["r1"], NOON.date(), later))
        assert story.decided[0].admitted_that_day == 2
        assert story.state.usage == Usage(day=later.date(), admitted=1, month_admitted=1)

    def test_a_day_that_is_forgotten_is_left_as_it_is(self):
        """Counts of 40 days are kept. Older ones must not be overwritten with a guess."""
        story = opened()
        admit(story, ids("r", 3))
        for day in range(1, 45):
            admit(story, ["s"], NOON + timedelta(days=day))
        assert len(story.state.admitted_by_day) == 40
        story.when(lambda s: s.return_admissions(["r1"], NOON.date(), NOON + timedelta(days=45))).then()


class TestPlaces:
    def test_as_many_as_the_limit(self):
        story = opened().when(lambda s: s.take_slots(starts(ids("r", 5)), NOON)).then_kinds(SlotTaken)
        assert story.state.places() == 0
        with pytest.raises(QuotaExceeded, match=re.escape("5/5 pipelines currently running")):
            story.state.take_slots(starts(["one more"]), NOON)

    def test_all_or_none_of_a_batch(self):
        story = opened().when(lambda s: s.take_slots(starts(ids("r", 4)), NOON))
        with pytest.raises(QuotaExceeded):
            story.state.take_slots(starts(["x", "y"]), NOON)

    def test_the_same_run_takes_one(self):
        story = opened().when(lambda s: s.take_slots(starts(["r"]), NOON))
        story.when(lambda s: s.take_slots(starts(["r"]), NOON)).then()
        assert story.state.usage.running == 1

    def test_none_while_suspended(self):
        story = opened().when(lambda s: s.pause("unpaid"))
        assert story.state.places() == 0
        with pytest.raises(Forbidden):
            story.state.take_slots(starts(["r"]), NOON)

    def test_freed_once_whatever_ends_the_run(self):
        story = opened().when(lambda s: s.take_slots(starts(["a", "b", "c"]), NOON))
        story.when(lambda s: s.release_slots({"a": True, "b": False, "c": None, "stranger": True}, NOON))
        story.then(
            SlotReleased(
                run_ids=("a", "b", "c"),
                usage=Usage(day=NOON.date(), succeeded=1, failed=1),
                limits=LIMITS[Plan.PROFESSIONAL],
            )
        )
        story.when(lambda s: s.release_slots({"a": True, "b": True, "c": True}, NOON)).then()

    def test_a_run_over_midnight_keeps_its_place(self):
        story = opened().when(lambda s: s.take_slots(starts(["a"]), NOON))
        tomorrow = NOON + timedelta(days=1)
        admit(story, ["b"], tomorrow)
        assert story.state.usage.running == 1
        story.when(lambda s: s.release_slots({"a": True}, tomorrow))
        assert story.state.usage == Usage(day=tomorrow.date(), admitted=1, succeeded=1, month_admitted=1)

    def test_a_lower_limit_takes_nothing_from_those_who_run(self):
        story = opened().when(lambda s: s.take_slots(starts(ids("r", 5)), NOON))
        story.when(lambda s: s.override_limits(Overrides(max_concurrent_pipelines=2), "test", NOON))
        assert story.state.places() == 0
        story.when(lambda s: s.release_slots(dict.fromkeys(ids("r", 3), True), NOON))
        assert story.state.places() == 0
        story.when(lambda s: s.release_slots({"r3": True}, NOON))
        assert story.state.places() == 1


class TestOperators:
    def test_another_plan_keeps_the_exceptions(self):
        story = limited(max_pipelines_per_day=7).when(lambda s: s.change_plan(Plan.SCALE, "paid more", NOON))
        story.then_kinds(PlanChanged)
        assert story.state.limits == replace(LIMITS[Plan.SCALE], max_pipelines_per_day=7)
        story.when(lambda s: s.override_limits(Overrides(), "no more exceptions", NOON)).then_kinds(LimitsOverridden)
        assert story.state.limits == LIMITS[Plan.SCALE]

    def test_saying_the_same_again_changes_nothing(self):
        story = limited(max_pipelines_per_day=7)
        story.when(lambda s: s.change_plan(Plan.PROFESSIONAL, "again", NOON)).then()
        story.when(lambda s: s.override_limits(Overrides(max_pipelines_per_day=7), "again", NOON)).then()
        story.when(lambda s: s.resume("never paused")).then()

    @pytest.mark.parametrize("value", [-1, 1_000_001])
    def test_limits_have_bounds(self, value):
        with pytest.raises(Invalid, match="max_providers must be between 0 and 1000000"):
            opened().state.override_limits(Overrides(max_providers=value), "test", NOON)

    def test_a_cancelled_subscription_keeps_its_plan(self):
        story = opened().given(Cancelled(reason="left"))
        with pytest.raises(Conflict):
            story.state.change_plan(Plan.SCALE, "back?", NOON)
        assert isinstance(admit(story, ["r"]).refusal, Forbidden)

    @pytest.mark.parametrize(
        ("daily", "monthly", "left"), [(True, False, (0, 3)), (False, True, (3, 0)), (True, True, (0, 0))]
    )
    def test_reset(self, daily, monthly, left):
        story = opened()
        admit(story, ids("r", 3))
        story.when(lambda s: s.reset_usage(NOON, "test", daily=daily, monthly=monthly)).then_kinds(UsageReset)
        assert (story.state.usage.admitted, story.state.usage.month_admitted) == left

    def test_recount_frees_what_nobody_holds(self):
        story = opened().when(lambda s: s.take_slots(starts(["a", "b"]), NOON))
        story.when(lambda s: s.recount(["a", "stranger"], NOON, "test")).then_kinds(SlotReleased)
        assert story.state.running == {"a"}
        assert (story.state.usage.succeeded, story.state.usage.failed) == (0, 0)


def test_no_event_is_an_increment():
    """Whatever is counted is in the event as a total: the fold only assigns, so a repeated event changes nothing."""
    story = opened()
    for decide in (
        lambda s: s.admit(["a", "b"], NOON, starting=True),
        lambda s: s.take_slots(starts(["a"]), NOON),
        lambda s: s.release_slots({"a": True}, NOON),
        lambda s: s.return_admissions(["b"], NOON.date(), NOON),
    ):
        story.when(decide)
        [event] = story.decided
        assert evolve(story.state, event) == story.state
    assert {RunsAdmitted, SlotTaken, SlotReleased, AdmissionsReturned} < set(
        subscription_events.SubscriptionEvent.__args__
    )


class TestResetAndReturned:
    """What an operator let begin anew is not given back once more."""

    def anew(self, *, daily: bool, monthly: bool) -> Story:
        story = limited(max_pipelines_per_day=4, max_pipelines_per_month=6)
        story.when(lambda s: s.admit(ids("before", 4), NOON, starting=False).events)
        return story.when(lambda s: s.reset_usage(NOON, "our outage", daily=daily, monthly=monthly))

    def used(self, story: Story) -> tuple[int, int]:
        return story.state.usage.admitted, story.state.usage.month_admitted

    def test_day_and_month(self):
        story = self.anew(daily=True, monthly=True)
        story.when(lambda s: s.admit(ids("after", 4), NOON, starting=False).events)
        assert self.used(story) == (4, 4)
        story.when(lambda s: s.return_admissions(["before0", "before1"], NOON.date(), NOON))
        assert self.used(story) == (4, 4)

    def test_the_day_only(self):
        story = self.anew(daily=True, monthly=False)
        story.when(lambda s: s.return_admissions(["before0"], NOON.date(), NOON))
        assert self.used(story) == (0, 3)

    def test_the_next_day_is_like_any_other(self):
        story = self.anew(daily=True, monthly=False)
        tomorrow = NOON + timedelta(days=1)
        story.when(lambda s: s.admit(["r"], tomorrow, starting=False).events)
        story.when(lambda s: s.return_admissions(["r"], tomorrow.date(), tomorrow))
        assert self.used(story) == (0, 4)
