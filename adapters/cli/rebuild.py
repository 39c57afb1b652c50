"""`convergence rebuild`: makes tables anew from the log, beside the live ones, and swaps them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters import console
from adapters.cli.options import Json, place
from projections.targets import Target

if TYPE_CHECKING:
    from adapters.bootstrap import Service
    from adapters.postgres.rebuilds import Rebuild

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()


@app.command(epilog="Example: [bold]convergence rebuild scheduled_pipeline_runs --reason 'Edited by hand.'[/bold]")
def rebuild(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help="Which tables; all of them when none is named.")
    ] = None,
    *,
    target: Annotated[Target, typer.Option(help="PostgreSQL's tables, BigQuery's, or both.")] = Target.POSTGRES,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    as_json: Json = False,
) -> None:
    """Make tables anew from the event log, and put them in the place of the live ones; reads and writes go on.

    Live rows of PostgreSQL that differ from the log are counted, and mended by the swap. Interrupted, the same command
    goes on from where it was. Exit status 1 when it fails: the live tables are as they were then.
    """
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.roles import opened

    service = opened(where)
    try:
        done = _rebuilt(service, tables or [], target, _line(reason), shown=not as_json)
    finally:
        service.close()
    if as_json:
        console.print_json(_plain(done))
    else:
        _print(done)


def _rebuilt(service: "Service", tables: list[str], target: Target, reason: str | None, *, shown: bool) -> "Rebuild":
    from adapters.postgres.checkpoints import leading
    from adapters.progress import bar
    from adapters.rebuild import LEAD, carry_out

    wanted = _chosen(tables, target)
    # Before it is asked for: a projector would take it up otherwise.
    with leading(service.dsn, LEAD, wait_s=1) as lead:
        found = _found(service, wanted, target, reason, free=bool(lead))
        try:
            with bar(shown=shown) as tell:
                return carry_out(service, found.rebuild_id, tell=tell)
        except KeyboardInterrupt:
            again = "The same command goes on from here; a running projector does so by itself."
            console.ERR.print(f"The rebuild is not finished. {again}", markup=False)
            raise


def _found(service: "Service", tables: tuple[str, ...], target: Target, reason: str | None, *, free: bool) -> "Rebuild":
    """The rebuild to do: a new one, or the same one that was left unfinished."""
    from uuid import uuid4

    from adapters.bootstrap import operator
    from adapters.postgres import rebuilds

    left = rebuilds.unfinished(service.datastore)
    if not free:
        how_far = f", at position {left.position} of {left.log_end}" if left else ""
        console.fail(f"Another process is rebuilding{how_far}. See `convergence projections`.")
    if left is None:
        return rebuilds.ask(
            service.datastore, str(uuid4()), tables=tables, target=target, asked_by=operator(), reason=reason
        )
    if set(left.tables) != set(tables) or left.target is not target:
        same = f"convergence rebuild {' '.join(left.tables)} --target {left.target}"
        console.fail(f"An earlier rebuild was left unfinished. Finish it first:\n  {same}")
    console.ERR.print(f"Going on from position {left.position} of {left.log_end}.", markup=False)
    return left


def _chosen(tables: list[str], target: Target) -> tuple[str, ...]:
    from adapters.rebuild import chosen
    from domain.refusals import Invalid

    try:
        return chosen(tables, target)
    except Invalid as refusal:
        console.fail(str(refusal), console.WRONG)


def _line(text: str | None) -> str | None:
    from pydantic import TypeAdapter, ValidationError

    from application.command import Line

    if text is None:
        return None
    try:
        return TypeAdapter(Line).validate_python(text)
    except ValidationError:
        console.fail("--reason: must be one line of at most 200 characters.", console.WRONG)


def _print(done: "Rebuild") -> None:
    for name, found in done.differences.items():
        counts = ", ".join(f"{number} {kind}" for kind, number in found.items() if number)
        console.OUT.print(f"{name}: {counts}; mended.", style="yellow", markup=False)
    for name, rows in done.loaded.items():
        console.OUT.print(f"{name}: {console.counted(rows, 'row')} loaded into BigQuery.", markup=False)
    tables = console.counted(len(done.tables), "table")
    same = "" if done.differences or done.target is Target.BIGQUERY else " No live row differed from the log."
    console.OUT.print(f"{tables} rebuilt up to position {done.position}.{same}", markup=False)


def _plain(done: "Rebuild") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(done), "rebuild_id": str(done.rebuild_id)}
