"""Who calls the service: customers with runs in mind, operators with everything else."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from domain.plans import Plan
from tests.simulation.book import ENDED
from tests.simulation.desk import Desk
from tests.simulation.life import Life
from tests.simulation.planner import Planner
from tests.simulation.process import Process
from tests.simulation.timetable import Pipeline

ZONES: Final = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
CRONS: Final = ("0 * * * *", "*/20 * * * *", "30 2 * * *", "30 1 * * *", "15 */6 * * *", "0 3 * * 1,4", "59 23 * * *")
HOUR: Final = timedelta(hours=1)
CUSTOMERS: Final = ("alpha", "beta", "gamma")


class Callers:
    """A few customers and their operator, answered by processes whose clocks are wrong."""

    def __init__(self, life: Life, chance: random.Random) -> None:
        self.life, self.chance = life, chance
        self.desk, self.planner = Desk(life), Planner(life)
        self.processes = [Process(f"api{n}", life.now, chance) for n in range(2)]

    def begin(self) -> None:
        for customer_id in CUSTOMERS:
            self.desk.onboard(customer_id, self.chance.choice((Plan.STARTER, Plan.STARTER, Plan.PROFESSIONAL)))
            for _ in range(2):
                self.new_pipeline(customer_id, self.life.now)

    def end(self) -> None:
        """Nobody is suspended, everybody has places enough, and nothing is scheduled any more."""
        for customer_id in CUSTOMERS:
            self.desk.override(customer_id, self.life.now, max_concurrent_pipelines=20)
            self.desk.reactivate(customer_id, self.life.now)
            for pipeline in self.life.timetable.of(customer_id):
                self.planner.remove(pipeline, self.life.now)

    def asking(self) -> datetime:
        """What the clock of one of the processes that answer callers shows."""
        return self.chance.choice(self.processes).clock(self.life.now)

    def calls(self) -> str:
        """A run is asked for, cancelled or tried again; what came of it."""
        customer_id, at = self.chance.choice(CUSTOMERS), self.asking()
        known = self.life.book.of(customer_id, "PENDING", "RUNNING", *ENDED)
        lot = self.chance.random()
        if lot < 0.5 or not known:
            run_id = self.life.new_id()
            answer = self.desk.request(customer_id, at, run_id)
            if not answer.heard:
                answer = self.desk.request(customer_id, self.asking(), run_id)
            return f"{customer_id} requests {run_id[:8]}: {answer.refusal or 'queued'}"
        run = self.chance.choice(known[-12:])
        if lot < 0.75:
            answer = self.desk.cancel(customer_id, run.run_id, at)
            return f"{customer_id} cancels {run.run_id[:8]}: {answer.refusal or run.state}"
        answer = self.desk.retry(customer_id, run.run_id, at)
        return f"{customer_id} retries {run.run_id[:8]}: {answer.refusal or 'queued'}"

    def operates(self) -> str:
        """Anything that changes what a customer may do, or what is scheduled."""
        customer_id, at = self.chance.choice(CUSTOMERS), self.asking()
        owned = self.life.timetable.of(customer_id)
        deeds: list[tuple[str, Callable[[], object]]] = [
            ("suspended", partial(self.desk.suspend, customer_id, at)),
            *[("reactivated", partial(self.reactivate, at))] * 2,
            ("another plan", partial(self.desk.change_plan, customer_id, self.chance.choice(list(Plan)), at)),
            ("other limits", partial(self.limits, customer_id, at)),
            ("recounted", partial(self.desk.recount, customer_id, at)),
            ("provisioned", partial(self.desk.provision, customer_id)),
            ("a new pipeline", partial(self.new_pipeline, customer_id, at)),
            ("schedules paused", partial(self.planner.pause, customer_id, at)),
            *[("schedules resumed", partial(self.resume, at))] * 2,
            *[("days filled in", partial(self.fill_in, pipeline, at)) for pipeline in owned[:2]],
            *[("a pipeline changed", partial(self.change, pipeline, at)) for pipeline in owned],
            *[("a pipeline changed an hour ago", partial(self.touch, pipeline, at - HOUR)) for pipeline in owned * 2],
        ]
        name, deed = self.chance.choice(deeds)
        deed()
        return f"{customer_id}: {name}"

    def reactivate(self, at: datetime) -> None:
        for customer_id in CUSTOMERS:
            self.desk.reactivate(customer_id, at)

    def resume(self, at: datetime) -> None:
        for customer_id in CUSTOMERS:
            self.planner.resume(customer_id, at)

    def fill_in(self, pipeline: Pipeline, at: datetime) -> None:
        """The same days again now and then: what was refused may fit by now."""
        first = (at - timedelta(days=self.chance.choice((9, 30)))).date()
        name = f"{pipeline.config_id} {first} {self.chance.choice((1, 1, 2))}"
        self.planner.fill_in(pipeline, at, first, self.chance.choice((2, 5)), name)

    def limits(self, customer_id: str, at: datetime) -> None:
        limits = {
            "max_concurrent_pipelines": self.chance.choice((None, 1, 2, 4)),
            "max_pipelines_per_day": self.chance.choice((None, 2, 8)),
            "max_pipelines_per_month": self.chance.choice((None, 20)),
        }
        self.desk.override(customer_id, at, **limits)

    def new_pipeline(self, customer_id: str, at: datetime) -> None:
        pipeline = Pipeline(
            config_id=self.life.new_id(),
            customer_id=customer_id,
            cron=self.chance.choice(CRONS),
            timezone=self.chance.choice(ZONES),
            catch_up=self.chance.choice(("latest", "all", "none")),
            overlap=self.chance.choice(("queue", "queue", "skip", "cancel_running")),
            jitter_seconds=self.chance.choice((0, 0, 300)),
        )
        self.planner.configure(pipeline, at)

    def change(self, pipeline: Pipeline, at: datetime) -> None:
        change = self.chance.choice(
            (
                {"cron": self.chance.choice(CRONS)},
                {"timezone": self.chance.choice(ZONES)},
                {"is_active": False},
                {"is_active": True},
                {"catch_up": "all"},
                {"overlap": "cancel_running"},
                {"jitter_seconds": 60},
                {},
            )
        )
        if change:
            self.planner.change(pipeline, at, **change)
        elif len(self.life.timetable.of(pipeline.customer_id)) > 1:
            self.planner.remove(pipeline, at)

    def touch(self, pipeline: Pipeline, at: datetime) -> None:
        """A change that leaves its slots what they are: those since `at` come again, and are there already."""
        self.planner.change(pipeline, at, jitter_seconds=self.chance.randint(0, 300))
