"""What processes do in races: as the service does it, and as it must not be done."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx

from adapters.bootstrap import build, origin
from adapters.scheduler import trigger_now
from adapters.settings import Settings
from application.command import Command
from application.platform import Transaction
from application.ports import RunOrder
from domain.pipeline_run import Priority, RunScheduled, Trigger
from domain.refusals import Limit, QuotaExceeded
from tests.application.world import World
from tests.http.running import ADMIN, NOWHERE

Wait = Callable[[], object]
"""Returns when all processes of the race have called it."""


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


def ask(world: World, number: int, _: Wait, instants: Sequence[datetime], times: int) -> list[str | Limit]:
    """Ask for runs, each process by a clock of its own: their ids, or the limit that was in the way."""
    world.at = instants[number % len(instants)]
    answers: list[str | Limit] = []
    for _ in range(times):
        try:
            answers.append(world.request())
        except QuotaExceeded as refusal:
            answers.append(refusal.limit)
    return answers


def ask_by_counting(world: World, _: int, wait: Wait, limit: int) -> None:
    """The control: count the rows, then insert one."""
    used = world.scalar("SELECT count(*) FROM scheduled_pipeline_runs WHERE run_date = %s", world.at.date())
    wait()
    if used < limit:
        command = Command(**world.stamp())
        world.platform.transact(command, lambda tx: tx.run(uuid4(), "acme").append([order(world)]))


# Concurrent places


def claim(world: World, number: int, _: Wait, limit: int) -> list[RunOrder]:
    return world.claim(f"w{number}", limit=limit)


def take_turns(world: World, number: int, wait: Wait, rounds: int) -> tuple[int, int]:
    """Claim, ask by hand and report, all at once in every round; how many were started, and how many refused."""
    started = refused = 0
    held: list[RunOrder] = []
    for turn in range(rounds):
        wait()
        if held:
            assert world.report(held, f"w{number}") == []
            held = []
        elif (number + turn) % 4 == 0:
            refused += ask(world, 0, wait, [world.at], 1) == [Limit.CONCURRENT]
        else:
            held = world.claim(f"w{number}", limit=4)
            started += len(held)
    return started, refused


def claim_by_counting(world: World, number: int, wait: Wait, limit: int) -> None:
    """The control: count the rows that run, then start as many as are missing."""
    running = world.scalar("SELECT count(*) FROM scheduled_pipeline_runs WHERE state = 'RUNNING'")
    waiting = [row["run_id"] for row in world.rows("pipeline_execution_queue", state="PENDING")]
    mine = waiting[number * limit : (number + 1) * limit]
    wait()
    command = Command(**world.stamp())

    def work(tx: Transaction) -> None:
        for run_id in mine[: limit - running]:
            run = tx.run(UUID(run_id), "acme")
            run.append(run.must("").claim(f"w{number}", world.at, timedelta(minutes=1)))

    world.platform.transact(command, work)


# Due slots


def trigger(world: World, number: int, _: Wait, data_dir: Path, url: str) -> int:
    """Trigger what is due by the database's clock, in one of the ways there are; how many runs were queued."""
    if number % 3 == 0:
        answer = httpx.post(f"{url}/api/v1/scheduler/trigger", headers=ADMIN, timeout=60)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["queued_count"])
    if number % 3 == 1:
        service = build(Settings(data_dir=data_dir, bigquery_emulator_host=NOWHERE), world.dsn)
        try:
            return trigger_now(service, origin("scheduler")).queued
        finally:
            service.close()
    world.at = world.scalar("SELECT clock_timestamp()")
    return world.trigger(batch=5).queued


def edit(world: World, number: int, configs: Sequence[tuple[str, str]], crons: Sequence[str]) -> None:
    """Change schedules to and fro by a clock that is behind: slots that were triggered come due once more."""
    for turn in range(2):
        for config_id, customer_id in configs:
            world.change(config_id, customer_id, schedule_cron=crons[(number + turn) % len(crons)])


def trigger_or_edit(
    world: World,
    number: int,
    wait: Wait,
    triggers: int,
    data_dir: Path,
    url: str,
    configs: Sequence[tuple[str, str]],
    crons: Sequence[str],
) -> int:
    """The first ones trigger, and the others edit these pipelines meanwhile; how many runs were queued."""
    if number < triggers:
        return trigger(world, number, wait, data_dir, url)
    edit(world, number, configs, crons)
    return 0
