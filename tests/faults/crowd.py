"""A crowd of processes that do everything the service does, at once, to the same few customers."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from typing import Final

from adapters.postgres.store import PostgresSession, PostgresStore
from application import backfill, schedules, subscriptions
from application.platform import Platform
from application.ports import RunOrder, RunReport
from application.session import Superseded
from domain.plans import Plan
from domain.refusals import Refusal
from tests.application.world import World
from tests.faults.racers import SOME_EXPIRE

CUSTOMERS: Final = ("alpha", "beta", "gamma")

_SOME_RUN: Final = (
    "SELECT coalesce((SELECT run_id FROM {} WHERE customer_id = %s AND deleted_at IS NULL"
    " ORDER BY random() LIMIT 1), '') AS run_id"
)


class Counting(PostgresStore):
    """The store, with a tally of who had to begin again, and why."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.transactions = 0
        self.superseded: Counter[str] = Counter()

    @contextmanager
    def transaction(self) -> Iterator[PostgresSession]:
        self.transactions += 1
        try:
            with super().transaction() as session:
                yield session
        except Superseded as reason:
            self.superseded[str(reason)] += 1
            raise


@dataclass
class Done:
    """What one process did: how often what came of which deed, in how many transactions, how many begun again."""

    deeds: Counter[str] = field(default_factory=Counter)
    transactions: int = 0
    superseded: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Done") -> "Done":
        return Done(
            self.deeds + other.deeds, self.transactions + other.transactions, self.superseded + other.superseded
        )


class Somebody:
    """One of the crowd. Processes that share a worker's name share its runs no more than strangers do."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.chance = random.Random(number)  # noqa: S311 - no secret
        self.worker = f"w{number % 3}"
        self.held: list[RunOrder] = []
        self.deeds: list[Callable[[str], object]] = [
            *[self.claim] * 3,
            *[self.report] * 4,
            *[self.request] * 2,
            *[self.reactivate] * 2,
            self.beat,
            self.trigger,
            self.cancel,
            self.retry,
            self.change,
            self.take_over,
            self.suspend,
            self.plan,
            self.limits,
            self.backfill,
            self.rest,
            self.recount,
        ]

    def claim(self, _: str) -> None:
        self.held += self.world.claim(self.worker, limit=self.chance.randint(1, 6))

    def report(self, _: str) -> None:
        self.chance.shuffle(self.held)
        some, self.held = self.held[:4], self.held[4:]
        report = RunReport(succeeded=self.chance.random() < 0.8, error="bad SQL")
        self.world.report(some, self.worker, report=report)

    def request(self, customer_id: str) -> None:
        self.world.request(customer_id)

    def beat(self, _: str) -> None:
        self.world.beat(self.worker)

    def trigger(self, _: str) -> None:
        self.world.trigger(batch=5)

    def cancel(self, customer_id: str) -> None:
        self.world.cancel(self._some_run("pipeline_execution_queue", customer_id), customer_id)

    def retry(self, customer_id: str) -> None:
        self.world.retry(self._some_run("scheduled_pipeline_runs", customer_id), customer_id)

    def change(self, customer_id: str) -> None:
        self.world.change(self._some_pipeline(customer_id), customer_id, date_offset_days=self.chance.randint(0, 9))

    def take_over(self, _: str) -> None:
        self.world.execute(SOME_EXPIRE)
        self.world.take_over()

    def suspend(self, customer_id: str) -> None:
        self.world.suspend(customer_id)

    def reactivate(self, _: str) -> None:
        for customer_id in CUSTOMERS:
            self.world.reactivate(customer_id)

    def plan(self, customer_id: str) -> None:
        plan = self.chance.choice([Plan.PROFESSIONAL, Plan.SCALE])
        command = subscriptions.ChangePlan(**self.world.stamp(), customer_id=customer_id, plan=plan, reason="why not")
        subscriptions.change_plan(command, self.world.platform)

    def limits(self, customer_id: str) -> None:
        self.world.limits(customer_id, max_concurrent_pipelines=self.chance.choice([None, 4, 10]))

    def backfill(self, customer_id: str) -> None:
        last = self.world.at.date() - timedelta(days=1)
        command = backfill.Backfill(
            **self.world.stamp(),
            customer_id=customer_id,
            config_id=self._some_pipeline(customer_id),
            first=last - timedelta(days=self.chance.randint(0, 4)),
            last=last,
            backfill_id=f"b{self.chance.randint(0, 9)}",
        )
        backfill.backfill(command, self.world.platform, self.world.catalogue)

    def rest(self, customer_id: str) -> None:
        """All schedules of the customer rest for a moment."""
        given = {**self.world.stamp(), "customer_id": customer_id, "reason": "rest"}
        schedules.pause_schedules(schedules.PauseSchedules(**given), self.world.platform)
        schedules.resume_schedules(schedules.ResumeSchedules(**given), self.world.platform)

    def recount(self, customer_id: str) -> None:
        command = subscriptions.RecountUsage(**self.world.stamp(), customer_id=customer_id, reason="why not")
        subscriptions.recount_usage(command, self.world.platform)

    def _some_run(self, table: str, customer_id: str) -> str:
        run_id: str = self.world.scalar(_SOME_RUN.format(table), customer_id)
        return run_id

    def _some_pipeline(self, customer_id: str) -> str:
        found = self.world.rows("customer_pipeline_configs", customer_id=customer_id)
        config_id: str = self.chance.choice(found)["config_id"]
        return config_id


def join(world: World, number: int, others: Barrier, seconds: float) -> Done:
    """Do this and that until the time is up. Of what may go wrong, only refusals are answers.

    The clock that slots and requests go by makes two minutes of each half second, for every process alike.
    """
    store = Counting(world.datastore)
    world.store, world.platform = store, Platform(store, world.mapper)
    somebody, done = Somebody(world, number), Done()
    begin, started = world.at, time.monotonic()
    while not others.broken and (now := time.monotonic()) < started + seconds:
        world.at = begin + timedelta(minutes=2 * int((now - started) * 2))
        deed = somebody.chance.choice(somebody.deeds)
        try:
            deed(somebody.chance.choice(CUSTOMERS))
        except Refusal as refusal:
            done.deeds[type(refusal).__name__] += 1
        else:
            done.deeds[deed.__name__] += 1
    done.transactions, done.superseded = store.transactions, store.superseded
    return done


def cross(world: World, number: int, others: Barrier, run_id: str) -> Done:
    """The control: the first two processes take the same two locks, each in another order."""
    store = Counting(world.datastore)
    try:
        with store.transaction() as session:
            if number == 0:
                session.lock_runs([run_id])
            elif number == 1:
                session.lock_customers([CUSTOMERS[0]])
            session.now()  # asked for is not held: what is fetched next waits for it
            others.wait()
            if number == 0:
                session.lock_customers([CUSTOMERS[0]])
            elif number == 1:
                session.lock_runs([run_id])
    except Superseded:
        return Done(Counter(gave_way=1), store.transactions, store.superseded)
    return Done(Counter(), store.transactions, store.superseded)
