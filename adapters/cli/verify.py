"""`convergence verify`: whether every row is what the log says, which are not, and mending those."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from adapters import console
from adapters.cli.chain import as_json as chain_as_json
from adapters.cli.chain import check_chain, print_checked
from adapters.cli.options import Json, place
from adapters.verification.report import LIMIT, Kind, Report, Side, SideState
from projections.targets import Target

if TYPE_CHECKING:
    from adapters.bootstrap import Service
    from adapters.verification.report import Difference

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_MENDS: Final = 5
"""Commands that mend a table or a customer each; where more were needed, one for all of them is told."""

_NAMES = {Side.POSTGRES: "PostgreSQL", Side.BIGQUERY: "BigQuery"}
_COLOURS = {Kind.CHANGED: "yellow", Kind.MISSING: "red", Kind.EXTRA: "magenta"}


@app.command(
    epilog="Examples: [bold]convergence verify[/bold] · "
    "[bold]convergence verify customer_usage --customer acme_corp --repair --reason 'Edited by hand.'[/bold]"
)
def verify(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]...", help="Which tables; all of them if none is named.")
    ] = None,
    *,
    target: Annotated[
        Target | None, typer.Option(help="Where rows are compared with the log. [default: both]", show_default=False)
    ] = None,
    customer: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this customer's rows: costs what its own history costs.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the rows that differ what the log says, and look again.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why rows are repaired, for the record.")] = None,
    chain: Annotated[
        bool,
        typer.Option("--chain", help="Check the log itself against its seals and signed heads; alone, nothing else."),
    ] = False,
    public_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--public-key", metavar="BASE64", help="With --chain: the key that heads must be signed with, not our own."
        ),
    ] = None,
    heads_file: Annotated[
        Path | None, typer.Option(help="With --chain: a copy of the signed heads. [default: LOG_HEADS_FILE]")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="Describe at most this many differences. All are counted.")
    ] = LIMIT,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to let BigQuery catch up with the log, as long as it moves.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Compare the log with the rows of PostgreSQL and BigQuery, and name every one that differs. The log is right.

    Writes may go on meanwhile. Exit status 1 when a row differs (with --repair: still differs), when a side could not
    be compared, or, with --chain, when the log is not what was sealed and signed.
    """
    console.log_to_stderr(as_json=as_json)
    asked_rows = not chain or bool(tables or target or customer or repair)
    if repair:
        _check_reason(reason)
    elif reason is not None:
        console.fail("--reason: goes with --repair.", console.WRONG)
    if (public_keys or heads_file) and not chain:
        console.fail("--public-key, --heads-file: go with --chain.", console.WRONG)
    where = place()
    from adapters.roles import opened

    service = opened(where)
    try:
        report = (
            _verify(
                service,
                tables=tuple(tables or ()),
                target=target or Target.BOTH,
                customer_id=customer,
                reason=reason if repair else None,
                limit=limit,
                wait_s=wait,
                shown=not as_json,
            )
            if asked_rows
            else None
        )
        log = (
            check_chain(service, public_keys=public_keys or (), heads_file=heads_file, most=limit, shown=not as_json)
            if chain
            else None
        )
    finally:
        service.close()
    if as_json:
        from dataclasses import asdict

        rows = {**asdict(report), "left": report.left, "complete": report.complete} if report else {}
        console.print_json({**rows, "chain": chain_as_json(log)} if log else rows)
    else:
        if report is not None:
            _print_report(report)
        if log is not None:
            print_checked(log)
    if (report is not None and (report.left or not report.complete)) or (log is not None and log.found):
        raise typer.Exit(console.FAILED)


def _check_reason(reason: str | None) -> None:
    from pydantic import TypeAdapter, ValidationError

    from application.command import Line

    if reason is None:
        console.fail("--repair: say why with --reason; it is kept in the log of the service.", console.WRONG)
    try:
        TypeAdapter(Line).validate_python(reason)
    except ValidationError:
        console.fail("--reason: must be one line of at most 200 characters.", console.WRONG)


def _verify(service: "Service", *, shown: bool, **asked: Any) -> Report:  # noqa: ANN401 - options
    from adapters.bootstrap import operator
    from adapters.progress import bar
    from adapters.verification.verify import Asked, verify_rows
    from domain.refusals import Invalid, Refusal

    try:
        with bar(shown=shown) as tell:
            return verify_rows(service, Asked(**asked, by=operator()), tell)
    except Invalid as refusal:
        console.fail(str(refusal), console.WRONG)
    except Refusal as refusal:
        console.fail(str(refusal))


def _print_report(report: Report) -> None:
    sides = list(report.sides)
    columns = ["Table", "Rows by the log", *(_NAMES[side] for side in sides), "Differences", "SHA-256"]
    lines = []
    for table in report.tables:
        found = [table.sides.get(side) for side in sides]
        lines.append(
            (
                table.table,
                table.log.rows if table.log else "",
                *("" if rows is None else rows.rows for rows in found),
                sum(rows.differences for rows in found if rows is not None),
                table.log.digest[:16] if table.log else "",
            )
        )
    console.print_table(columns, lines, title=f"At position {report.position} of the log")
    for difference in report.differences:
        _print_difference(difference)
    if report.found > len(report.differences):
        console.OUT.print(f"… and {report.found - len(report.differences)} more: --limit shows them.", style="dim")
    for side, looked in report.sides.items():
        if looked.state is not SideState.COMPARED:
            console.OUT.print(f"{_NAMES[side]} was not compared. {looked.why}", style="yellow", markup=False)
    _print_verdict(report)


def _print_difference(difference: "Difference") -> None:
    key = ", ".join(f"{name}={value}" for name, value in difference.key.items())
    line = Text(f"{difference.kind:<8}", style=_COLOURS[difference.kind])
    line.append(f"{_NAMES[difference.side]} {difference.dataset}.{difference.table} {key}", style="bold")
    if difference.mended:
        line.append("  repaired", style="green")
    console.OUT.print(line)
    if difference.kind is Kind.MISSING:
        console.OUT.print("         The log has this row: it was removed.", style="dim")
    elif difference.kind is Kind.EXTRA:
        console.OUT.print("         The log has no such row: it was put there.", style="dim")
    for value in difference.values:
        told = (
            "differs" if value.secret else f"{console.shown(value.found)}, by the log {console.shown(value.expected)}"
        )
        console.OUT.print(f"         {value.column}: {told}", markup=False)


def _print_verdict(report: Report) -> None:
    if not report.found:
        verdict = "Every row that was compared is what the log says."
        colour = "green" if report.complete else "yellow"
    elif not report.left:
        verdict, colour = f"{console.counted(report.mended, 'difference')} repaired; none is left.", "green"
    else:
        verdict, colour = f"{console.counted(report.left, 'difference')}. The log is right.", "bold red"
    console.OUT.print(verdict, style=colour, markup=False)
    if report.left:
        commands = sorted({difference.mend for difference in report.differences if not difference.mended})
        if len(commands) > _MENDS:
            commands = ["convergence verify --repair --reason WHY"]
        for command in commands:
            console.OUT.print(f"→ {command}", markup=False)
