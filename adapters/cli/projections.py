"""`convergence projections`: how far they are, what keeps them from going on, and passing over an event."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters import console
from adapters.cli.options import Json, place
from domain.projection import PROJECTIONS

if TYPE_CHECKING:
    from rich.table import Table

    from adapters.status_views import ProjectionsView, ProjectionView

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()
projections = typer.Typer(
    invoke_without_command=True,
    help="Show how far projections are and what keeps them from going on, or have one pass over an event.",
    epilog="Example: [bold]convergence projections[/bold]",
)
app.add_typer(projections, name="projections")


@projections.callback()
def show(context: typer.Context, *, as_json: Json = False) -> None:
    """Show how far projections are, how fast, whether a process works on them, and what keeps them from going on.

    Exit status 1 when something does.
    """
    if context.invoked_subcommand is not None:
        return
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.database import readable
    from adapters.projection_views import look_at_all

    with readable(where.dsn, name="projections") as datastore:
        found = look_at_all(datastore)
    if as_json:
        console.print_json(found.model_dump(mode="json"))
    else:
        _print(found)
    if any(shown.problem for shown in found.items):
        raise typer.Exit(console.FAILED)


@projections.command(
    epilog='Example: [bold]convergence projections skip bigquery --position 4711 --reason "Written by a broken'
    ' release."[/bold]'
)
def skip(
    projection: Annotated[str, typer.Argument(metavar="PROJECTION", help=f"Which: {', '.join(PROJECTIONS)}.")],
    *,
    position: Annotated[
        int, typer.Option(min=1, max=2**63 - 1, help="That of the event at which the projection stands stopped.")
    ],
    reason: Annotated[str, typer.Option(help="Why the event can be done without, for the record.")],
    as_json: Json = False,
) -> None:
    """Have a projection pass over the event that it stands stopped at, for good: also after a restart or a rebuild.

    It is recorded as an event itself. What is passed over stays in the log, and commands still need it.
    """
    console.log_to_stderr(as_json=as_json)
    if projection not in PROJECTIONS:
        console.fail(f"PROJECTION: must be one of {', '.join(PROJECTIONS)}.", console.WRONG)
    where = place()
    from pydantic import ValidationError

    from adapters.bootstrap import operator, origin
    from adapters.projection_views import look_at_all
    from adapters.roles import opened
    from application.projections import SkipEvent, skip_event
    from domain.refusals import Refusal

    service = opened(where)
    try:
        with service.store.transaction() as session:
            now = session.now()
        asked: dict[str, Any] = {"projection": projection, "position": position, "reason": reason}
        skip_event(SkipEvent(at=now, by=origin(operator()), **asked), service.platform)
        found = look_at_all(service.datastore)
    except ValidationError:
        console.fail("--reason: must be one line of at most 200 characters.", console.WRONG)
    except Refusal as refusal:
        console.fail(str(refusal))
    finally:
        service.close()
    if as_json:
        console.print_json(found.model_dump(mode="json"))
    else:
        console.OUT.print(f"Projection {projection} passes over position {position}.", markup=False)


def _print(found: "ProjectionsView") -> None:
    from adapters.projection_views import problems_of

    console.OUT.print(table_of(found.items))
    for skipped in found.skipped:
        console.OUT.print(
            f"{skipped.projection} passes over position {skipped.position} ({skipped.topic}): {skipped.reason}"
            f" ({skipped.skipped_by}, {console.shown(skipped.skipped_at)})",
            style="dim",
            markup=False,
        )
    for rebuild in found.rebuilds:
        how = (
            f"at position {rebuild.position} of {rebuild.log_end}" if rebuild.ended_at is None else rebuild.error or ""
        )
        console.OUT.print(
            f"Rebuild of {console.counted(len(rebuild.tables), 'table')} ({rebuild.target}),"
            f" {console.shown(rebuild.asked_at)}, {rebuild.asked_by}: {rebuild.state.lower()}"
            + (f", {how}" if how else ""),
            style="dim",
            markup=False,
        )
    for problem in problems_of(found.items):
        console.OUT.print(problem.problem, style="bold red", markup=False)
        console.OUT.print(f"→ {problem.remedy}", style="red", markup=False)


def table_of(views: "list[ProjectionView]") -> "Table":
    """One line for each projection."""
    from rich.table import Table
    from rich.text import Text

    from adapters.problems import span

    table = Table(
        "Projection", "Position", "Log end", "Behind", "For", "Events/s", "Works", "Skipped", header_style="bold"
    )
    for shown in views:
        lags = shown.behind and shown.behind_seconds is not None
        cells = (
            shown.name,
            str(shown.position),
            str(shown.log_end),
            str(shown.behind),
            span(shown.behind_seconds or 0.0) if lags else "",
            "" if shown.events_per_second is None else f"{shown.events_per_second:.0f}",
            "stopped" if shown.stopped else "yes" if shown.alive else "no",
            str(shown.skipped),
        )
        table.add_row(*map(Text, cells), style="red" if shown.problem else "")
    return table
