"""What the service does now, and what an operator has to do about it: one look for HTTP and the command line."""

from collections.abc import Sequence
from typing import Any, Final

from adapters.notifications import deliveries
from adapters.postgres import processes
from adapters.postgres.event_log import Datastore
from adapters.postgres.processes import Seen
from adapters.postgres.reads import queue
from adapters.problems import WAIT_S, problems
from adapters.projection_views import look_at
from adapters.status_views import CustomerWaiting, LeaseView, ProcessView, StatusView, WaitsFor, WorkerView

_CUSTOMERS: Final = 20
_LEASES: Final = 1000
_WORKER: Final = "worker"


def look(datastore: Datastore, *, wait_s: float = WAIT_S, dead_after_s: float = processes.DEAD_AFTER_S) -> StatusView:
    """The status now; raises `Away` with the database.

    Its cost follows from how many runs wait or run, not from how many have ended.
    """
    now = queue.now(datastore)
    waiting = queue.waiting(datastore, customers=_CUSTOMERS)
    known = processes.seen(datastore, dead_after_s=dead_after_s)
    held = queue.held_by_worker(datastore)
    totals = waiting[0] if waiting else {}
    workers = _workers(known, {worker_id: runs for worker_id, (runs, _) in held.items()})
    due_since = now["next_slot"] if now["due"] else None
    status = StatusView(
        **now,
        due_seconds=(now["now"] - due_since).total_seconds() if due_since else None,
        pending=totals.get("all_pending", 0),
        pending_ready=totals.get("all_ready", 0),
        pending_later=totals.get("all_pending", 0) - totals.get("all_ready", 0),
        oldest_pending_age_seconds=totals.get("longest_wait_seconds"),
        waiting_customers=totals.get("all_customers", 0),
        customers=[_customer(row) for row in waiting],
        alive=_alive(known),
        dead=sum(not process.alive for process in known),
        throughput_per_minute=sum(worker.finished_per_minute or 0 for worker in workers),
        places_free=sum(max(0, (w.concurrency or 0) - w.runs) for w in workers if w.alive),
        workers=workers,
        processes=[ProcessView.model_validate(process, from_attributes=True) for process in known],
        leases=[LeaseView(**row) for row in queue.leases(datastore, limit=_LEASES)],
        projections=look_at(datastore),
        problems=[],
    )
    overdue = {worker_id: seconds for worker_id, (_, seconds) in held.items()}
    longest = totals.get("longest_startable_seconds")
    found = problems(
        status,
        longest_wait_s=longest,
        overdue_s=overdue,
        wait_s=wait_s,
        given_up=deliveries.counts(datastore).dead_today,
        full=datastore.full,
    )
    return status.model_copy(update={"problems": found})


def _alive(known: Sequence[Seen]) -> dict[str, int]:
    return {role: sum(process.alive and role in process.roles for process in known) for role in processes.ROLES}


def _customer(row: dict[str, Any]) -> CustomerWaiting:
    waits_for = WaitsFor(row["waits_for"])
    return CustomerWaiting(**row, oldest_wait_seconds=row["wait_seconds"], why=_why(waits_for, row))


def _why(waits_for: WaitsFor, row: dict[str, Any]) -> str:
    match waits_for:
        case WaitsFor.SUSPENDED:
            return "The account is not active: a worker ends its runs as skipped."
        case WaitsFor.LATER:
            return f"Until {row['next_ready']:%Y-%m-%d %H:%M:%S} UTC: a retry, or a schedule's jitter."
        case WaitsFor.LIMIT:
            return f"At its limit: {row['running']} of {row['places']} places are taken."
        case WaitsFor.PIPELINE:
            return "An earlier run of the same pipeline has not ended."
        case WaitsFor.BACKFILL:
            return "Back-fill has taken its half of the places."
        case WaitsFor.WORKER:
            return "For a worker."


def _workers(known: Sequence[Seen], held: dict[str, int]) -> list[WorkerView]:
    """Every worker process, and what else holds runs: an API that executes one, or one that was never seen."""
    alive = {process.worker_id for process in known if process.alive}
    views: list[WorkerView] = []
    told: set[str] = set()
    for process in known:
        if _WORKER not in process.roles:
            continue
        name = process.worker_id
        # Leases name the worker id only. Of several processes with the same one the living ones hold them, each what
        # it says; of dead ones the last to die.
        shared = sum(other.alive and other.worker_id == name and _WORKER in other.roles for other in known) > 1
        if process.alive:
            runs = (process.holding or 0) if shared else held.get(name, 0)
        else:
            runs = 0 if name in alive or name in told else held.get(name, 0)
        told.add(name)
        views.append(_worker(process, name, runs))
    for name, runs in held.items():
        if name not in told:
            views.append(_worker(_executing(known, name), name, runs))
    return views


def _executing(known: Sequence[Seen], name: str) -> Seen | None:
    """The API process that executes a run under that name, as it was asked to over HTTP."""
    return next((process for process in known if api_worker_id(process.worker_id) == name), None)


def api_worker_id(worker_id: str) -> str:
    """The name under which an API process claims runs when it is asked to."""
    return f"api-{worker_id}"[:80]


def _worker(process: Seen | None, name: str, runs: int) -> WorkerView:
    if process is None:
        unknown = dict.fromkeys(WorkerView.model_fields)
        return WorkerView.model_validate({**unknown, "worker_id": name, "runs": runs})
    works = name == process.worker_id
    return WorkerView(
        worker_id=name,
        runs=runs,
        alive=process.alive,
        seen_seconds_ago=process.seen_seconds_ago,
        host=process.host,
        pid=process.pid,
        version=process.version,
        started_at=process.started_at,
        concurrency=process.concurrency if works else None,
        finished=process.finished if works else None,
        finished_per_minute=process.finished_last_minute if works and process.alive else None,
    )
