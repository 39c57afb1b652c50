"""Everything that can be looked at afterwards: rows against the book, states, the log itself, and its replay."""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from psycopg import sql

from application.command import Command
from domain.run_events import (
    RunCancelled,
    RunClaimed,
    RunCompleted,
    RunFailed,
    RunRequeued,
    RunScheduled,
    RunSkipped,
    StepFinished,
)
from domain.subscription import Subscription
from domain.subscription_events import LimitsOverridden, PlanChanged, RunRefused, UsageReset
from projections.fold import fold
from projections.follow import Placed
from projections.project import changes_of
from projections.rows import Scope
from projections.tables import CENTRAL
from tests.simulation.book import ATTEMPTS, Book
from tests.simulation.life import Life

OUTCOMES: Final = (RunCompleted, RunFailed, RunCancelled, RunSkipped)


def rows_agree(life: Life) -> None:
    """Runs, queue, leases and usage are what the book says."""
    book = life.book
    runs = {r["run_id"]: (r["state"], r["attempt"]) for r in life.world.rows("scheduled_pipeline_runs")}
    _same("runs", runs, {run.run_id: (run.state, run.attempt) for run in book.runs.values()})
    queue = {
        r["run_id"]: (r["state"], r["claimed_by"], r["not_before"])
        for r in life.world.rows("pipeline_execution_queue")
        if r["deleted_at"] is None
    }
    waiting = {run.run_id: (run.state, run.worker, run.not_before) for run in book.runs.values() if not run.ended}
    _same("the queue", queue, waiting)
    with life.world.datastore.reading() as cursor:
        leases = {
            r["run_id"]: (r["worker_id"], r["attempt"], r["expires_at"], r["begun"], r["stop_asked"])
            for r in cursor.execute("SELECT * FROM run_leases")
        }
    held = {r.run_id: (r.worker, r.attempt, r.held_until, r.begun, r.stop_asked) for r in book.held()}
    _same("leases", leases, held)
    assert all(run.spent < ATTEMPTS for run in book.runs.values() if not run.ended)
    _usage_agrees(life)


def _same(name: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Each run that has not ended waits or is held, so that none is lost."""
    keys = sorted({*found, *expected})
    different = {key: (found.get(key), expected.get(key)) for key in keys if found.get(key) != expected.get(key)}
    assert not different, f"{name} differ, as found and as expected: {different}"


def _usage_agrees(life: Life) -> None:
    book = life.book
    for row in life.world.rows("customer_usage"):
        customer_id, day = row["customer_id"], row["usage_date"]
        account = book.accounts[customer_id]
        told = row["pipelines_run_today"], row["pipelines_succeeded_today"], row["pipelines_failed_today"]
        counted = book.units(customer_id, day), account.succeeded.get(day, 0), account.failed.get(day, 0)
        assert told == counted, f"admitted, succeeded and failed of {customer_id} on {day} are {told}, not {counted}"
        assert day <= account.day, f"{customer_id} was counted on {day}, which was still to come on {account.day}"
        if day == account.day:
            current = row["pipelines_run_month"], row["concurrent_pipelines_running"]
            expected = book.units_of_month(customer_id, day), len(book.running(customer_id))
            assert current == expected, (
                f"{customer_id} on {day}: this month and right now are {current}, not {expected}"
            )


def states_agree(life: Life) -> None:
    """Each subscription holds the places of the runs that run, and of no others."""
    command = Command(**life.stamp("service", life.now))
    states = life.platform.transact(
        command, lambda tx: {c: s.must("") for c, s in tx.subscriptions(sorted(life.book.accounts)).items()}
    )
    for customer_id, state in states.items():
        _state_agrees(life.book, customer_id, state)


def _state_agrees(book: Book, customer_id: str, state: Subscription) -> None:
    running = book.running(customer_id)
    assert state.running == {run.run_id for run in running}, "every place is held by a run that runs"
    assert state.usage.running == len(running)
    assert state.backfilling == {run.run_id for run in running if run.trigger == "backfill"}
    assert state.busy == {run.run_id: run.pipeline for run in running if run.pipeline}
    for day, admitted in state.admitted_by_day.items():
        assert admitted == book.units(customer_id, day), f"{customer_id} on {day}"


def log_is_sound(placed: list[Placed]) -> None:
    """What no log of the service may ever say, whatever the book says."""
    holder: dict[UUID, tuple[str, int]] = {}
    ended: set[UUID] = set()
    spent: dict[UUID, int] = {}
    slots: set[tuple[str, Any]] = set()
    refused: dict[str, set[Any]] = {}
    for p in placed:
        run, event = p.at.stream_id, p.event
        assert run not in ended, f"{event} came after the run had ended"
        if isinstance(event, RunScheduled) and event.trigger_type == "scheduled":
            slot = event.config_id or "", event.scheduled_for
            assert slot not in slots, f"{slot} became two runs"
            slots.add(slot)
        elif isinstance(event, RunClaimed):
            assert run not in holder, f"{event} while {holder[run]} held the run"
            holder[run] = event.worker_id, event.attempt
        elif isinstance(event, RunRequeued | RunFailed):
            spent[run] = spent.get(run, 0) + getattr(event, "spent", True)
            assert spent[run] <= ATTEMPTS
        if isinstance(event, StepFinished | RunCompleted | RunFailed | RunRequeued):
            worker, attempt = holder[run]
            assert event.attempt == attempt
            assert p.at.by.actor in {f"worker:{worker}", "service"}, f"{p.at.by.actor} spoke for {worker}: {event}"
        if isinstance(event, (*OUTCOMES, RunRequeued)):
            holder.pop(run, None)
        if isinstance(event, OUTCOMES):
            ended.add(run)
        if isinstance(event, PlanChanged | LimitsOverridden | UsageReset):
            refused.pop(p.at.customer_id, None)
        elif isinstance(event, RunRefused):
            known = refused.setdefault(p.at.customer_id, set())
            assert (event.limit, event.day) not in known, f"{p.at.customer_id} was told twice: {event}"
            known.add((event.limit, event.day))


def replay_agrees(life: Life, placed: list[Placed]) -> None:
    """The rows of the whole log are the tables."""
    changes = [change for p in placed for change in changes_of(p.event, p.at)]
    told: dict[str, dict[Any, Mapping[str, Any]]] = {table.name: {} for table in CENTRAL}
    for folded in fold([change for change in changes if change.row.table.scope is Scope.CENTRAL]).rows:
        assert folded.whole
        told[folded.table.name][folded.key] = {**folded.values, "position": folded.position}
    for table in CENTRAL:
        found = {tuple(row[name] for name in table.key): row for row in _rows(life, table.name)}
        assert found == told[table.name], f"a replay makes another {table.name}"


def _rows(life: Life, table: str) -> Iterator[dict[str, Any]]:
    with life.world.datastore.reading() as cursor:
        yield from cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
