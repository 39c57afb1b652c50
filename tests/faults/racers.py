"""What processes do in races: as the service does it, and as it must not be done."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx

from adapters.bootstrap import build, origin
from adapters.postgres import leases
from adapters.scheduler import trigger_now
from adapters.settings import Settings
from application.command import Command
from application.platform import Transaction
from application.ports import RunOrder, RunReport, StepReport
from domain.pipeline_run import Priority
from domain.refusals import Limit, QuotaExceeded
from domain.run_events import RunClaimed, RunScheduled, Trigger
from tests.application.world import World
from tests.http.running import ADMIN, NOWHERE


def order(world: World, customer_id: str = "acme") -> RunScheduled:
    """A run asked for by hand."""
    return RunScheduled(
        customer_id=customer_id,
        provider="GCP",
        domain="EXAMPLE",
        template="dryrun",
        pipeline_id="gcp-example-dryrun",
        trigger_type=Trigger.MANUAL,
        trigger_by="test",
        run_date=world.at.date(),
        scheduled_for=world.at,
        priority=Priority.MANUAL,
        counted_on=world.at.date(),
    )


# Units of quota


def ask(world: World, number: int, _: Barrier, instants: Sequence[datetime], times: int) -> list[str | Limit]:
    """Ask for runs, each process by a clock of its own: their ids, or the limit that was in the way."""
    world.at = instants[number % len(instants)]
    answers: list[str | Limit] = []
    for _ in range(times):
        try:
            answers.append(world.request())
        except QuotaExceeded as refusal:
            answers.append(refusal.limit)
    return answers


def ask_by_counting(world: World, _: int, others: Barrier, limit: int) -> None:
    """The control: count the rows, then insert one."""
    used = world.scalar("SELECT count(*) FROM scheduled_pipeline_runs WHERE run_date = %s", world.at.date())
    others.wait()
    if used < limit:
        command = Command(**world.stamp())
        world.platform.transact(command, lambda tx: tx.run(uuid4(), "acme").append([order(world)]))


# Concurrent places


def claim(world: World, number: int, _: Barrier, limit: int) -> list[RunOrder]:
    return world.claim(f"w{number}", limit=limit)


def take_turns(world: World, number: int, others: Barrier, rounds: int) -> tuple[int, int]:
    """Claim, ask by hand and report, all at once in every round; how many were started, and how many refused."""
    started = refused = 0
    held: list[RunOrder] = []
    for turn in range(rounds):
        others.wait()
        if held:
            assert world.report(held, f"w{number}") == []
            held = []
        elif (number + turn) % 4 == 0:
            refused += ask(world, 0, others, [world.at], 1) == [Limit.CONCURRENT]
        else:
            held = world.claim(f"w{number}", limit=4)
            started += len(held)
    return started, refused


def claim_by_counting(world: World, number: int, others: Barrier, limit: int) -> None:
    """The control: count the rows that run, then start as many as are missing."""
    running = world.scalar("SELECT count(*) FROM scheduled_pipeline_runs WHERE state = 'RUNNING'")
    waiting = [row["run_id"] for row in world.rows("pipeline_execution_queue", state="PENDING")]
    mine = waiting[number * limit : (number + 1) * limit]
    others.wait()
    command = Command(**world.stamp())

    def work(tx: Transaction) -> None:
        for run_id in mine[: limit - running]:
            run = tx.run(UUID(run_id), "acme")
            run.append(run.must("").claim(f"w{number}", world.at, timedelta(minutes=1)))

    world.platform.transact(command, work)


# Due slots


@dataclass(frozen=True)
class Due:
    """Where to trigger, and the pipelines (with their customers) that are edited meanwhile, between these schedules."""

    data_dir: Path
    url: str
    edited: Sequence[tuple[str, str]]
    crons: Sequence[str]


def trigger_or_edit(world: World, number: int, _: Barrier, triggers: int, due: Due) -> int:
    """The first ones trigger, and the others edit pipelines meanwhile; how many runs were queued."""
    if number < triggers:
        return _trigger(world, number % 3, due)
    # By a clock that is behind: slots that were triggered come due once more.
    for turn in range(2):
        for config_id, customer_id in due.edited:
            world.change(config_id, customer_id, schedule_cron=due.crons[(number + turn) % len(due.crons)])
    return 0


def _trigger(world: World, way: int, due: Due) -> int:
    """Trigger what is due by the database's clock, in one of the three ways there are."""
    if way == 0:
        answer = httpx.post(f"{due.url}/api/v1/scheduler/trigger", headers=ADMIN, timeout=60)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["queued_count"])
    if way == 1:
        service = build(Settings(data_dir=due.data_dir, bigquery_emulator_host=NOWHERE), world.dsn)
        try:
            return trigger_now(service, origin("scheduler")).queued
        finally:
            service.close()
    world.at = world.scalar("SELECT clock_timestamp()")
    return world.trigger(batch=5).queued


# Waiting runs


@dataclass
class Worked:
    """What one worker did, each as (run, attempt): what it claimed, whose outcome was taken from it, what it lost."""

    claimed: list[tuple[str, int]] = field(default_factory=list)
    told: list[tuple[str, int]] = field(default_factory=list)
    lost: set[tuple[str, int]] = field(default_factory=set)


_STEP: Final = StepReport(0, "count", "data_quality", "COMPLETED", datetime.now(UTC), datetime.now(UTC))
_OUTCOMES: Final[tuple[dict[str, Any], ...]] = (
    {"report": RunReport(succeeded=True, rows=3)},
    {"report": RunReport(succeeded=True, rows=3)},
    {"report": RunReport(succeeded=True, rows=3)},
    {"report": RunReport(succeeded=False, error="bad SQL")},
    {"report": RunReport(succeeded=False, error="503"), "retry_after": timedelta(0)},
    {"handed_back": "shutdown"},
)
SOME_EXPIRE: Final = (
    "UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 s' WHERE run_id IN"
    " (SELECT run_id FROM run_leases WHERE random() < 0.1 ORDER BY run_id FOR UPDATE SKIP LOCKED)"
)


def work_off(world: World, number: int, others: Barrier, reapers: int) -> Worked:
    """Claim and report until nothing is left; the first ones let leases run out and take over instead.

    Whatever carries another attempt's token, or another worker's name, must be refused.
    """
    chance = random.Random(number)  # noqa: S311 - no secret
    worked = Worked()
    unfinished = "SELECT count(*) FROM pipeline_execution_queue WHERE deleted_at IS NULL"
    while not others.broken and world.scalar(unfinished):
        if number < reapers:
            world.execute(SOME_EXPIRE)
            world.take_over()
        elif orders := world.claim(f"w{number}", limit=chance.randint(6, 16)):
            _hold(world, f"w{number}", orders, worked, chance)
    return worked


def _hold(world: World, worker: str, orders: list[RunOrder], worked: Worked, chance: random.Random) -> None:
    keys = {order.run_id: (order.run_id, order.attempt) for order in orders}
    worked.claimed += keys.values()

    def tell(name: str, shift: int = 0, **outcome: Any) -> set[tuple[str, int]]:
        """Which were refused."""
        shifted = [replace(order, attempt=order.attempt + shift) for order in orders]
        return {keys[run_id] for run_id in world.report(shifted, name, **outcome)}

    def renew(name: str, shift: int = 0) -> set[tuple[str, int]]:
        """Which are held."""
        shifted = [(run_id, attempt + shift) for run_id, attempt in keys.values()]
        return {keys[lease.run_id] for lease in leases.renew(world.datastore, name, shifted, 60)}

    everything = set(keys.values())
    name, shift = chance.choice([(worker, 1), (worker, -1), ("somebody", 0)])
    assert renew(name, shift) == set()
    assert tell(name, shift, **chance.choice([*_OUTCOMES, {"steps": (_STEP,)}, {"cancelled": True}])) == everything
    lost = everything - renew(worker)
    for outcome in ({"steps": (_STEP,)}, chance.choice(_OUTCOMES)):
        refused = tell(worker, **outcome)
        assert lost <= refused, "what was lost came back"
        lost = refused
    worked.told += everything - lost
    worked.lost |= lost
    assert tell(worker, **chance.choice(_OUTCOMES)) == everything


def claim_named(world: World, number: int, _: Barrier, run_ids: Sequence[str]) -> list[tuple[str, int]]:
    """Claim each of these runs."""
    orders = [order for run_id in run_ids for order in world.claim(f"w{number}", run_id=run_id)]
    return [(order.run_id, order.attempt) for order in orders]


def claim_without_a_lock(world: World, number: int, others: Barrier, run_ids: Sequence[str]) -> list[tuple[str, int]]:
    """The control: see which rows wait, then take them."""
    waiting = [row["run_id"] for row in world.rows("pipeline_execution_queue", state="PENDING")]
    mine = [run_id for run_id in run_ids if run_id in waiting]
    others.wait()
    take = "UPDATE pipeline_execution_queue SET state = 'RUNNING', claimed_by = %s WHERE run_id = ANY(%s)"
    world.execute(take, f"w{number}", sorted(mine))
    return [(run_id, 1) for run_id in mine]


def claim_whatever_its_state(world: World, number: int, _: Barrier, run_ids: Sequence[str]) -> list[tuple[str, int]]:
    """The control: lock the rows, and believe that whoever holds the lock may have the run."""
    command = Command(**world.stamp())

    def work(tx: Transaction) -> list[tuple[str, int]]:
        tx.session.lock_runs(run_ids)
        claimed = []
        for run_id in run_ids:
            run = tx.run(UUID(run_id), "acme")
            attempt, until = run.must("").attempt + 1, world.at + timedelta(minutes=1)
            run.append(
                [RunClaimed(worker_id=f"w{number}", attempt=attempt, started_at=world.at, lease_expires_at=until)]
            )
            claimed.append((run_id, attempt))
        return claimed

    return world.platform.transact(command, work)
