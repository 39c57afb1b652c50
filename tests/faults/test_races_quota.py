"""Sixteen processes and the last places: as many get one as there are, never one more."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from domain.refusals import Limit
from domain.run_events import RunCancelled, RunClaimed, RunCompleted, RunFailed, RunRequeued, RunScheduled
from domain.subscription_events import RunRefused
from tests.application.world import World
from tests.faults import racers
from tests.faults.racing import Racers

PROCESSES = 16
MIDNIGHT = datetime(2035, 6, 16, tzinfo=UTC)
NEW_MONTH = datetime(2035, 7, 1, tzinfo=UTC)
TICK = timedelta.resolution


@pytest.fixture(scope="module")
def processes(shared_database, tmp_path_factory) -> Iterator[Racers]:
    with Racers(PROCESSES, shared_database, tmp_path_factory.mktemp("keys") / "key") as made:
        yield made


@pytest.fixture
def acme(database_url, processes) -> Iterator[World]:
    with World(database_url, processes.key_file) as world:
        world.at = MIDNIGHT - timedelta(hours=12)
        world.onboard()
        yield world


def admitted(world: World) -> Counter:
    """Runs by the day whose quota they took a unit of, as the log has it."""
    return Counter(event.counted_on for event in world.events() if isinstance(event, RunScheduled))


def within(world: World, *, daily: int, monthly: int = 1000) -> Counter:
    """Fails when more were let in than there was room for; returns how many on which day."""
    days = admitted(world)
    months: Counter = Counter()
    for day, runs in days.items():
        months[day.replace(day=1)] += runs
    assert max(days.values(), default=0) <= daily, days
    assert max(months.values(), default=0) <= monthly, months
    assert len(world.rows("scheduled_pipeline_runs")) == days.total()
    return days


@dataclass(frozen=True)
class Case:
    """So much room; whether the callers' clocks lie on both sides of a midnight; which limits they may be told of."""

    daily: int
    monthly: int
    midnight: datetime | None
    told: set[Limit]


@pytest.mark.parametrize(
    "case",
    [
        Case(7, 1000, None, {Limit.DAILY}),
        Case(1000, 7, None, {Limit.MONTHLY}),
        Case(7, 1000, MIDNIGHT, {Limit.DAILY}),
        Case(1000, 7, MIDNIGHT, {Limit.MONTHLY}),
        Case(5, 7, MIDNIGHT, {Limit.DAILY, Limit.MONTHLY}),
        Case(1000, 7, NEW_MONTH, {Limit.MONTHLY}),
    ],
    ids=["a day", "a month", "two days", "two days of a month", "both limits", "two months"],
)
def test_as_many_are_let_in_as_there_are_places(acme, processes, case):
    acme.limits(max_pipelines_per_day=case.daily, max_pipelines_per_month=case.monthly)
    instants = [case.midnight - TICK, case.midnight] if case.midnight else [acme.at]
    answers = [answer for some in processes.race(racers.ask, acme.at, instants, 3) for answer in some]
    days = within(acme, daily=case.daily, monthly=case.monthly)
    ids = [answer for answer in answers if not isinstance(answer, Limit)]
    assert len(answers) == PROCESSES * 3
    assert len(set(ids)) == len(ids) == days.total()

    # Whoever's clock was behind may have come too late for the first day; the last one is used up.
    last = instants[-1].date()
    earlier = sum(runs for day, runs in days.items() if (day.year, day.month) == (last.year, last.month) and day < last)
    assert days[last] == min(case.daily, case.monthly - earlier)
    if days[last]:
        assert acme.usage(day=last) == (days[last], days[last] + earlier, 0)

    refusals = [(event.limit, event.day) for event in acme.events() if isinstance(event, RunRefused)]
    assert len(set(refusals)) == len(refusals), "each limit once a day"
    assert {answer for answer in answers if isinstance(answer, Limit)} | {limit for limit, _ in refusals} <= case.told


def test_counting_first_lets_more_in(acme, processes):
    """The control."""
    processes.race(racers.ask_by_counting, acme.at, 7)
    with pytest.raises(AssertionError):
        within(acme, daily=7)


def most_at_once(world: World) -> int:
    """The most runs that were going on at any point of the log."""
    going = most = 0
    for event in world.events():
        if isinstance(event, RunClaimed):
            going += 1
        elif isinstance(event, RunCompleted | RunFailed | RunRequeued | RunCancelled):
            going -= 1
        most = max(most, going)
    return most


def test_as_many_run_as_there_are_places(acme, processes):
    acme.limits(max_pipelines_per_day=1000, max_concurrent_pipelines=3)
    for _ in range(20):
        acme.request()
    orders = [order for some in processes.race(racers.claim, acme.at, 4) for order in some]
    assert len(orders) == len({order.run_id for order in orders}) == 3
    assert most_at_once(acme) == acme.usage()[2] == 3


def test_places_that_change_hands_are_never_more_than_there_are(acme, processes):
    acme.limits(max_pipelines_per_day=1000, max_concurrent_pipelines=3)
    for _ in range(40):
        acme.request()
    told = processes.race(racers.take_turns, acme.at, 8)
    assert sum(started for started, _ in told) >= 6
    assert sum(refused for _, refused in told) > 0
    assert most_at_once(acme) == 3
    assert acme.usage()[2] == acme.states().get("RUNNING", 0) <= 3


def test_counting_first_starts_more(acme, processes):
    """The control."""
    acme.limits(max_pipelines_per_day=1000)
    for _ in range(48):
        acme.request()
    processes.race(racers.claim_by_counting, acme.at, 3)
    assert most_at_once(acme) > 3
