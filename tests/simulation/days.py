"""Virtual days: customers, operators, schedulers and workers take turns, and a seed decides whose, and what fails.

Everything happens in one thread, one thing after another, so that a seed that finds something finds it again.
"""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from domain.schedule import next_slot, parse
from tests.simulation import audit
from tests.simulation.caller import Callers
from tests.simulation.crew import Crew, Word
from tests.simulation.life import Life, UseCases
from tests.simulation.virtual_clock import VirtualClock
from tests.simulation.worker import Worker

BEGINNINGS: Final = (
    datetime(2026, 3, 6, tzinfo=UTC),  # New York goes forward on the 8th
    datetime(2026, 3, 27, tzinfo=UTC),  # Berlin goes forward on the 29th, and a month ends
    datetime(2026, 4, 3, tzinfo=UTC),  # Lord Howe goes back by half an hour on the 5th
    datetime(2026, 10, 2, tzinfo=UTC),  # and forward again on the 4th
    datetime(2026, 10, 23, tzinfo=UTC),  # Berlin goes back on the 25th
    datetime(2026, 10, 30, tzinfo=UTC),  # New York goes back on the 1st of a month
    datetime(2027, 12, 30, tzinfo=UTC),  # a year ends
    datetime(2028, 2, 27, tzinfo=UTC),  # there is a 29th
)
TURNS_A_DAY: Final = 48
TURNS_IN_A_ROW: Final = 12


class Days:
    """A few customers over a few virtual days. `trace` says what happened, a line for each turn."""

    def __init__(
        self, dsn: str, key_file: Path, clock: VirtualClock, *, seed: int, days: int, use: UseCases | None = None
    ) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - the same every time is what is wanted
        self.seed, self.days = seed, days
        self.trace: list[str] = []
        clock.empty()
        self.began = self.chance.choice(BEGINNINGS) + timedelta(hours=self.chance.randint(0, 23))
        clock.set(self.began)
        self.life = Life(dsn, key_file, clock, seed, use)
        self.crew, self.callers = Crew(self.life), Callers(self.life, self.chance)
        self.workers = [Worker(f"w{n}", self.life, self.chance) for n in range(3)]
        self.scheduler_back = self.began

    def tell(self, who: str, what: object) -> None:
        self.trace.append(f"{self.life.now:%Y-%m-%d %H:%M:%S} {who:<9} {what}")

    # the days

    def run(self) -> None:
        """Live through the days, then let everything come to its end. Raises AssertionError for what must not be."""
        try:
            self.live()
            self.finish()
        finally:
            self.life.close()

    def live(self) -> None:
        self.callers.begin()
        for _ in range(self.days * TURNS_A_DAY // TURNS_IN_A_ROW):
            self._skip_ahead()
            for _ in range(TURNS_IN_A_ROW):
                self._pass(timedelta(seconds=self.chance.choice((0, 0.5, 2, 7, 20, 50, 70, 400))))
                self._turn()
                audit.rows_agree(self.life)
            audit.states_agree(self.life)

    def _pass(self, span: timedelta) -> None:
        self.life.clock.set(self.life.now + span)

    def _skip_ahead(self) -> None:
        """To the next hour in which something may happen: a slot, a midnight, or whenever."""
        if self.chance.random() < 0.8:
            for worker in self.workers:
                self.tell(worker.name, worker.let_go())
        later = self.life.now + timedelta(hours=24 * TURNS_IN_A_ROW / TURNS_A_DAY) * self.chance.uniform(0.6, 1.4)
        midnight = later.replace(hour=0, minute=0, second=0, microsecond=0)
        schedule = self.chance.choice(list(self.life.timetable.pipelines.values()))
        slot = next_slot(parse(schedule.cron, schedule.timezone), later - timedelta(hours=1))
        off = timedelta(seconds=self.chance.choice((-30, 0, 30, 61)))
        near = self.chance.choice((later, midnight, min(slot, later + timedelta(hours=12)))) + off
        self.life.clock.set(near if near > self.life.now else later)
        self.tell("", "—" * 40)

    def finish(self) -> None:
        """Faults stop, time moves on, and everything ends: every place is free, and a replay makes the same rows."""
        life = self.life
        self.callers.end()
        # Those of one pipeline end one after the other: each pass ends one at least.
        for _ in range(len(life.book.runs) + 10):
            if all(run.ended for run in life.book.runs.values()):
                break
            self._pass(timedelta(minutes=5))
            self.crew.take_over()
            orders = self.crew.claim("last", 50, life.now)
            self.crew.renew("last", [(o.run_id, o.attempt) for o in orders])
            self.crew.report("last", [Word(o.run_id, o.customer_id, o.attempt, "succeeded") for o in orders], life.now)
            audit.rows_agree(life)
        left = [run for run in life.book.runs.values() if not run.ended]
        assert not left, f"these never came to their end: {left}"
        audit.states_agree(life)
        placed = list(life.log.read(0, 1_000_000))
        audit.log_is_sound(placed)
        audit.replay_agrees(life, placed)
        self.tell("", f"{len(life.book.runs)} runs came to their end, {len(placed)} events")

    # turns

    def _turn(self) -> None:
        turn = self.chance.choice(
            (
                *[self._worker] * 9,
                *[self._caller] * 4,
                *[self._scheduler] * 3,
                self._takeover,
                *[self._operator] * 2,
            )
        )
        turn()
        self.life.calm()

    def _worker(self) -> None:
        worker = self.chance.choice(self.workers)
        fault = self._fault()
        self.tell(worker.name, f"{worker.turn()}{fault}")

    def _fault(self) -> str:
        """Now and then the next transaction is cut off, or its answer is lost."""
        lot = self.chance.random()
        if lot < 0.03:
            self.life.store.cut_before = self.chance.randint(0, 9)
            return " [cut off]"
        if lot < 0.06:
            self.life.platform.silent = True
            return " [no answer]"
        return ""

    def _scheduler(self) -> None:
        if self.life.now < self.scheduler_back:
            return
        if self.chance.random() < 0.06:
            self.scheduler_back = self.life.now + timedelta(hours=self.chance.choice((1, 5, 30, 120)))
            self.tell("scheduler", f"is down until {self.scheduler_back}")
            return
        fault = self._fault()
        if self.chance.random() < 0.3:
            self.life.store.looks = self.chance.randint(1, 2)
            self.life.store.meanwhile = self.chance.choice(
                (self.callers.calls, self.callers.operates, self.crew.trigger)
            )
            fault += " [others meanwhile]"
        answer = self.crew.trigger()
        self.tell("scheduler", f"triggers: {answer.value}{fault}")

    def _takeover(self) -> None:
        fault = self._fault()
        self.tell("takeover", f"{self.crew.take_over()}{fault}")

    def _caller(self) -> None:
        fault = self._fault()
        self.tell("caller", f"{self.callers.calls()}{fault}")

    def _operator(self) -> None:
        fault = self._fault()
        self.tell("operator", f"{self.callers.operates()}{fault}")
