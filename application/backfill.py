"""Back-fill: runs of a scheduled pipeline for days that lie behind, one for each day, in order."""

from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final

from pydantic import Field

from application.command import Command, Line, new_id
from application.pipelines import known_template
from application.platform import Platform, Transaction
from application.ports import Catalogue
from domain.customer_events import Pipeline
from domain.identity import backfill_run_id
from domain.pipeline_run import Priority
from domain.refusals import Conflict, Invalid, QuotaExceeded, Refusal
from domain.run_events import RunScheduled, Trigger
from domain.schedule import run_date

MOST_DAYS: Final = 366


class Backfill(Command):
    """Both days included. A `backfill_id` that was used before goes on with that back-fill."""

    customer_id: str
    config_id: str
    first: date
    last: date
    reason: Line | None = None
    backfill_id: str = Field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class Backfilled:
    """Of the days asked for: how many have a run now, how many found no room, the first of those, and why."""

    backfill_id: str
    queued: int
    refused: int
    next_from: date | None
    refusal: str | None


def backfill(command: Backfill, platform: Platform, catalogue: Catalogue) -> Backfilled:
    """Queue a run for each day, the oldest first, as far as the day's and the month's quota go.

    Days that have a run of this back-fill keep it, so asking again queues what was refused and fits now. Raises
    `QuotaExceeded` (recorded once per limit and day) when no day has a run, `Forbidden` for a suspended customer,
    `Invalid` for days that it cannot be, `NotFound` for an unknown pipeline, or one whose template is gone, and
    `Conflict` when the back-fill is one of another pipeline.
    """
    days = _days(command.first, command.last)

    def work(tx: Transaction) -> tuple[Backfilled, Refusal | None]:
        pipeline = tx.held_customer(command.customer_id).must("No such customer.").pipeline(command.config_id)
        template = known_template(catalogue, pipeline.provider, pipeline.domain, pipeline.template)
        if command.last > run_date(command.at, pipeline.timezone, 0):
            raise Invalid(f"Only days up to today can be filled in, today as it is in {pipeline.timezone}.")
        ids = {backfill_run_id(command.customer_id, command.backfill_id, day): day for day in days}
        runs = tx.runs([(run_id, command.customer_id) for run_id in ids])
        for run in runs.values():
            if run.exists and run.must("No such back-fill.").order.config_id != command.config_id:
                raise Conflict("This back-fill is one of another pipeline.")
        missing = [run_id for run_id, run in runs.items() if not run.exists]
        subscription = tx.subscription(command.customer_id)
        state = subscription.must("No such customer.")
        admission = state.admit([str(run_id) for run_id in missing], command.at, starting=False)
        subscription.append(admission.events)
        for run_id in missing[: len(admission.admitted)]:
            order = _order(command, pipeline, template.id, ids[run_id])
            runs[run_id].append([replace(order, counted_on=admission.day)])
        refused = [ids[run_id] for run_id in missing[len(admission.admitted) :]]
        done = Backfilled(
            backfill_id=command.backfill_id,
            queued=len(days) - len(refused),
            refused=len(refused),
            next_from=min(refused, default=None),
            refusal=str(admission.refusal) if refused else None,
        )
        return done, admission.refusal

    # The refusal is an event too: the transaction that records it must not be rolled back.
    done, refusal = platform.transact(command, work)
    if refusal is not None and not (done.queued and isinstance(refusal, QuotaExceeded)):
        raise refusal
    return done


def _days(first: date, last: date) -> list[date]:
    count = (last - first).days + 1
    if count < 1:
        raise Invalid("The first day must not lie behind the last one.")
    if count > MOST_DAYS:
        raise Invalid(f"At most {MOST_DAYS} days can be filled in at a time: ask for the others afterwards.")
    return [first + timedelta(days=number) for number in range(count)]


def _order(command: Backfill, pipeline: Pipeline, pipeline_id: str, day: date) -> RunScheduled:
    asked_by = command.by.kind
    return RunScheduled(
        customer_id=command.customer_id,
        provider=pipeline.provider,
        domain=pipeline.domain,
        template=pipeline.template,
        pipeline_id=pipeline_id,
        trigger_type=Trigger.BACKFILL,
        trigger_by=asked_by if command.reason is None else f"{asked_by}: {command.reason}",
        run_date=day,
        # The queue is in the order of these instants: a microsecond for each day keeps the days in theirs.
        scheduled_for=command.at + timedelta(microseconds=(day - command.first).days),
        priority=Priority.BACKFILL,
        config_id=command.config_id,
        parameters=pipeline.parameters,
        backfill_id=command.backfill_id,
    )
