"""From waiting runs to outcomes: claimed, reported, taken over. What workers do, many runs at a time."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from pydantic import ConfigDict, Field

from application.command import Command
from application.platform import Platform, Transaction
from application.ports import RunOrder, RunReport, StepReport
from application.runs import give_back, start_of
from application.session import Lease
from domain.pipeline_run import PipelineRun, RunState
from domain.refusals import Conflict
from domain.run_events import ExpectationMet, StepFinished, Trigger
from domain.subscription import Start, Status

LEASE_SECONDS: Final = 60.0
_LOOKS: Final = 20
_LOOK_FURTHER: Final = 8
_MOST_LOOKED_AT: Final = 500


class ClaimRuns(Command):
    """At most `limit` runs for one worker; or one named run, if it still waits."""

    worker_id: str
    limit: int = Field(default=1, ge=1, le=1000)
    run_id: str | None = None
    lease_seconds: float = LEASE_SECONDS


def claim_runs(command: ClaimRuns, platform: Platform) -> list[RunOrder]:
    """Take waiting runs whose customers have a concurrent place free; runs of suspended customers are skipped.

    Claim and place are taken in one transaction: two workers never get the same run, and no limit is exceeded.
    """
    orders: list[RunOrder] = []
    found = look = command.limit
    for _ in range(_LOOKS):
        claim = partial(_claim, command=command, look=look)
        orders, found = platform.transact(command, claim, of_many=command.run_id is None)
        if orders or not found or command.run_id is not None:
            break
        # What was found is skipped by now, cannot be read, or its customers' places were just taken: others may wait
        # behind it.
        look = min(max(look, 2) * _LOOK_FURTHER, max(look, _MOST_LOOKED_AT))
    return orders


def _claim(tx: Transaction, command: ClaimRuns, look: int) -> tuple[list[RunOrder], int]:
    """Claim at most `limit` of the first `look` runs; also returns how many were found."""
    found = tx.session.claimable_runs(look, command.run_id)
    if not found:
        return [], 0
    owners = sorted({customer_id for _, customer_id in found})
    now, subscriptions, runs, _ = tx.hold(owners, [(UUID(run_id), customer_id) for run_id, customer_id in found])
    waiting: dict[str, list[Start]] = defaultdict(list)
    allowed: set[str] = set()
    for (run_id, customer_id), run in zip(found, runs, strict=True):
        state = run.state
        # A row that somebody made or changed by hand must not keep the worker from all the others.
        if state is None or state.customer_id != customer_id or not state.ready(now):
            continue
        # Nor must one that cannot be read. Its state is None, and it waits until it can be.
        if subscriptions[customer_id].unreadable:
            continue
        if state.order.trigger_type is Trigger.ONBOARDING:
            allowed.add(run_id)
        elif subscriptions[customer_id].must("No such customer.").status is Status.ACTIVE:
            waiting[customer_id].append(start_of(run_id, state))
        else:
            run.append(state.skip(now, "The customer's account is suspended."))
            give_back(tx, now, run_id, state)
    for customer_id, starts in waiting.items():
        startable = subscriptions[customer_id].must("No such customer.").startable(starts)
        allowed.update(start.run_id for start in startable)
    chosen = [(r, run) for (r, _), run in zip(found, runs, strict=True) if r in allowed][: command.limit]
    claimed: dict[str, PipelineRun] = {}
    for run_id, run in chosen:
        run.append(run.must("").claim(command.worker_id, now, timedelta(seconds=command.lease_seconds)))
        claimed[run_id] = run.must("")
    for customer_id, starts in waiting.items():
        stream = subscriptions[customer_id]
        stream.append(stream.must("").take_slots([start for start in starts if start.run_id in claimed], now))
    tx.session.take_leases(
        [Lease(run_id, run.customer_id, command.worker_id, run.attempt) for run_id, run in claimed.items()],
        command.lease_seconds,
    )
    configurations = tx.session.configurations(
        {(run.customer_id, run.order.provider, run.order.domain) for run in claimed.values()}
    )
    worker = command.worker_id
    return [_order(run_id, run, worker, configurations) for run_id, run in claimed.items()], len(found)


def _order(
    run_id: str, run: PipelineRun, worker_id: str, configurations: Mapping[tuple[str, str, str], Mapping[str, Any]]
) -> RunOrder:
    order = run.order
    return RunOrder(
        run_id=run_id,
        customer_id=order.customer_id,
        provider=order.provider,
        domain=order.domain,
        template=order.template,
        attempt=run.attempt,
        trigger_type=order.trigger_type,
        run_date=order.run_date,
        parameters=order.parameters,
        configuration=configurations.get((order.customer_id, order.provider, order.domain), {}),
        worker_id=worker_id,
        last_attempt=run.last_attempt,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt ended, as its worker tells it. Exactly one of the four ways.

    `report` with `retry_after` set asks for another attempt after that time.
    """

    run_id: str
    customer_id: str
    attempt: int
    at: datetime
    steps: Sequence[StepReport] = ()
    report: RunReport | None = None
    retry_after: timedelta | None = None
    cancelled: bool = False
    handed_back: str | None = None


class ReportOutcomes(Command):
    """Outcomes, or steps on the way (an outcome that has none of the four), of runs that a worker holds."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    worker_id: str
    outcomes: tuple[Outcome, ...]


def report_outcomes(command: ReportOutcomes, platform: Platform) -> list[str]:
    """Record what became of the runs, and free their places; returns the runs that were refused.

    They were no longer this worker's (nothing is recorded of what a worker says whose lease was taken over), or they or
    their customer's subscription cannot be read.
    """
    return platform.transact(command, lambda tx: _report(tx, command), of_many=True)


def _report(tx: Transaction, command: ReportOutcomes) -> list[str]:
    tx.session.lock_runs([o.run_id for o in command.outcomes])
    owners = sorted({o.customer_id for o in command.outcomes})
    now, subscriptions, runs, _ = tx.hold(owners, [(UUID(o.run_id), o.customer_id) for o in command.outcomes])
    refused: list[str] = []
    released: dict[str, dict[str, bool | None]] = defaultdict(dict)
    for outcome, run in zip(command.outcomes, runs, strict=True):
        if run.unreadable or subscriptions[outcome.customer_id].unreadable:
            refused.append(outcome.run_id)
            continue
        try:
            for step in outcome.steps:
                run.append(run.must("No such run.").finish_step(command.worker_id, _step(step, outcome.attempt)))
            run.append(_ending(run.must("No such run."), command.worker_id, outcome, now))
        except Conflict:
            refused.append(outcome.run_id)
            continue
        state = run.must("No such run.").state
        if state is not RunState.RUNNING:
            success = {RunState.COMPLETED: True, RunState.FAILED: False}.get(state)
            released[outcome.customer_id][outcome.run_id] = success
    _release(tx, now, {c: subscriptions[c] for c in released}, released)
    return refused


def _release(
    tx: Transaction, now: datetime, subscriptions: Mapping[str, Any], released: Mapping[str, dict[str, bool | None]]
) -> None:
    """By the database's clock: a worker whose own is fast must not begin a customer's next day."""
    for customer_id, outcomes in released.items():
        stream = subscriptions[customer_id]
        stream.append(stream.must("No such customer.").release_slots(outcomes, now))
    tx.session.drop_leases([run_id for outcomes in released.values() for run_id in outcomes])


def _ending(run: PipelineRun, worker_id: str, outcome: Outcome, now: datetime) -> Sequence[Any]:
    """`now` is the database's clock: by it the queue says when a run is ready again."""
    if outcome.cancelled:
        return run.stop_cancelled(worker_id, outcome.attempt, outcome.at)
    if outcome.handed_back is not None:
        return run.hand_back(worker_id, outcome.attempt, now, outcome.handed_back)
    if outcome.report is None:
        return ()
    if outcome.report.succeeded:
        return run.complete(worker_id, outcome.attempt, outcome.at, outcome.report.rows)
    error = outcome.report.error or "The run failed without saying why."
    retry_at = None if outcome.retry_after is None else now + outcome.retry_after
    return run.fail(worker_id, outcome.attempt, outcome.at, error, retry_at)


def _step(step: StepReport, attempt: int) -> StepFinished:
    return StepFinished(
        attempt=attempt,
        index=step.index,
        name=step.name,
        type=step.type,
        status=step.status,
        started_at=step.started_at,
        ended_at=step.ended_at,
        rows=step.rows,
        error=step.error,
        target_table=step.target_table,
        expectations=tuple(
            ExpectationMet(name=e.name, passed=e.passed, severity=e.severity, observed=e.observed)
            for e in step.expectations
        ),
        metadata=step.metadata,
    )


class TakeOver(Command):
    limit: int = Field(default=100, ge=1, le=1000)


def take_over(command: TakeOver, platform: Platform) -> list[str]:
    """Bring runs whose lease ran out, by the database's clock, back to the queue; returns their ids.

    Those that cannot be read, or whose customer's subscription cannot, stay where they are; however many they are, the
    others behind them are found.
    """
    unreadable: set[str] = set()

    def work(tx: Transaction) -> list[str]:
        leases = tx.session.expired_leases(command.limit, unreadable)
        if not leases:
            return []
        owners = sorted({lease.customer_id for lease in leases})
        now, subscriptions, runs, _ = tx.hold(owners, [(UUID(lease.run_id), lease.customer_id) for lease in leases])
        released: dict[str, dict[str, bool | None]] = defaultdict(dict)
        for lease, run in zip(leases, runs, strict=True):
            if run.unreadable or subscriptions[lease.customer_id].unreadable:
                unreadable.add(lease.run_id)
                continue
            held = run.must("No such run.")
            run.append(held.expire(now, begun=lease.begun))
            state = run.must("No such run.").state
            released[lease.customer_id][lease.run_id] = False if state is RunState.FAILED else None
            if (held.state, state) == (RunState.RUNNING, RunState.CANCELLED) and not lease.begun:
                # Asked for before the worker began: if none before it did either, the run never started.
                give_back(tx, now, lease.run_id, replace(held, attempts_not_begun=held.attempts_not_begun + 1))
        _release(tx, now, {c: subscriptions[c] for c in released}, released)
        return [run_id for run_ids in released.values() for run_id in run_ids]

    passed = -1
    taken: list[str] = []
    while not taken and passed < len(unreadable):
        passed = len(unreadable)
        taken = platform.transact(command, work, of_many=True)
    return taken
