"""From due slots to waiting runs: one step, shared by the scheduler process and POST /scheduler/trigger."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Final
from uuid import UUID

from pydantic import Field

from application.command import Command
from application.pipelines import known_template
from application.platform import DuePipeline, Platform, Transaction
from application.ports import Catalogue
from domain.customer import PipelineChanged
from domain.identity import scheduled_run_id
from domain.pipeline_run import Priority, RunScheduled, Trigger
from domain.refusals import NotFound
from domain.schedule import Schedule, latest_slot, next_slot, run_date, slots_between

LATE: Final = timedelta(seconds=60)
CATCH_UP_WINDOW: Final = timedelta(hours=24)
CATCH_UP_AT_MOST: Final = 100
_MINUTES_IN_WINDOW: Final = 24 * 60 + 1


@dataclass(frozen=True, slots=True)
class Triggered:
    """What one pass did: due pipelines seen, runs queued, runs skipped (each with its reason in the history)."""

    triggered: int = 0
    queued: int = 0
    skipped: int = 0

    def __add__(self, other: "Triggered") -> "Triggered":
        return Triggered(self.triggered + other.triggered, self.queued + other.queued, self.skipped + other.skipped)


@dataclass(frozen=True, slots=True)
class _Planned:
    run_id: UUID
    due: DuePipeline
    order: RunScheduled
    skip: str | None


class TriggerSchedules(Command):
    """At most `batch` due pipelines are taken in one transaction, `limit` in one call."""

    batch: int = Field(default=500, ge=1, le=5000)
    limit: int = Field(default=100_000, ge=1)


def trigger_schedules(command: TriggerSchedules, platform: Platform, catalogue: Catalogue) -> Triggered:
    """Make the runs of all slots that are due at `command.at`, and move every pipeline on to its next slot.

    A slot becomes one run however many callers there are. Quota that is used up makes a SKIPPED run.
    """
    total = Triggered()
    while total.triggered < command.limit:
        done = platform.transact(command, lambda tx: _trigger_batch(tx, command, catalogue))
        total += done
        if done.triggered < command.batch:
            break
    return total


def _trigger_batch(tx: Transaction, command: TriggerSchedules, catalogue: Catalogue) -> Triggered:
    customer_ids = tx.session.due_customers(command.at, command.batch)
    tx.lock(customer_ids)
    due = tx.session.due_pipelines(customer_ids, command.at, command.batch)
    if not due:
        return Triggered()
    customer_ids = sorted({d.customer_id for d in due})
    subscriptions = tx.subscriptions(customer_ids)
    planned = [plan for d in due for plan in _plan(d, command.at, catalogue)]
    runs = tx.runs([(p.run_id, p.due.customer_id) for p in planned])
    fresh = [p for p in planned if not runs[p.run_id].exists]

    wanting: dict[str, list[_Planned]] = defaultdict(list)
    for p in fresh:
        if p.skip is None:
            wanting[p.due.customer_id].append(p)
    admitted: dict[str, date] = {}
    refusals: dict[str, str] = {}
    for customer_id, plans in wanting.items():
        subscription = subscriptions[customer_id]
        state = subscription.must("No such customer.")
        admission = state.admit([str(p.run_id) for p in plans], command.at, starting=False)
        subscription.append(admission.events)
        admitted.update(dict.fromkeys(admission.admitted, admission.day))
        refusals[customer_id] = str(admission.refusal)

    queued = 0
    for p in fresh:
        run = runs[p.run_id]
        if str(p.run_id) in admitted:
            run.append([replace(p.order, counted_on=admitted[str(p.run_id)])])
            queued += 1
        else:
            run.append([p.order])
            reason = p.skip or refusals[p.due.customer_id]
            run.append(run.must("").skip(command.at, reason))
    _move_on_the_rest(tx, command.at, due, {p.due.config_id for p in fresh})
    return Triggered(len(due), queued, len(fresh) - queued)


def _move_on_the_rest(tx: Transaction, now: datetime, due: Sequence[DuePipeline], moved: set[str]) -> None:
    """A due slot whose run exists already (its pipeline was changed meanwhile): only the next slot is to be found."""
    rest = [d for d in due if d.config_id not in moved]
    customers = tx.customers([d.customer_id for d in rest])
    for d in rest:
        customer = customers[d.customer_id]
        pipeline = customer.must("No such customer.").pipeline(d.config_id)
        slot = next_slot(Schedule(d.cron, d.timezone), now)
        customer.append([PipelineChanged(config_id=d.config_id, pipeline=pipeline, next_run_time=slot)])


def _plan(due: DuePipeline, now: datetime, catalogue: Catalogue) -> list[_Planned]:
    """The runs that a due pipeline gets, oldest slot first."""
    schedule = Schedule(due.cron, due.timezone)
    if now - due.next_run_time <= LATE:
        slots, following = [due.next_run_time], next_slot(schedule, due.next_run_time)
    else:
        slots, following = _missed_slots(due, schedule, now), next_slot(schedule, now)
    try:
        template = known_template(catalogue, due.provider, due.domain, due.template)
        unknown = None
    except NotFound as error:
        template, unknown = None, str(error)
    return [
        _Planned(
            run_id=scheduled_run_id(due.config_id, slot),
            due=due,
            order=RunScheduled(
                customer_id=due.customer_id,
                provider=due.provider,
                domain=due.domain,
                template=due.template,
                pipeline_id=template.id if template else due.template,
                trigger_type=Trigger.SCHEDULED,
                trigger_by="scheduler",
                run_date=run_date(slot, due.timezone, due.date_offset_days),
                scheduled_for=slot,
                priority=Priority.CATCH_UP if now - slot > LATE else Priority.SCHEDULED,
                config_id=due.config_id,
                next_run_time=following,
                missed_since=due.next_run_time if slot == slots[0] and slot > due.next_run_time else None,
                parameters=due.parameters,
            ),
            skip=unknown or _reason_to_skip(due, slot, now, first=slot == slots[0]),
        )
        for slot in slots
    ]


def _missed_slots(due: DuePipeline, schedule: Schedule, now: datetime) -> list[datetime]:
    """The slots that a late pipeline still gets a run for, oldest first."""
    if due.catch_up == "all":
        since = max(due.next_run_time, now - CATCH_UP_WINDOW) - timedelta(microseconds=1)
        slots = slots_between(schedule, since, now, _MINUTES_IN_WINDOW)[-CATCH_UP_AT_MOST:]
    else:
        newest = latest_slot(schedule, due.next_run_time - timedelta(microseconds=1), now)
        slots = [] if newest is None else [newest]
    return slots or [due.next_run_time]


def _reason_to_skip(due: DuePipeline, slot: datetime, now: datetime, *, first: bool) -> str | None:
    if due.catch_up == "none" and now - slot > LATE:
        return "The slot was missed, and the pipeline's catch_up is none."
    if due.overlap == "skip" and (due.active_runs or not first):
        return "An earlier run of this pipeline has not ended, and its overlap is skip."
    return None
