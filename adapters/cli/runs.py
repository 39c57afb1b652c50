"""`convergence runs`: the newest runs, runs as they change state, and one run in full."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from adapters import console
from adapters.cli.options import WHEN, Json, instant, place

if TYPE_CHECKING:
    from adapters.http.run_views import RunView
    from adapters.postgres.event_log import Datastore
    from adapters.postgres.reads.runs import Wanted

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_COLOURS: Final = {
    "PENDING": "cyan",
    "RUNNING": "blue",
    "COMPLETED": "green",
    "FAILED": "bold red",
    "CANCELLED": "yellow",
    "SKIPPED": "yellow",
}


@app.command(
    epilog="Example: [bold]convergence runs --customer acme_corp --state FAILED --since 24h[/bold]"
    " · [bold]convergence runs --follow[/bold]"
    " · [bold]convergence runs 4f0c6a52-1d3e-4c56-9a55-0d1ec5f1a9e4[/bold]"
)
def runs(
    run_id: Annotated[str | None, typer.Argument(metavar="RUN_ID", help="Show this run in full.")] = None,
    *,
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help="Only runs in this state: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, SKIPPED."),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Only runs of this template, e.g. cost_billing.")] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Only runs of the scheduled pipeline with this config_id.")
    ] = None,
    since: Annotated[str | None, typer.Option(help=f"Only runs created at or after this. {WHEN}")] = None,
    until: Annotated[str | None, typer.Option(help="Only runs created before this, said in the same ways.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most this many.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Then print runs as they change state, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the newest runs of all customers, follow them as they change state, or show one with steps and timeline.

    With --json a list is an array, and what is followed is a line of JSON for each change.
    """
    console.log_to_stderr(as_json=as_json)
    from adapters.postgres.reads.runs import Wanted

    now = datetime.now(UTC)
    wanted = Wanted(
        customer_id=customer,
        template=template.lower() if template else None,
        config_id=pipeline,
        state=_state(state),
        since=instant("--since", since, now),
        until=instant("--until", until, now),
    )
    where = place()
    from adapters.database import readable

    with readable(where.dsn, name="runs") as datastore:
        if run_id is not None:
            _show_one(datastore, run_id, as_json=as_json)
        elif follow and where.dsn:
            _follow(datastore, where.dsn, wanted, limit, as_json=as_json)
        else:
            _list(datastore, wanted, limit, as_json=as_json)


def _state(text: str | None) -> Any:  # noqa: ANN401 - a RunState, which is imported late
    from domain.pipeline_run import RunState

    if text is None:
        return None
    try:
        return RunState(text.upper())
    except ValueError:
        console.fail(f"--state: is one of {', '.join(RunState)}.", console.WRONG)


def _list(datastore: "Datastore", wanted: "Wanted", limit: int, *, as_json: bool) -> None:
    from adapters.postgres.reads.runs import newest

    rows = newest(datastore, wanted, limit=limit)
    if as_json:
        console.print_json(rows)
        return
    if not rows:
        console.OUT.print("No runs.")
        return
    columns = ("Created", "State", "Customer", "Template", "Date", "Trigger", "Attempt", "Took", "Rows", "Run", "Error")
    console.print_table(columns, [_cells(row) for row in rows])
    console.OUT.print(console.counted(len(rows), "run") + ", newest first", style="dim")


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    started, ended = row["actual_start_time"], row["actual_end_time"]
    took = _took((ended - started).total_seconds()) if started and ended else ""
    rows = "" if row["rows_processed"] is None else row["rows_processed"]
    return (
        row["created_at"],
        row["state"],
        row["customer_id"],
        _template(row),
        row["run_date"],
        row["trigger_type"],
        row["attempt"],
        took,
        rows,
        row["run_id"],
        row["error_message"] or "",
    )


def _took(seconds: float) -> str:
    from adapters.problems import span

    return f"{round(seconds * 1000)} ms" if seconds < 1 else span(seconds)


def _template(row: Mapping[str, Any]) -> str:
    return f"{row['provider']}/{row['domain']}/{row['pipeline_template']}".lower()


def _follow(datastore: "Datastore", dsn: str, wanted: "Wanted", limit: int, *, as_json: bool) -> None:
    """The newest ones, oldest of them first, and from there on every change."""
    from adapters.postgres.reads.history import end as end_of_log
    from adapters.postgres.reads.runs import newest
    from adapters.run_feed import Feed

    try:
        end = end_of_log(datastore)
        listed = newest(datastore, wanted, limit=limit)
        # What was listed already shows some of what the log says after its end was looked at.
        shown = {row["run_id"]: row["position"] for row in listed}
        for row in reversed(listed):
            _print_change(row["updated_at"], row, row["error_message"] or "", as_json=as_json)
        for change in Feed(datastore, dsn, end):
            if wanted.holds(change.row) and change.position > shown.get(change.row["run_id"], 0):
                _print_change(change.at, change.row, change.text, as_json=as_json)
    except KeyboardInterrupt:
        return


def _print_change(at: datetime, row: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json({**row, "at": at, "text": text})
        return
    line = Text(f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} ")
    line.append(f"{row['state']:<9}", style=_COLOURS.get(row["state"], ""))
    line.append(f" {row['customer_id']} {_template(row)} {row['run_date']} {row['run_id']} ")
    line.append(text, style="dim")
    console.OUT.print(line)


def _show_one(datastore: "Datastore", run_id: str, *, as_json: bool) -> None:
    from adapters.run_feed import one

    run = one(datastore, run_id)
    if run is None:
        console.fail(f"There is no run {run_id}: convergence runs lists them.")
    if as_json:
        console.print_json(run.model_dump(mode="json"))
        return
    _print_run(run)


def _print_run(run: "RunView") -> None:
    took = f", {_took(run.duration_ms / 1000)}" if run.duration_ms is not None else ""
    facts = [
        ("Run", run.run_id),
        ("State", run.state + took),
        ("Customer", run.customer_id),
        ("Template", _template(run.model_dump())),
        ("Date", run.run_date),
        ("Trigger", f"{run.trigger_type}, by {run.trigger_by}"),
        ("Pipeline", run.config_id or ""),
        ("Attempt", f"{run.attempt}" + (f", worker {run.worker_id}" if run.worker_id else "")),
        ("Rows", "" if run.rows is None else run.rows),
        ("Parameters", run.parameters or ""),
        ("Error", run.error or ""),
    ]
    for name, value in facts:
        if value != "":
            console.OUT.print(Text(f"{name:<12}", style="bold").append(console.shown(value), style=""))
    if run.steps:
        steps = [
            (s.attempt, s.step_name, s.step_type, s.status, f"{s.duration_ms} ms", s.rows_processed) for s in run.steps
        ]
        console.print_table(("Attempt", "Step", "Type", "Status", "Took", "Rows"), steps, title="Steps")
    if run.dq_results:
        results = [
            (
                r.dq_config_id,
                r.overall_status,
                r.expectations_passed,
                "; ".join(f"{f.name} ({f.severity}): {f.observed}" for f in r.failed_expectations),
            )
            for r in run.dq_results
        ]
        console.print_table(("Check", "Status", "Passed", "Failed"), results, title="Data quality")
    moments = [(moment.at, moment.event, moment.by, moment.text) for moment in run.timeline]
    console.print_table(("At", "Event", "By", "What"), moments, title="Timeline")
