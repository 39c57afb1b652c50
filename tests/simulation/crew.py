"""What schedulers and workers do, on the database and in the book, which must agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from adapters.postgres import leases, offers
from application import execution, scheduling
from application.ports import RunOrder, RunReport, StepReport
from tests.simulation.book import ATTEMPTS, LEASE, Offer
from tests.simulation.life import Answer, Life
from tests.simulation.passes import absorb


@dataclass(frozen=True)
class Word:
    """What a worker says of one attempt: `how` is succeeded, failed, retry, cancelled, handed_back or step."""

    run_id: str
    customer_id: str
    attempt: int
    how: str
    after: timedelta = timedelta(0)


class Crew:
    """Every process behind the service. `at` is what the process's clock shows."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def trigger(self) -> Answer:
        """One pass of a scheduler, by the database's clock."""
        command = scheduling.TriggerSchedules(**self._life.stamp("scheduler", self._life.now))
        before, disturbed = self._life.log.end(), self._life.store.meanwhile is not None
        answer = self._life.attempt(
            lambda: self._life.use.trigger(command, self._life.platform, self._life.world.catalogue)
        )
        assert answer.refusal is None, f"a scheduler was refused: {answer.refusal}"
        # It works in several transactions: what the first ones did stays when a later one is cut off.
        placed = [p for p in self._life.log.read(before, 100_000) if p.at.by.command_id == command.by.command_id]
        if answer.happened or placed:
            disturbed = disturbed or not answer.heard
            absorb(placed, self._life.book, self._life.timetable, self._life.now, disturbed=disturbed)
        return answer

    def claim(self, worker: str, limit: int, at: datetime) -> list[RunOrder]:
        """What the worker heard that it has. When it hears of nothing, there was nothing to be had."""
        command = execution.ClaimRuns(**self._life.stamp(f"worker:{worker}", at), worker_id=worker, limit=limit)
        answer = self._life.attempt(lambda: self._life.use.claim(command, self._life.platform))
        self._skipped_while_suspended()
        if not answer.happened:
            return []
        orders = answer.value if answer.heard else answer.value[0]
        for order in orders:
            run = self._life.book.runs[order.run_id]
            self._life.book.claim(run, worker, self._life.now)
            assert order.attempt == run.attempt
        if not answer.heard:
            return []
        left = [run for run in self._life.book.runs.values() if self._life.book.startable(run, self._life.now)]
        assert orders or not left, f"{worker} was given nothing, and these could start: {left}"
        return list(orders)

    def offer(self, worker: str, offer_id: str, free: int, seconds: int) -> None:
        """The worker would take so many runs at once."""
        book = self._life.book
        if offer_id not in book.offers:
            self._life.call(offer_id)
        offers.offer(self._life.world.datastore, UUID(offer_id), worker, free, seconds)
        book.offers[offer_id] = Offer(worker, free, self._life.now + timedelta(seconds=seconds))

    def withdraw(self, offer_id: str) -> None:
        offers.withdraw(self._life.world.datastore, UUID(offer_id))
        self._life.book.offers[offer_id].free = 0

    def die(self, offer_id: str) -> None:
        """The worker is gone, and what it offered stands where it stood."""
        self._life.hang_up(offer_id)
        self._life.book.offers[offer_id].on_the_line = False

    def take_up(self, worker: str, offer_id: str) -> list[RunOrder]:
        """What the worker was handed, if there is time left: all of that, and nothing else."""
        expected = {(run.run_id, run.attempt) for run in self._life.book.handed(offer_id, self._life.now)}
        found = self._life.use.take_up(self._life.world.datastore, UUID(offer_id), worker, LEASE.total_seconds())
        told = {(each.order.run_id, each.order.attempt) for each in found}
        assert told == expected, f"{worker} takes up {told} instead of {expected}"
        for each in found:
            run = self._life.book.runs[each.order.run_id]
            assert each.stop_asked == run.stop_asked
            self._life.book.renew(run, self._life.now)
        return [each.order for each in found]

    def _skipped_while_suspended(self) -> None:
        """Which waiting runs of suspended customers a worker came across is its own business."""
        for customer_id, account in self._life.book.accounts.items():
            waiting = self._life.book.of(customer_id, "PENDING") if account.suspended else []
            if waiting:
                skipped = {row["run_id"] for row in self._life.world.rows("scheduled_pipeline_runs", state="SKIPPED")}
                for run in waiting:
                    if run.run_id in skipped:
                        self._life.book.never_run(run, "SKIPPED", self._life.now)

    def renew(self, worker: str, attempts: Sequence[tuple[str, int]]) -> list[leases.Held]:
        """A heartbeat: what the worker still holds."""
        held = self._life.use.renew(self._life.world.datastore, worker, attempts, LEASE.total_seconds())
        expected = {(run_id, attempt) for run_id, attempt in attempts if self._life.book.holds(worker, run_id, attempt)}
        assert {(each.run_id, each.attempt) for each in held} == expected, f"{worker} holds {expected}, heard {held}"
        for each in held:
            run = self._life.book.runs[each.run_id]
            assert each.stop_asked == run.stop_asked
            self._life.book.renew(run, self._life.now)
        return list(held)

    def report(self, worker: str, words: Sequence[Word], at: datetime) -> Answer:
        """What the worker says is recorded of the runs that it holds, and of no other."""
        outcomes = tuple(_outcome(word, at) for word in words)
        command = execution.ReportOutcomes(
            **self._life.stamp(f"worker:{worker}", at), worker_id=worker, outcomes=outcomes
        )
        answer = self._life.attempt(lambda: self._life.use.report(command, self._life.platform))
        if answer.happened:
            refused = [word.run_id for word in words if not self._told(worker, word)]
            assert answer.value == refused, f"{worker} was refused {answer.value} instead of {refused}"
        return answer

    def _told(self, worker: str, word: Word) -> bool:
        now = self._life.now
        run = self._life.book.runs[word.run_id]
        if not self._life.book.holds(worker, word.run_id, word.attempt):
            return False
        match word.how:
            case "succeeded":
                self._life.book.release(run, "COMPLETED", now)
            case "failed":
                self._life.book.release(run, "FAILED", now)
            case "retry" if run.spent + 1 >= ATTEMPTS:
                self._life.book.release(run, "FAILED", now)
            case "cancelled":
                self._life.book.release(run, "CANCELLED", now)
            case "retry" | "handed_back" if run.stop_asked:
                self._life.book.release(run, "CANCELLED", now)
            case "retry":
                self._life.book.requeue(run, now, now + word.after, spent=True)
            case "handed_back":
                self._life.book.requeue(run, now, now, spent=False)
        return True

    def take_over(self) -> list[str]:
        """Whose lease ran out by the database's clock is taken over, and nobody else."""
        command = execution.TakeOver(**self._life.stamp("service", self._life.now))
        lapsed = self._life.book.lapsed(self._life.now)
        answer = self._life.attempt(lambda: self._life.use.take_over(command, self._life.platform))
        if not answer.happened:
            return []
        assert sorted(answer.value) == sorted(run.run_id for run in lapsed), f"{answer.value} instead of {lapsed}"
        for run in lapsed:
            self._life.book.expired(run, self._life.now)
        return list(answer.value)


def _outcome(word: Word, at: datetime) -> execution.Outcome:
    ways: dict[str, dict[str, Any]] = {
        "succeeded": {"report": RunReport(succeeded=True, rows=1)},
        "failed": {"report": RunReport(succeeded=False, error="Table not found.")},
        "retry": {"report": RunReport(succeeded=False, error="503", can_pass=True), "retry_after": word.after},
        "cancelled": {"cancelled": True},
        "handed_back": {"handed_back": "The worker shut down."},
        "step": {
            "steps": (
                StepReport(index=0, name="load", type="bigquery_query", status="COMPLETED", started_at=at, ended_at=at),
            )
        },
    }
    return execution.Outcome(
        run_id=word.run_id, customer_id=word.customer_id, attempt=word.attempt, at=at, **ways[word.how]
    )
