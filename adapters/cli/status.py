"""`convergence status`: what is due, waits and runs, which processes live, what is wrong, and what to do about it."""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adapters import console
from adapters.cli.options import Json, place
from adapters.cli.projections import table_of

if TYPE_CHECKING:
    from adapters.postgres.event_log import Datastore
    from adapters.status_views import ProcessView, StatusView, WorkerView

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_EVERY_S: Final = 2.0
_LEASES_SHOWN: Final = 20
_DEAD_SHOWN: Final = 5
_SHOWN_AS: Final = {"api": "API"}
_SILENT_S: Final = 30.0
"""A process that was not seen for two of its renewals is shown in yellow."""


@app.command(epilog="Example: [bold]convergence status --watch[/bold]")
def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every 2 seconds, until Ctrl-C.")] = False,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Seconds that a run which could start may wait for a worker.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Show what is due, waits and runs, which processes live, what is wrong, and what to do about it.

    Exit status 1 when something is wrong: a slot that nobody triggers, a run that no worker starts, a dead worker that
    holds runs. With --watch it is that of the last look.
    """
    console.log_to_stderr(as_json=as_json)
    # That the database is away is said on the screen.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    where = place()
    from adapters.database import readable

    with readable(where.dsn, name="status") as datastore:
        if watch:
            found = _watch(datastore, max_wait, as_json=as_json)
        else:
            from adapters.status import look

            found = look(datastore, wait_s=max_wait)
            if as_json:
                console.print_json(found.model_dump(mode="json"))
            else:
                console.OUT.print(_shown(found))
    if found is None or found.problems:
        raise typer.Exit(console.FAILED)


def _watch(datastore: "Datastore", max_wait: float, *, as_json: bool) -> "StatusView | None":
    """The last look, None when the database did not answer at that time."""
    last: StatusView | None = None
    try:
        if as_json or not console.OUT.is_terminal:
            for last in _looks(datastore, max_wait):
                if as_json:
                    console.print_json(last.model_dump(mode="json") if last else {"problems": [_AWAY]})
                else:
                    console.OUT.print(_shown(last))
        else:
            with Live(console=console.OUT, screen=True, auto_refresh=False) as live:
                for last in _looks(datastore, max_wait):
                    live.update(_shown(last, on_screen=True), refresh=True)
    except KeyboardInterrupt:
        if console.OUT.is_terminal and not as_json:
            console.OUT.print(_shown(last))
    return last


_AWAY: Final = {"problem": "The database does not answer.", "remedy": "Nothing runs without it: look at PostgreSQL."}


def _looks(datastore: "Datastore", max_wait: float) -> Iterator["StatusView | None"]:
    from adapters.status import look
    from application.ports import Away

    while True:
        try:
            yield look(datastore, wait_s=max_wait)
        except Away:
            yield None
        time.sleep(_EVERY_S)


def _shown(status: "StatusView | None", *, on_screen: bool = False) -> RenderableType:
    """What is wrong stands where it is read first: last when printed, first on a screen that may be too small."""
    if status is None:
        return Text(f"{_AWAY['problem']}\n→ {_AWAY['remedy']}", style="bold red")
    told = _problems(status)
    parts: list[RenderableType] = [*told, "", _summary(status), ""] if on_screen else [_summary(status), ""]
    if status.workers or status.processes:
        parts.append(_processes(status))
    parts.append(table_of(status.projections))
    if status.customers:
        parts.append(_customers(status))
    if status.leases:
        parts.append(_leases(status))
    return Group(*parts) if on_screen else Group(*parts, *told)


def _problems(status: "StatusView") -> list[Text]:
    return [
        Text(problem.problem, style="bold red").append(f"\n→ {problem.remedy}", style="red")
        for problem in status.problems
    ] or [Text("All is well.", style="green")]


def _summary(status: "StatusView") -> Table:
    from adapters.problems import span

    lines = Table.grid(padding=(0, 2))
    oldest = status.oldest_pending_age_seconds
    pending = f"{status.pending} pending" + (
        f": {status.pending_ready} ready, {status.pending_later} later" if status.pending else ""
    )
    lines.add_row(
        Text("Runs", style="bold"),
        f"{pending} · {status.running} running" + ("" if oldest is None else f" · the oldest waits {span(oldest)}"),
    )
    due = f"{status.due} due" + ("" if status.due_seconds is None else f" for {span(status.due_seconds)}")
    if status.next_slot is None:
        due += " · no slot to come"
    elif not status.due:
        ahead = max(0.0, (status.next_slot - status.now).total_seconds())
        due += f" · next slot {console.shown(status.next_slot)}, in {span(ahead)}"
    lines.add_row(Text("Schedules", style="bold"), due)
    alive = " · ".join(console.counted(count, _SHOWN_AS.get(role, role)) for role, count in status.alive.items())
    lines.add_row(
        Text("Alive", style="bold"), alive + (f" · {status.dead} dead in the last day" if status.dead else "")
    )
    lines.add_row(
        Text("Throughput", style="bold"),
        f"{console.counted(status.throughput_per_minute, 'run')} in the last minute"
        f" · room for {status.places_free} more at a time",
    )
    lines.add_row(Text("Database", style="bold"), console.shown(status.now))
    return lines


def _processes(status: "StatusView") -> Table:
    table = Table(
        "Process", "Host", "PID", "Version", "Up", "Seen", "Runs", "Finished", "Last minute", header_style="bold"
    )
    workers = {(worker.host, worker.pid): worker for worker in status.workers}
    dead = 0
    for process in status.processes:
        dead += not process.alive
        worker = workers.pop((process.host, process.pid), None) if "worker" in process.roles else None
        if not process.alive and dead > _DEAD_SHOWN and not (worker and worker.runs):
            continue
        table.add_row(*_process(process, worker, status), style=_style(process))
    for worker in workers.values():
        table.add_row(Text(worker.worker_id), "", "", "", "", "", str(worker.runs), "", "")
    return table


def _process(process: "ProcessView", worker: "WorkerView | None", status: "StatusView") -> Iterator[Text]:
    from adapters.problems import span

    name = " ".join(process.roles) + (f" ({worker.worker_id})" if worker else "")
    seen = span(process.seen_seconds_ago) + " ago"
    up = span((status.now - process.started_at).total_seconds()) if process.alive else "dead"
    figures = ["", "", ""]
    if worker:
        room = "" if worker.concurrency is None else f" of {worker.concurrency}"
        figures = [f"{worker.runs}{room}", _number(worker.finished), _number(worker.finished_per_minute)]
    cells = (name, process.host, str(process.pid), process.version, up, seen, *figures)
    yield from map(Text, cells)


def _style(process: "ProcessView") -> str:
    if not process.alive:
        return "red"
    return "yellow" if process.seen_seconds_ago > _SILENT_S else ""


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _customers(status: "StatusView") -> Table:
    from adapters.problems import span

    table = Table("Waiting customer", "Pending", "Ready", "Running", "Places", "Oldest", "Why", header_style="bold")
    for customer in status.customers:
        oldest = customer.oldest_wait_seconds
        cells = (
            customer.customer_id,
            str(customer.pending),
            str(customer.ready),
            str(customer.running),
            _number(customer.places),
            "" if oldest is None else span(oldest),
            customer.why,
        )
        table.add_row(*map(Text, cells))
    if status.waiting_customers > len(status.customers):
        table.caption = f"{status.waiting_customers - len(status.customers)} more customers wait"
    return table


def _leases(status: "StatusView") -> Table:
    from adapters.problems import span

    table = Table("Running", "Customer", "Template", "Worker", "Attempt", "For", "Lease", header_style="bold")
    for lease in sorted(status.leases, key=lambda lease: lease.seconds_left)[:_LEASES_SHOWN]:
        left = f"{span(lease.seconds_left)} left" if not lease.expired else f"over for {span(-lease.seconds_left)}"
        cells = (
            lease.run_id,
            lease.customer_id,
            "/".join(part or "?" for part in (lease.provider, lease.domain, lease.pipeline_template)).lower(),
            lease.worker_id,
            str(lease.attempt),
            "" if lease.running_seconds is None else span(lease.running_seconds),
            left + (", to be stopped" if lease.stop_asked else "" if lease.begun else ", not begun"),
        )
        table.add_row(*map(Text, cells), style="red" if lease.expired else "")
    if status.running > _LEASES_SHOWN:
        table.caption = f"Of {status.running}, those whose leases end first"
    return table
