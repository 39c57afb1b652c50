"""The command line: `convergence serve` and its companions."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters import console

if TYPE_CHECKING:
    from adapters.roles import Role
    from adapters.running import Place
    from adapters.serve import Addresses
    from adapters.settings import Settings

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer(
    name="convergence",
    help="Control plane of a multi-tenant data-pipeline platform.",
    no_args_is_help=True,
    add_completion=False,
    # Its own would print local variables, and with them secrets.
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more, to standard error.")]


def _settings(**given: Any) -> "Settings":  # noqa: ANN401 - any setting
    from adapters.settings import read

    return read(**{name: value for name, value in given.items() if value is not None})


def _place(**given: Any) -> "Place":  # noqa: ANN401 - any setting
    from adapters.running import locate

    return locate(_settings(**given))


@app.command(epilog="Example: [bold]PORT=8081 convergence serve[/bold]")
def serve(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run everything on this machine: PostgreSQL, BigQuery, API, scheduler, worker, projector.

    Ctrl-C stops it all in order, a second one at once. The data directory (DATA_DIR, ./var) stays. With DATABASE_URL
    or GCP_PROJECT_ID set, that database or Google's BigQuery is used instead of a local one.
    """
    from adapters.process import Shutdown

    shutdown = Shutdown()
    shutdown.listen()
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    settings = _settings()
    if not as_json:
        console.ERR.print("Starting; the first time takes a few seconds more …", style="dim")
    from adapters.serve import serve as run_everything

    run_everything(settings, shutdown, _print_addresses_json if as_json else _print_addresses)


def _print_addresses_json(addresses: "Addresses") -> None:
    from dataclasses import asdict

    console.print_json(asdict(addresses))


def _print_addresses(addresses: "Addresses") -> None:
    lines = [
        ("API", addresses.url),
        ("Documentation", addresses.docs),
        ("BigQuery", f"{addresses.bigquery} (project {addresses.project})"),
        ("PostgreSQL", addresses.postgresql),
        ("Mail", addresses.mail),
        ("Data", addresses.data_dir),
        ("Admin key", addresses.admin_key),
    ]
    console.OUT.print(f"\n[bold green]Ready[/] after {addresses.ready_after_s} s. Ctrl-C stops everything.\n")
    for name, value in lines:
        console.OUT.print(f"  [bold]{name:<14}[/]", end="")
        console.OUT.print(value, markup=False)
    console.OUT.print("\nA first customer, from another terminal:\n")
    console.OUT.print(
        f'  curl -X POST "{addresses.url}/api/v1/customers/onboard" -H "Content-Type: application/json" \\\n'
        '    -d \'{"customer_id": "demo_test", "company_name": "Demo Corp",'
        ' "admin_email": "test@demo.com", "subscription_plan": "PROFESSIONAL"}\'\n',
        markup=False,
    )
    console.OUT.print(
        "The whole guide by itself: [bold]convergence demo[/]. Is all well: [bold]convergence doctor[/].\n"
    )


def _run_role(role: "Role", place: "Place", *, as_json: bool) -> None:
    from adapters.process import Shutdown
    from adapters.roles import Role, run_role

    shutdown = Shutdown()
    shutdown.listen()
    facts = {"role": str(role), "url": place.url} if role is Role.API else {"role": str(role)}
    if role is Role.WORKER:
        facts["worker_id"] = place.settings.worker_id

    def announce() -> None:
        if as_json:
            console.print_json({**facts, "ready": True})
        else:
            console.OUT.print("Running: " + ", ".join(facts.values()), markup=False)

    run_role(role, place, shutdown, announce)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app PORT=8080 convergence api[/bold]")
def api(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run the HTTP API alone, on HOST and PORT."""
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    from adapters.roles import Role

    settings = _settings()
    from adapters.running import locate

    _run_role(Role.API, locate(settings), as_json=as_json)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app convergence scheduler[/bold]")
def scheduler(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run a scheduler alone: it turns due slots into runs. Any number may run."""
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    place = _place()
    from adapters.roles import Role

    _run_role(Role.SCHEDULER, place, as_json=as_json)


@app.command(epilog="Example: [bold]convergence worker --id worker-1 --concurrency 16[/bold]")
def worker(
    *,
    worker_id: Annotated[
        str | None, typer.Option("--id", help="Its name, another one for each worker; otherwise WORKER_ID.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="How many runs it executes at a time; otherwise WORKER_CONCURRENCY.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a worker alone: it claims waiting runs and executes them.

    SIGTERM: it finishes what it can within 25 seconds and hands the rest back to the queue.
    """
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    place = _place(worker_id=worker_id, worker_concurrency=concurrency)
    from adapters.roles import Role

    _run_role(Role.WORKER, place, as_json=as_json)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app convergence projector[/bold]")
def projector(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run a projector alone: it brings the log to BigQuery. Of several, one leads and the others stand by."""
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    place = _place()
    from adapters.roles import Role

    _run_role(Role.PROJECTOR, place, as_json=as_json)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app convergence migrate[/bold]")
def migrate(*, as_json: Json = False) -> None:
    """Bring the database to this version's schema. Safe to repeat, and to run from several machines at once."""
    console.log_to_stderr(as_json=as_json)
    place = _place()
    from adapters.database import migrate as migrate_database

    applied = migrate_database(place.dsn)
    if as_json:
        console.print_json({"applied": applied})
    else:
        console.OUT.print("Applied: " + ", ".join(applied) if applied else "Nothing to apply: the schema is current.")


@app.command(
    epilog="Example: [bold]convergence query "
    '"SELECT status, COUNT(*) AS runs FROM `gac-prod-471220.demo_test.x_meta_pipeline_runs` GROUP BY status"[/bold]'
)
def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One statement of GoogleSQL; - reads it from standard input.")
    ],
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Show at most this many rows; 0 for all.")] = 100,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to let BigQuery catch up with what was done before.")
    ] = 5.0,
    as_json: Json = False,
    use_legacy_sql: Annotated[str, typer.Option("--use_legacy_sql", hidden=True)] = "false",
) -> None:
    """Run SQL in BigQuery, the local one or Google's: a `bq query` line works after the word query as it is."""
    if use_legacy_sql.lower() != "false":
        console.fail("--use_legacy_sql: only GoogleSQL is understood here.", console.WRONG)
    place = _place()
    from adapters.query import events_behind
    from adapters.query import query as ask

    behind = events_behind(place.dsn, wait) if place.dsn and wait else 0
    if behind is None:
        console.ERR.print("The database does not answer: the rows may be behind.", style="yellow")
    elif behind:
        console.ERR.print(f"BigQuery is {console.counted(behind, 'event')} behind.", style="yellow")
    answer = ask(place.settings, sys.stdin.read() if sql == "-" else sql, limit)
    if answer.warning:
        console.ERR.print(answer.warning, style="yellow", markup=False)
    if as_json:
        rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        console.print_json(rows if answer.returns_rows else {"affected_rows": answer.affected_rows})
    elif not answer.returns_rows:
        affected = (
            "done" if answer.affected_rows is None else console.counted(answer.affected_rows, "row") + " affected"
        )
        console.OUT.print(f"{answer.statement}: {affected}.", markup=False)
    else:
        console.print_table(answer.columns, answer.rows)
        more = f" of {answer.total_rows}; --limit 0 shows all" if answer.total_rows > len(answer.rows) else ""
        count = console.counted(len(answer.rows), "row")
        console.OUT.print(f"{count}{more}", style="dim", markup=False)


@app.command(epilog="Example: [bold]convergence doctor --json[/bold]")
def doctor(*, as_json: Json = False) -> None:
    """Check settings, data directory, PostgreSQL, BigQuery, keys, mail, API and templates, and say what to do.

    Exit status 1 when something fails; warnings are no failure.
    """
    from adapters.doctor import Result, examine

    findings = examine()
    if as_json:
        from dataclasses import asdict

        console.print_json([asdict(finding) for finding in findings])
    else:
        colours = {Result.OK: "green", Result.WARN: "yellow", Result.FAIL: "bold red"}
        console.print_findings([(f.check, f.result, colours[f.result], f.detail, f.remedy) for f in findings])
    if any(finding.result is Result.FAIL for finding in findings):
        raise typer.Exit(console.FAILED)


@app.command(epilog="Example: [bold]convergence demo --url http://localhost:8080[/bold]")
def demo(
    *,
    url: Annotated[
        str | None, typer.Option(help="The server to walk through; otherwise the running serve, or a temporary one.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=20, help="How many days of billing data to run the pipeline for.")
    ] = 5,
    as_json: Json = False,
) -> None:
    """Walk through the guide: onboard, credentials, schedule, a month of billing data, runs, SQL, quota.

    It makes a customer of its own. Exit status 1 when an answer is not what the guide says.
    """
    settings = _settings()
    from adapters.demo import demonstrate

    if not demonstrate(settings, url=url, days=days, as_json=as_json):
        raise typer.Exit(console.FAILED)


def _foreseen(error: Exception) -> tuple[str, int] | None:
    """The sentence and exit status of an error that is the operator's to mend; None for a fault of ours."""
    from adapters.embedded import EmbeddedError
    from adapters.process import Unable
    from adapters.settings import WrongSettings
    from application.ports import Away

    match error:
        case WrongSettings():
            return str(error), console.WRONG
        case Unable() | EmbeddedError() | Away():
            return str(error), console.FAILED
        case OSError() if error.filename:
            return f"{Path(str(error.filename))}: {error.strerror}.", console.FAILED
    return None


def main() -> None:
    """The entry point: foreseeable errors end with one sentence on standard error, and a status that is not 0."""
    try:
        app()
    except Exception as error:
        foreseen = _foreseen(error)
        if foreseen is None:
            raise
        sentence, status = foreseen
        console.ERR.print(sentence, markup=False)
        from adapters.process import Late

        if isinstance(error, Late):
            os._exit(status)
        sys.exit(status)


if __name__ == "__main__":
    main()
