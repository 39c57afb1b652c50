"""From due slots to waiting runs: one step, shared by the scheduler process and POST /scheduler/trigger."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import count
from typing import Final
from uuid import UUID

from pydantic import Field

from application.command import Command
from application.platform import Platform, Transaction
from application.ports import Catalogue
from application.session import ONE_LANE, DuePipeline, Lane, Superseded
from application.slots import Planned, plan
from application.streams import Stream
from domain.customer_events import PipelineChanged
from domain.pipeline_run import PipelineRun
from domain.run_events import RunEvent
from domain.schedule import Schedule, next_slot
from domain.subscription import Subscription, evolve
from domain.subscription_events import SubscriptionEvent

OVERLAPPED: Final = "A newer slot of this pipeline came, and its overlap is cancel_running."

Run = Stream[PipelineRun, RunEvent]


@dataclass(frozen=True, slots=True)
class Triggered:
    """What one pass did: due pipelines seen, runs queued, runs skipped (each with its reason in the history)."""

    triggered: int = 0
    queued: int = 0
    skipped: int = 0

    def __add__(self, other: "Triggered") -> "Triggered":
        return Triggered(self.triggered + other.triggered, self.queued + other.queued, self.skipped + other.skipped)


class TriggerSchedules(Command):
    """At most `batch` due pipelines are taken in one transaction, and no more of them than make `runs` runs.

    When more are due than fit into one, `lanes` transactions go on side by side, each with customers of its own.
    """

    batch: int = Field(default=500, ge=1, le=5000)
    runs: int = Field(default=2000, ge=100, le=100_000)
    lanes: int = Field(default=2, ge=1, le=16)


def trigger_schedules(command: TriggerSchedules, platform: Platform, catalogue: Catalogue) -> Triggered:
    """Make the runs of all slots that are due at `command.at`, and move every pipeline on to its next slot.

    A slot becomes one run however many callers there are. Quota that is used up makes a SKIPPED run. Pipelines stay due
    whose customer, subscription or runs cannot be read; however many they are, the others behind them are found.
    """

    def batch(lane: Lane, unreadable: set[str]) -> Triggered | None:
        tries = count()

        def work(tx: Transaction) -> Triggered | None:
            return _trigger_batch(tx, command, catalogue, lane, unreadable, look=next(tries) > 0)

        return platform.transact(command, work, of_many=True)

    def go(lane: Lane) -> Triggered:
        total, unreadable = Triggered(), set[str]()
        while True:
            passed = len(unreadable)
            done = batch(lane, unreadable)
            if done is None:
                return total + in_lanes()
            # Less than a full batch says nothing: others may have taken a part of what was seen. When they took all of
            # it, they go on themselves.
            if not done.triggered and len(unreadable) == passed:
                return total
            total += done

    def in_lanes() -> Triggered:
        with ThreadPoolExecutor(command.lanes, thread_name_prefix="trigger") as pool:
            lanes = [Lane(number, command.lanes) for number in range(command.lanes)]
            return sum(pool.map(go, lanes), Triggered())

    return go(ONE_LANE)


@dataclass(slots=True)
class _Turn:
    """A planned run, and what its customer's quota says of it: the day it counts on, or why it was not let in."""

    plan: Planned
    run: Run
    counted_on: date | None = None
    refusal: str | None = None


def _trigger_batch(
    tx: Transaction, command: TriggerSchedules, catalogue: Catalogue, lane: Lane, unreadable: set[str], *, look: bool
) -> Triggered | None:
    """One batch besides the pipelines that are `unreadable`; those that turn out to be are added to them.

    None, and nothing done, when a full batch and maybe more is due, which can go in lanes. `look` whether a slot's run
    exists already: that is seldom so, and otherwise the transaction ends with `Superseded`.
    """
    seen = tx.session.due_customers(command.at, command.batch, lane, unreadable)
    if sum(seen.values()) == command.batch and lane == ONE_LANE and command.lanes > 1:
        return None
    customer_ids = sorted(seen)
    if not customer_ids:
        return Triggered()
    overlapped = _lock_overlapped(tx, customer_ids, command.at)
    tx.lock(customer_ids)
    due = tx.session.due_pipelines(customer_ids, command.at, command.batch, unreadable)
    if not due:
        return Triggered()
    subscriptions = tx.subscriptions(sorted({d.customer_id for d in due}))
    unreadable.update(d.config_id for d in due if subscriptions[d.customer_id].unreadable)
    due, planned = _planned([d for d in due if d.config_id not in unreadable], command, catalogue)
    earlier = _earlier_runs(tx, due, command.at, overlapped)
    wanted = [(p.run_id, p.due.customer_id) for p in planned]
    runs = tx.load([], wanted)[1] if look else tx.new_runs(wanted)
    taken, turns = _readable(tx, due, list(map(_Turn, planned, runs)), earlier)
    unreadable.update({d.config_id for d in due} - {d.config_id for d in taken})
    due = taken
    fresh = [turn for turn in turns if not turn.run.exists]

    _admit(tx, fresh, earlier, command.at)
    admitted = [turn for turn in fresh if turn.counted_on is not None]
    for turn in fresh:
        run = turn.run
        run.append([turn.plan.order(counted_on=turn.counted_on)])
        if turn.counted_on is None:
            reason = turn.plan.skip or turn.refusal
            state = run.must("")
            run.append(state.cancel(command.at, OVERLAPPED) if reason is None else state.skip(command.at, reason))
    _end(tx, [run for turn in admitted for run in earlier.get(turn.plan.due.config_id, ())], command.at)
    senseless = [turn.plan.due for turn in turns if turn.plan.unreadable]
    _rest(tx, senseless)
    _move_on_the_rest(tx, command.at, due, {d.config_id for d in [*senseless, *(turn.plan.due for turn in fresh)]})
    return Triggered(len(due), len(admitted), len(fresh) - len(admitted))


def _planned(
    due: Sequence[DuePipeline], command: TriggerSchedules, catalogue: Catalogue
) -> tuple[Sequence[DuePipeline], list[Planned]]:
    """Which of the due pipelines have their turn now, the first ones, and what they get.

    Others wait for this transaction's customers, and for the log, until it is done.
    """
    planned: list[Planned] = []
    for number, pipeline in enumerate(due):
        runs = plan(pipeline, command.at, catalogue)
        if planned and len(planned) + len(runs) > command.runs:
            return due[:number], planned
        planned += runs
    return due, planned


def _readable(
    tx: Transaction, due: Sequence[DuePipeline], turns: list[_Turn], earlier: Mapping[str, Sequence[Run]]
) -> tuple[Sequence[DuePipeline], list[_Turn]]:
    """Without the pipelines about which nothing can be decided: they must not keep all others from their slots."""
    damaged = {turn.plan.due.config_id for turn in turns if turn.run.unreadable}
    damaged |= {config_id for config_id, found in earlier.items() if any(run.unreadable for run in found)}
    turns = [turn for turn in turns if turn.plan.due.config_id not in damaged]
    # Those whose slot makes no new run are moved on by their customer.
    moved = {turn.plan.due.config_id for turn in turns if not turn.plan.unreadable and not turn.run.exists}
    passed = moved | damaged
    rest = [d for d in due if d.config_id not in passed]
    customers = tx.customers([d.customer_id for d in rest])
    damaged |= {d.config_id for d in rest if customers[d.customer_id].unreadable}
    return [d for d in due if d.config_id not in damaged], [t for t in turns if t.plan.due.config_id not in damaged]


def _lock_overlapped(tx: Transaction, customer_ids: Sequence[str], now: datetime) -> set[str]:
    """Lock the runs that due slots may end, and their leases: those come before customers in the order of locks."""
    found = tx.session.overlapped_runs(customer_ids, now)
    run_ids = {run_id for run_ids in found.values() for run_id in run_ids}
    if run_ids:
        tx.session.lock_runs(sorted(run_ids))
    return run_ids


def _earlier_runs(tx: Transaction, due: Sequence[DuePipeline], now: datetime, locked: set[str]) -> dict[str, list[Run]]:
    """The runs that wait or run for due pipelines whose overlap is cancel_running, by config_id.

    Raises `Superseded` when another one came into being before its customer was locked.
    """
    customers = {d.config_id: d.customer_id for d in due if d.overlap == "cancel_running"}
    if not customers:
        return {}
    found = tx.session.overlapped_runs(sorted(set(customers.values())), now)
    found = {config_id: sorted(run_ids) for config_id, run_ids in found.items() if config_id in customers}
    if not locked.issuperset(run_id for run_ids in found.values() for run_id in run_ids):
        raise Superseded("A run came that a slot may have to end.")
    runs = tx.runs([(UUID(r), customers[config_id]) for config_id, run_ids in found.items() for r in run_ids])
    return {config_id: [runs[UUID(run_id)] for run_id in run_ids] for config_id, run_ids in found.items()}


def _admit(tx: Transaction, fresh: Sequence[_Turn], earlier: Mapping[str, Sequence[Run]], now: datetime) -> None:
    """Find out which runs their customers' quotas let in, and on which day they count."""
    wanting: dict[str, list[_Turn]] = defaultdict(list)
    for turn in fresh:
        if turn.plan.skip is None and not turn.plan.superseded:
            wanting[turn.plan.due.customer_id].append(turn)
    for customer_id, turns in wanting.items():
        subscription = tx.subscription(customer_id)
        for group, units in _groups(turns, earlier):
            returned, freed = _returned(subscription.must("No such customer."), units, now)
            admission = freed.admit([str(turn.plan.run_id) for turn in group], now, starting=False)
            subscription.append((*returned, *admission.events) if admission.admitted else admission.events)
            let_in = len(admission.admitted)
            for turn in group[:let_in]:
                turn.counted_on = admission.day
            for turn in group[let_in:]:
                turn.refusal = str(admission.refusal)


def _groups(
    turns: Sequence[_Turn], earlier: Mapping[str, Sequence[Run]]
) -> Iterator[tuple[Sequence[_Turn], Mapping[date, Sequence[str]]]]:
    """What is asked for together, with the units of quota that it would give back.

    Who takes the place of a waiting run gets its unit, and takes it away only when let in: each by itself.
    """
    others = []
    for turn in turns:
        if units := _units(earlier.get(turn.plan.due.config_id, ())):
            yield [turn], units
        else:
            others.append(turn)
    if others:
        yield others, {}


def _units(earlier: Iterable[Run]) -> dict[date, list[str]]:
    """The units of quota that these runs would give back, by the day they were taken from."""
    units: dict[date, list[str]] = defaultdict(list)
    for run in earlier:
        state = run.must("No such run.")
        if not state.started and state.order.counted_on is not None:
            units[state.order.counted_on].append(str(run.stream_id))
    return units


def _returned(
    state: Subscription, units: Mapping[date, Sequence[str]], now: datetime
) -> tuple[list[SubscriptionEvent], Subscription]:
    """The events that give these units back, and what the subscription would be after them."""
    events: list[SubscriptionEvent] = []
    for day, run_ids in units.items():
        for event in state.return_admissions(run_ids, day, now):
            events.append(event)
            state = evolve(state, event)
    return events, state


def _end(tx: Transaction, earlier: Sequence[Run], now: datetime) -> None:
    """End what a newer slot overlaps: what waits at once, what runs at its worker's next heartbeat."""
    for run in earlier:
        run.append(run.must("No such run.").cancel(now, OVERLAPPED))
    running = [str(run.stream_id) for run in earlier if not run.must("No such run.").state.ended]
    if running:
        tx.session.ask_to_stop(running)


def _rest(tx: Transaction, due: Sequence[DuePipeline]) -> None:
    """Pipelines whose schedule cannot be read rest until their owner gives them another one."""
    customers = tx.customers([d.customer_id for d in due])
    for d in due:
        customer = customers[d.customer_id]
        pipeline = replace(customer.must("No such customer.").pipeline(d.config_id), is_active=False)
        customer.append([PipelineChanged(config_id=d.config_id, pipeline=pipeline, next_run_time=None)])


def _move_on_the_rest(tx: Transaction, now: datetime, due: Sequence[DuePipeline], moved: set[str]) -> None:
    """A due slot whose run exists already (its pipeline was changed meanwhile): only the next slot is to be found."""
    rest = [d for d in due if d.config_id not in moved]
    customers = tx.customers([d.customer_id for d in rest])
    for d in rest:
        customer = customers[d.customer_id]
        pipeline = customer.must("No such customer.").pipeline(d.config_id)
        slot = next_slot(Schedule(d.cron, d.timezone), now)
        customer.append([PipelineChanged(config_id=d.config_id, pipeline=pipeline, next_run_time=slot)])
