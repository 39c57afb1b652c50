"""The command line: `convergence serve` and its companions."""

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from adapters import console
from adapters.cli import (
    backfill,
    billing,
    encryption,
    erase,
    events,
    export,
    keys,
    notifications,
    projections,
    rebuild,
    replay,
    roles,
    runs,
    status,
    verify,
)
from adapters.cli.options import Json, place, read_settings

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
for command in (
    roles,
    status,
    runs,
    backfill,
    billing,
    keys,
    events,
    replay,
    export,
    erase,
    projections,
    notifications,
    rebuild,
    verify,
    encryption,
):
    app.add_typer(command.app)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app convergence migrate[/bold]")
def migrate(*, as_json: Json = False) -> None:
    """Bring the database to this version's schema. Safe to repeat, and to run from several machines at once."""
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.database import migrate as migrate_database

    applied = migrate_database(where.dsn)
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
    where = place()
    from adapters.query import events_behind
    from adapters.query import query as ask

    behind = events_behind(where.dsn, wait) if where.dsn and wait else 0
    if behind is None:
        console.ERR.print("The database does not answer: the rows may be behind.", style="yellow")
    elif behind:
        console.ERR.print(f"BigQuery is {console.counted(behind, 'event')} behind.", style="yellow")
    answer = ask(where.settings, sys.stdin.read() if sql == "-" else sql, limit)
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


@app.command(epilog="Example: [bold]convergence doctor --whole-log --json[/bold]")
def doctor(
    *,
    whole_log: Annotated[
        bool, typer.Option("--whole-log", help="Decode every event, not the newest 20,000 only: before an upgrade.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check settings, data directory, PostgreSQL, the log, BigQuery, keys, mail, API and templates; say what to do.

    Exit status 1 when something fails; warnings are no failure.
    """
    from adapters import progress
    from adapters.doctor import examine
    from adapters.finding import Result

    with progress.bar(shown=whole_log and not as_json) as tell:
        findings = examine(whole_log=whole_log, tell=tell)
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
    settings = read_settings()
    from adapters.demo import demonstrate

    if not demonstrate(settings, url=url, days=days, as_json=as_json):
        raise typer.Exit(console.FAILED)


def _unwrap(commands: typer.Typer) -> None:
    """Have the paragraphs of help break where the terminal does, not where the source did."""
    for command in commands.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = command.help or "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _unwrap(group.typer_instance)


_unwrap(app)


def _foreseen(error: Exception) -> tuple[str, int] | None:
    """The sentence and exit status of an error that is the operator's to mend; None for a fault of ours."""
    from adapters.embedded import EmbeddedError
    from adapters.process import Unable
    from adapters.settings import WrongSettings
    from application.mapper import UnreadableEvent
    from application.ports import Away

    match error:
        case WrongSettings():
            return str(error), console.WRONG
        case Unable() | EmbeddedError() | Away() | UnreadableEvent():
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
