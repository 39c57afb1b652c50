"""Which runs a due pipeline gets: one a slot, in order; what was missed, what overlaps, and when each may start."""

from datetime import date, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from application.pipelines import known_template
from application.ports import Catalogue
from application.session import DuePipeline
from domain.identity import scheduled_run_id
from domain.pipeline_run import Priority
from domain.refusals import Invalid, NotFound
from domain.run_events import RunScheduled, Trigger
from domain.schedule import Schedule, jitter, latest_slot, next_slot, run_date, slots_between

LATE: Final = timedelta(seconds=60)
CATCH_UP_WINDOW: Final = timedelta(hours=24)
CATCH_UP_AT_MOST: Final = 100
_MINUTES_IN_WINDOW: Final = 24 * 60 + 1


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A slot's run, to be ordered once it is known on which day it counts.

    `superseded`: a newer slot, seen together with it, ends it before it could wait. `unreadable`: the pipeline's
    schedule was valid once and is no more.
    """

    run_id: UUID
    due: DuePipeline
    slot: datetime
    pipeline_id: str
    run_date: date
    priority: Priority
    next_run_time: datetime | None = None
    missed_since: datetime | None = None
    not_before: datetime | None = None
    skip: str | None = None
    superseded: bool = False
    unreadable: bool = False

    def order(self, counted_on: date | None = None) -> RunScheduled:
        """The event that makes the run."""
        due = self.due
        return RunScheduled(
            customer_id=due.customer_id,
            provider=due.provider,
            domain=due.domain,
            template=due.template,
            pipeline_id=self.pipeline_id,
            trigger_type=Trigger.SCHEDULED,
            trigger_by="scheduler",
            run_date=self.run_date,
            scheduled_for=self.slot,
            priority=self.priority,
            config_id=due.config_id,
            counted_on=counted_on,
            next_run_time=self.next_run_time,
            missed_since=self.missed_since,
            parameters=due.parameters,
            not_before=self.not_before,
        )


def plan(due: DuePipeline, now: datetime, catalogue: Catalogue) -> list[Planned]:
    """The runs that a due pipeline gets at `now`, oldest slot first; never empty.

    A pipeline whose schedule cannot be read gets one, which says so.
    """
    schedule = Schedule(due.cron, due.timezone)
    try:
        slots, following = _slots(due, schedule, now)
    except Invalid as error:
        # Time zones are given up now and then. Everybody else's slots must come all the same.
        return [
            Planned(
                run_id=scheduled_run_id(due.config_id, due.next_run_time),
                due=due,
                slot=due.next_run_time,
                pipeline_id=due.template,
                run_date=run_date(due.next_run_time, "UTC", 0),
                priority=_priority(due.next_run_time, now),
                skip=f"The pipeline rests: {error}",
                unreadable=True,
            )
        ]
    try:
        template = known_template(catalogue, due.provider, due.domain, due.template)
        unknown = None
    except NotFound as error:
        template, unknown = None, str(error)
    return [
        Planned(
            run_id=scheduled_run_id(due.config_id, slot),
            due=due,
            slot=slot,
            pipeline_id=template.id if template else due.template,
            run_date=run_date(slot, due.timezone, due.date_offset_days),
            priority=_priority(slot, now),
            next_run_time=following,
            missed_since=due.next_run_time if slot == slots[0] and slot > due.next_run_time else None,
            not_before=_not_before(due, slot, now),
            skip=unknown or _reason_to_skip(due, slot, now, first=slot == slots[0]),
            superseded=due.overlap == "cancel_running" and slot != slots[-1],
        )
        for slot in slots
    ]


def _priority(slot: datetime, now: datetime) -> Priority:
    return Priority.CATCH_UP if now - slot > LATE else Priority.SCHEDULED


def _slots(due: DuePipeline, schedule: Schedule, now: datetime) -> tuple[list[datetime], datetime]:
    """The slots that become runs now, oldest first, and the one that the pipeline then waits for."""
    if now - due.next_run_time <= LATE:
        return [due.next_run_time], next_slot(schedule, due.next_run_time)
    return _missed_slots(due, schedule, now), next_slot(schedule, now)


def _not_before(due: DuePipeline, slot: datetime, now: datetime) -> datetime | None:
    """When a worker may have the run at the earliest: what is late already is not held up further."""
    if due.jitter_seconds == 0 or now - slot > LATE:
        return None
    return slot + jitter(due.config_id, timedelta(seconds=due.jitter_seconds))


def _missed_slots(due: DuePipeline, schedule: Schedule, now: datetime) -> list[datetime]:
    """The slots that a late pipeline still gets a run for, oldest first."""
    if due.catch_up == "all":
        since = max(due.next_run_time, now - CATCH_UP_WINDOW) - timedelta(microseconds=1)
        slots = slots_between(schedule, since, now, _MINUTES_IN_WINDOW)[-CATCH_UP_AT_MOST:]
        if slots:
            return slots
    newest = latest_slot(schedule, due.next_run_time - timedelta(microseconds=1), now)
    return [newest or due.next_run_time]


def _reason_to_skip(due: DuePipeline, slot: datetime, now: datetime, *, first: bool) -> str | None:
    if due.catch_up == "none" and now - slot > LATE:
        return "The slot was missed, and the pipeline's catch_up is none."
    if due.overlap == "skip" and (due.active_runs or not first):
        return "An earlier run of this pipeline has not ended, and its overlap is skip."
    return None
