"""Twenty triggers at once, of every kind, while pipelines are edited: one due slot, one run."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from application.command import Command
from application.platform import Platform, Transaction
from application.streams import Stream
from domain.run_events import RunScheduled
from tests.application.world import World
from tests.faults import racers
from tests.faults.racers import Due
from tests.faults.racing import Racers
from tests.http.running import Quick, running

TRIGGERS, EDITORS = 20, 4
CUSTOMERS = [f"customer{number}" for number in range(5)]


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def world(database_url, directory) -> Iterator[World]:
    with World(database_url, directory / "keys" / "wrapping.key") as made:
        yield made


class Hourly:
    """Pipelines of many customers whose slots came ten minutes into some of the last hours, and nobody triggered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now: datetime = world.scalar("SELECT clock_timestamp()")
        self.begin = self.now - timedelta(hours=3, minutes=30)
        newest = (self.now - timedelta(minutes=10)).replace(second=0, microsecond=0)
        self.slots = [newest - timedelta(hours=hours) for hours in (3, 2, 1, 0)]
        self.crons = [f"{newest.minute} * * * *", f"{(newest.minute + 45) % 60} * * * *"]
        self.expected: dict[str, list[datetime]] = {}
        self.owners: dict[str, str] = {}
        self.edited: list[tuple[str, str]] = []
        world.at = self.begin
        for customer_id in CUSTOMERS:
            world.onboard(customer_id, "SCALE")
            world.limits(customer_id, max_pipelines_per_day=1000, max_pipelines_per_month=1000)
            for catch_up, slots in (("all", self.slots), ("latest", self.slots[-1:])):
                for _ in range(3):
                    config_id = world.pipeline(customer_id, self.crons[0], catch_up=catch_up)
                    self.expected[config_id] = slots
                    self.owners[config_id] = customer_id
                edited = world.pipeline(customer_id, self.crons[0], catch_up=catch_up)
                self.edited.append((edited, customer_id))

    def due_again(self) -> None:
        """Edit every pipeline to and fro, by a clock that is behind."""
        self.world.at = self.begin
        for config_id, customer_id in self.owners.items():
            for cron in reversed(self.crons):
                self.world.change(config_id, customer_id, schedule_cron=cron)


def one_run_a_slot(world: World, hourly: Hourly) -> int:
    """Fails when a slot has no run or more than one; returns how many runs there are."""
    made = [event for event in world.events() if isinstance(event, RunScheduled)]
    slots = Counter((event.config_id, event.scheduled_for) for event in made)
    assert set(slots.values()) == {1}, [slot for slot, runs in slots.items() if runs > 1]
    rows = Counter((r["config_id"], r["scheduled_time"]) for r in world.rows("scheduled_pipeline_runs"))
    assert rows == slots
    for config_id, expected in hourly.expected.items():
        assert sorted(slot for config, slot in slots if config == config_id) == expected
    for customer_id in CUSTOMERS:
        used = sum(row["pipelines_run_today"] for row in world.rows("customer_usage", customer_id=customer_id))
        assert used == sum(event.customer_id == customer_id for event in made)
    return len(made)


def test_twenty_triggers_make_one_run_of_each_slot(database_url, world, directory):
    hourly = Hourly(world)
    with (
        running(database_url, directory, engine=Quick()) as api,
        Racers(TRIGGERS + EDITORS, database_url, directory / "keys" / "wrapping.key") as processes,
    ):
        given = (TRIGGERS, Due(directory, api.url, hourly.edited, hourly.crons))
        queued = sum(processes.race(racers.trigger_or_edit, hourly.begin, *given))
        first = one_run_a_slot(world, hourly)
        assert queued == first >= 75
        hourly.due_again()
        queued += sum(processes.race(racers.trigger_or_edit, hourly.begin, *given))
    assert one_run_a_slot(world, hourly) == queued
    due = "SELECT count(*) FROM customer_pipeline_configs WHERE next_run_time <= %s AND config_id <> ALL(%s)"
    assert world.scalar(due, hourly.now, [config_id for config_id, _ in hourly.edited]) == 0


class ByChance:
    """A transaction in which no run is found by the name it was given."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def new_runs(self, runs: Sequence[tuple[UUID, str]]) -> list[Stream]:
        return [self._transaction.run(uuid4(), customer_id) for _, customer_id in runs]


class Forgetful(Platform):
    def transact(self, command: Command, work: Callable, **more: Any) -> Any:
        return super().transact(command, lambda transaction: work(ByChance(transaction)), **more)


def test_runs_named_by_chance_are_made_again(world):
    """The control: locks alone do not help against a slot that comes due once more."""
    hourly = Hourly(world)
    world.platform = Forgetful(world.store, world.mapper)
    world.at = hourly.now
    world.trigger()
    one_run_a_slot(world, hourly)
    hourly.due_again()
    world.at = hourly.now
    world.trigger()
    with pytest.raises(AssertionError):
        one_run_a_slot(world, hourly)
