"""A customer's subscription: the plan, and which runs it has room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any, Final

from domain.plans import LIMITS, Limits, Overrides, Plan
from domain.refusals import Conflict, Forbidden, Limit, QuotaExceeded, Refusal
from domain.subscription_events import (
    AdmissionsReturned,
    Cancelled,
    LimitsOverridden,
    Opened,
    PlanChanged,
    Reactivated,
    RunRefused,
    RunsAdmitted,
    SlotReleased,
    SlotTaken,
    SubscriptionEvent,
    Suspended,
    UsageReset,
)
from domain.usage import Usage, first_of_next_month


class Status(StrEnum):
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    CANCELLED = "CANCELLED"


_DAYS_KEPT: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Which runs were let in, why the others were not, and the events that say so.

    `day` is the UTC day whose units were taken: a unit that is given back goes back there.
    """

    admitted: tuple[str, ...]
    day: date
    refusal: Refusal | None
    events: tuple[SubscriptionEvent, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """A waiting run that may be started: a scheduled one names its `pipeline`, whose runs go one after another."""

    run_id: str
    pipeline: str | None = None
    backfill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """Plan, limits and usage of one customer: decides whether a run is admitted and when it may start."""

    customer_id: str
    plan: Plan
    limits: Limits
    usage: Usage
    overrides: Overrides = field(default_factory=Overrides)
    status: Status = Status.ACTIVE
    running: frozenset[str] = frozenset()
    backfilling: frozenset[str] = frozenset()
    busy: Mapping[str, str] = field(default_factory=dict)
    """The scheduled runs among the running ones, each with its pipeline."""
    admitted_by_day: Mapping[date, int] = field(default_factory=dict)
    refused: frozenset[tuple[Limit, date]] = frozenset()
    reset_day: date | None = None
    """The day whose count, and the first of the month whose count, an operator let begin anew."""
    reset_month: date | None = None

    # rules, in the order in which they are checked

    def _active(self) -> Refusal | None:
        return None if self.status is Status.ACTIVE else Forbidden("Account suspended")

    def _open(self) -> None:
        if self.status is Status.CANCELLED:
            raise Conflict("The subscription was cancelled.")

    def _daily(self, usage: Usage) -> QuotaExceeded | None:
        allowed = self.limits.max_pipelines_per_day
        midnight = datetime.combine(usage.day + timedelta(days=1), time(0), UTC)
        full = usage.admitted >= allowed
        return QuotaExceeded(Limit.DAILY, usage.admitted, allowed, resets_at=midnight) if full else None

    def _monthly(self, usage: Usage) -> QuotaExceeded | None:
        allowed = self.limits.max_pipelines_per_month
        full = usage.month_admitted >= allowed
        first = first_of_next_month(usage.day)
        return QuotaExceeded(Limit.MONTHLY, usage.month_admitted, allowed, resets_on=first) if full else None

    def _concurrent(self, usage: Usage) -> QuotaExceeded | None:
        allowed = self.limits.max_concurrent_pipelines
        return QuotaExceeded(Limit.CONCURRENT, usage.running, allowed) if usage.running >= allowed else None

    def _room(self, usage: Usage, *, starting: bool) -> int:
        """How many runs the limits let in."""
        if starting and self._concurrent(usage):
            return 0
        today = self.limits.max_pipelines_per_day - usage.admitted
        this_month = self.limits.max_pipelines_per_month - usage.month_admitted
        return max(0, min(today, this_month))

    # decisions

    def admit(self, run_ids: Sequence[str], now: datetime, *, starting: bool) -> Admission:
        """Let in as many of `run_ids`, in order, as the day and the month have room for.

        A caller who is `starting` the run right away is refused when all concurrent places are taken; a scheduled run
        is not: it waits for one. A refusal is recorded at most once per limit and day.
        """
        usage = self.usage.at(now)
        admitted: tuple[str, ...] = ()
        refusal = self._active()
        if refusal is None:
            admitted = tuple(run_ids[: self._room(usage, starting=starting)])
            usage = replace(
                usage, admitted=usage.admitted + len(admitted), month_admitted=usage.month_admitted + len(admitted)
            )
            if len(admitted) < len(run_ids):
                refusal = self._daily(usage) or self._monthly(usage) or self._concurrent(usage)
        events: list[SubscriptionEvent] = []
        if admitted:
            events.append(RunsAdmitted(run_ids=admitted, usage=usage, limits=self.limits))
        if isinstance(refusal, QuotaExceeded) and not self._recorded(refusal.limit, usage.day):
            used, allowed = refusal.used, refusal.allowed
            events.append(RunRefused(limit=refusal.limit, used=used, allowed=allowed, day=usage.day))
        return Admission(admitted=admitted, day=usage.day, refusal=refusal, events=tuple(events))

    def _recorded(self, limit: Limit, day: date) -> bool:
        """A refusal of a later day counts too: around midnight some clocks still show the day before."""
        return any(recorded is limit and on >= day for recorded, on in self.refused)

    def places(self) -> int:
        """How many more runs may start now."""
        if self.status is not Status.ACTIVE:
            return 0
        return max(0, self.limits.max_concurrent_pipelines - len(self.running))

    def startable(self, waiting: Sequence[Start]) -> list[Start]:
        """Which of the `waiting` runs may start now, in their order.

        Each needs a place. Back-fill takes at most half of them, so that it never stands in the way of today's runs;
        of the scheduled runs of one pipeline one runs at a time.
        """
        places = self.places()
        half = max(1, self.limits.max_concurrent_pipelines // 2) - len(self.backfilling)
        busy = set(self.busy.values())
        starts: list[Start] = []
        for start in waiting:
            if len(starts) >= places:
                break
            if start.pipeline in busy or (start.backfill and half <= 0):
                continue
            half -= start.backfill
            if start.pipeline is not None:
                busy.add(start.pipeline)
            starts.append(start)
        return starts

    def take_slots(self, starts: Sequence[Start], now: datetime) -> tuple[SubscriptionEvent, ...]:
        """Start these runs. Raises the refusal when they may not all start; one that holds a place takes no other."""
        new = [start for start in starts if start.run_id not in self.running]
        if not new:
            return ()
        usage = self.usage.at(now)
        if refusal := self._active():
            raise refusal
        if len(new) > self.places():
            raise self._concurrent(usage) or QuotaExceeded(
                Limit.CONCURRENT, usage.running, self.limits.max_concurrent_pipelines
            )
        if len(self.startable(new)) < len(new):
            raise Conflict("A run of the same pipeline has not ended, or back-fill has taken its half of the places.")
        return (
            SlotTaken(
                run_ids=tuple(start.run_id for start in new),
                usage=replace(usage, running=len(self.running) + len(new)),
                limits=self.limits,
                backfill=tuple(start.run_id for start in new if start.backfill),
                pipelines={start.run_id: start.pipeline for start in new if start.pipeline is not None},
            ),
        )

    def release_slots(self, outcomes: Mapping[str, bool | None], now: datetime) -> tuple[SubscriptionEvent, ...]:
        """Give back the places of runs that ended (True: succeeded, False: failed, None: neither). Once only."""
        held = {r: outcome for r, outcome in outcomes.items() if r in self.running}
        if not held:
            return ()
        usage = self.usage.at(now)
        usage = replace(
            usage,
            running=len(self.running) - len(held),
            succeeded=usage.succeeded + sum(1 for o in held.values() if o is True),
            failed=usage.failed + sum(1 for o in held.values() if o is False),
        )
        return (SlotReleased(run_ids=tuple(held), usage=usage, limits=self.limits),)

    def return_admissions(self, run_ids: Sequence[str], day: date, now: datetime) -> tuple[SubscriptionEvent, ...]:
        """Give units of `day` back: their runs never started.

        A day too old to be known has nothing to be given, nor has one, or a month, that an operator let begin anew:
        its units were given back then.
        """
        if day not in self.admitted_by_day:
            return ()
        usage = self.usage.at(now)
        that_day, month_admitted = self.admitted_by_day[day], usage.month_admitted
        if day != self.reset_day:
            that_day = max(0, that_day - len(run_ids))
        if _month(day) == _month(usage.day) != self.reset_month:
            month_admitted = max(0, month_admitted - len(run_ids))
        usage = replace(usage, admitted=that_day if day == usage.day else usage.admitted, month_admitted=month_admitted)
        return (
            AdmissionsReturned(
                run_ids=tuple(run_ids), day=day, admitted_that_day=that_day, usage=usage, limits=self.limits
            ),
        )

    def change_plan(self, plan: Plan, reason: str, now: datetime) -> tuple[SubscriptionEvent, ...]:
        """Another plan; an operator's exceptions stay in force."""
        self._open()
        if plan is self.plan:
            return ()
        limits = self.overrides.over(LIMITS[plan])
        return (PlanChanged(plan=plan, limits=limits, usage=self.usage.at(now), reason=reason),)

    def override_limits(self, overrides: Overrides, reason: str, now: datetime) -> tuple[SubscriptionEvent, ...]:
        """Replace the operator's exceptions by `overrides`."""
        self._open()
        overrides.check()
        if overrides == self.overrides:
            return ()
        limits = overrides.over(LIMITS[self.plan])
        return (LimitsOverridden(overrides=overrides, limits=limits, usage=self.usage.at(now), reason=reason),)

    def reset_usage(self, now: datetime, reason: str, *, daily: bool, monthly: bool) -> tuple[SubscriptionEvent, ...]:
        """Count the day, the month, or both, from zero again."""
        self._open()
        usage = self.usage.at(now)
        usage = replace(
            usage,
            admitted=0 if daily else usage.admitted,
            month_admitted=0 if monthly else usage.month_admitted,
        )
        return (UsageReset(usage=usage, limits=self.limits, reason=reason),)

    def recount(self, actually_running: Sequence[str], now: datetime, reason: str) -> tuple[SubscriptionEvent, ...]:
        """Give back places held by runs that are not running: `actually_running` is what the runs themselves say."""
        self._open()
        stale = self.running - frozenset(actually_running)
        if not stale:
            usage = replace(self.usage.at(now), running=len(self.running))
            return (UsageReset(usage=usage, limits=self.limits, reason=reason),)
        return self.release_slots(dict.fromkeys(sorted(stale)), now)

    def pause(self, reason: str) -> tuple[SubscriptionEvent, ...]:
        return (Suspended(reason=reason),) if self.status is Status.ACTIVE else ()

    def resume(self, reason: str) -> tuple[SubscriptionEvent, ...]:
        return (Reactivated(reason=reason),) if self.status is Status.SUSPENDED else ()

    def cancel(self, reason: str) -> tuple[SubscriptionEvent, ...]:
        """No run is admitted or started any more, for good."""
        return () if self.status is Status.CANCELLED else (Cancelled(reason=reason),)


def _month(day: date) -> date:
    return day.replace(day=1)


def open_subscription(customer_id: str, plan: Plan, now: datetime) -> Opened:
    usage = Usage(day=now.astimezone(UTC).date())
    return Opened(customer_id=customer_id, plan=plan, limits=LIMITS[plan], usage=usage)


# --- fold ---------------------------------------------------------------------------------------------------------


def _counted(
    state: Subscription,
    usage: Usage,
    other: tuple[date, int] | None = None,
    **changed: Any,  # noqa: ANN401 - fields of a subscription
) -> Subscription:
    days = dict(state.admitted_by_day)
    days[usage.day] = usage.admitted
    if other is not None:
        days[other[0]] = other[1]
    if len(days) > _DAYS_KEPT:
        del days[min(days)]
    refused = frozenset(r for r in state.refused if r[1] >= usage.day)
    return replace(state, **{"usage": usage, "admitted_by_day": days, "refused": refused, **changed})


def _begun_anew(state: Subscription, usage: Usage) -> Subscription:
    before = state.usage
    day = usage.day == before.day and usage.admitted < before.admitted
    month = _month(usage.day) == _month(before.day) and usage.month_admitted < before.month_admitted
    return replace(
        state,
        reset_day=usage.day if day else state.reset_day,
        reset_month=_month(usage.day) if month else state.reset_month,
    )


def evolve(state: Subscription | None, event: SubscriptionEvent) -> Subscription:  # noqa: C901, PLR0911 - one case an event
    """What the subscription is after `event`."""
    if isinstance(event, Opened):
        opened = Subscription(customer_id=event.customer_id, plan=event.plan, limits=event.limits, usage=event.usage)
        return _counted(opened, event.usage)
    assert state is not None, "a subscription begins with Opened"  # noqa: S101 - the store keeps the order
    match event:
        case RunsAdmitted(usage=usage):
            return _counted(state, usage)
        case SlotTaken(run_ids=run_ids, usage=usage, backfill=backfill, pipelines=pipelines):
            return _counted(
                state,
                usage,
                running=state.running.union(run_ids),
                backfilling=state.backfilling.union(backfill),
                busy={**state.busy, **pipelines},
            )
        case SlotReleased(run_ids=run_ids, usage=usage):
            return _counted(
                state,
                usage,
                running=state.running.difference(run_ids),
                backfilling=state.backfilling.difference(run_ids),
                busy={run_id: pipeline for run_id, pipeline in state.busy.items() if run_id not in run_ids},
            )
        case AdmissionsReturned(usage=usage, day=day, admitted_that_day=that_day):
            return _counted(state, usage, (day, that_day))
        case RunRefused(limit=limit, day=day):
            others = frozenset(r for r in state.refused if r[0] is not limit)
            return replace(state, refused=others | {(limit, day)})
        case PlanChanged(plan=plan, limits=limits, usage=usage):
            return _counted(state, usage, plan=plan, limits=limits, refused=frozenset())
        case LimitsOverridden(overrides=overrides, limits=limits, usage=usage):
            return _counted(state, usage, overrides=overrides, limits=limits, refused=frozenset())
        case UsageReset(usage=usage):
            return _counted(_begun_anew(state, usage), usage, refused=frozenset())
        case Suspended():
            return replace(state, status=Status.SUSPENDED)
        case Reactivated():
            return replace(state, status=Status.ACTIVE)
        case Cancelled():
            return replace(state, status=Status.CANCELLED)
