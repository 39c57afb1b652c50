"""Long lines of waiting runs, made set-wise, and pickers that are unfair on purpose."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from adapters.postgres.claims import Picker
from adapters.postgres.store import PostgresStore
from application.command import Command
from application.platform import Platform, Transaction
from domain.pipeline_run import Priority
from domain.run_events import RunScheduled, Trigger
from tests.application.world import World

PRIORITIES = {
    Trigger.MANUAL: Priority.MANUAL,
    Trigger.RETRY: Priority.RETRY,
    Trigger.SCHEDULED: Priority.SCHEDULED,
    Trigger.BACKFILL: Priority.BACKFILL,
}


class InOneLine(Picker):
    """The control: one line for everybody, in this order, whoever is at their limit or has a hundred in it."""

    def __init__(self, order: str = "scheduled_time, run_id") -> None:
        super().__init__()
        self._query = (
            "SELECT run_id, customer_id FROM pipeline_execution_queue WHERE state = 'PENDING' AND deleted_at IS NULL"
            f" AND (not_before IS NULL OR not_before <= clock_timestamp()) ORDER BY {order} LIMIT %s"
            " FOR UPDATE SKIP LOCKED"
        )

    def lock_next(self, cursor: Any, limit: int) -> Sequence[tuple[str, str]]:
        return [(row["run_id"], row["customer_id"]) for row in cursor.execute(self._query, (limit,))]


def picking_with(world: World, picker: Picker) -> World:
    """The same world, whose claims go by this picker."""
    world.store = PostgresStore(world.datastore, picker)
    world.platform = Platform(world.store, world.mapper)
    return world


def line_up(
    world: World,
    customer_id: str,
    runs: int,
    *,
    trigger: Trigger = Trigger.MANUAL,
    priority: int | None = None,
    pipelines: Sequence[str] = (),
    waited: timedelta = timedelta(0),
    ready_in: timedelta | None = None,
) -> list[str]:
    """So many waiting runs in one transaction; the oldest has `waited` so long.

    Scheduled ones are of these `pipelines` in turns, or each of its own.
    """
    scheduled = trigger is Trigger.SCHEDULED
    ids = [uuid4() for _ in range(runs)]
    orders = [
        RunScheduled(
            customer_id=customer_id,
            provider="GCP",
            domain="EXAMPLE",
            template="dryrun",
            pipeline_id="gcp-example-dryrun",
            trigger_type=trigger,
            trigger_by="test",
            run_date=world.at.date(),
            scheduled_for=world.at - waited + timedelta(microseconds=number),
            priority=PRIORITIES[trigger] if priority is None else priority,
            config_id=(pipelines[number % len(pipelines)] if pipelines else str(run_id)) if scheduled else None,
            not_before=None if ready_in is None else world.scalar("SELECT clock_timestamp()") + ready_in,
        )
        for number, run_id in enumerate(ids)
    ]

    def work(tx: Transaction) -> None:
        streams = tx.runs([(run_id, customer_id) for run_id in ids])
        for run_id, order in zip(ids, orders, strict=True):
            streams[run_id].append([order])

    world.platform.transact(Command(**world.stamp()), work)
    return [str(run_id) for run_id in ids]
