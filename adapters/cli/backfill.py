"""`convergence backfill`: runs of a scheduled pipeline for days that lie behind, followed until they have ended."""

import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters import console
from adapters.cli.options import Json, place

if TYPE_CHECKING:
    from adapters.bootstrap import Service
    from adapters.postgres.reads.backfills import Progress
    from application.backfill import Backfilled

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_LOOK_S: Final = 1.0
"""How often progress is looked at when nothing is heard: that a run begins is not announced."""
_PAUSE_S: Final = 0.1
_DAY: Final = ["%Y-%m-%d"]


@app.command(
    epilog="Example: [bold]convergence backfill acme_corp 4f0c6a52-1d3e-4c56-9a55-0d1ec5f1a9e4"
    " --from 2025-10-01 --to 2025-10-31 --follow[/bold]"
)
def backfill(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer_id.")],
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The config_id of the scheduled pipeline.")],
    *,
    first: Annotated[datetime, typer.Option("--from", formats=_DAY, metavar="YYYY-MM-DD", help="The first day.")],
    last: Annotated[
        datetime,
        typer.Option(
            "--to", formats=_DAY, metavar="YYYY-MM-DD", help="The last day: today in the pipeline's zone, or earlier."
        ),
    ],
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    backfill_id: Annotated[
        str | None, typer.Option("--id", help="Go on with this earlier back-fill: days that have a run keep it.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until all of its runs have ended.")] = False,
    as_json: Json = False,
) -> None:
    """Run a scheduled pipeline for each day from the first to the last, the oldest first, with its own parameters.

    The runs count against the customer's quota, and run behind all others in at most half of its concurrent places.
    Days that find no room are not queued. Exit status 1 when none is, or, with --follow, when a run failed.
    """
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.roles import opened

    service = opened(where)
    try:
        done = _queue(
            service,
            backfill_id,
            customer_id=customer,
            config_id=config,
            first=first.date(),
            last=last.date(),
            reason=reason,
        )
        if not as_json:
            same = f"convergence backfill {customer} {config} --to {last.date()}"
            _print_queued(done, same, went_on=backfill_id is not None)
        progress = _follow(service, customer, done.backfill_id, shown=not as_json) if follow else None
    finally:
        service.close()
    if as_json:
        _print_json(done, progress)
    elif progress is not None:
        console.OUT.print(_in_words(progress))
    if progress is not None and _failed(progress):
        raise typer.Exit(console.FAILED)


def _queue(service: "Service", backfill_id: str | None, **asked: Any) -> "Backfilled":  # noqa: ANN401 - options
    from pydantic import ValidationError

    from adapters.bootstrap import operator, origin
    from application.backfill import Backfill
    from application.backfill import backfill as fill_in
    from application.command import as_uuid, new_id
    from domain.refusals import Invalid, Refusal

    if backfill_id is not None and as_uuid(backfill_id) is None:
        console.fail("--id: is not the id of a back-fill.", console.WRONG)
    with service.store.transaction() as session:
        now = session.now()
    try:
        command = Backfill(at=now, by=origin(operator()), backfill_id=backfill_id or new_id(), **asked)
    except ValidationError:
        console.fail("--reason: must be one line of at most 200 characters.", console.WRONG)
    try:
        return fill_in(command, service.platform, service.registry)
    except Invalid as refusal:
        console.fail(str(refusal), console.WRONG)
    except Refusal as refusal:
        console.fail(str(refusal))


def _follow(service: "Service", customer: str, backfill_id: str, *, shown: bool) -> "Progress":
    """Returns how the back-fill ended; shows a bar on standard error meanwhile."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from adapters.postgres.channels import ENDED
    from adapters.postgres.listener import Listener
    from adapters.postgres.reads import backfills

    news = threading.Event()
    listener = Listener(service.dsn, {ENDED: lambda _: news.set()})
    listener.start()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    try:
        with Bar(*columns, console=console.ERR, disable=not shown) as bar:
            task = bar.add_task("", total=None)
            while True:
                news.clear()
                progress = backfills.progress(service.datastore, customer, backfill_id)
                if progress is None:
                    raise LookupError(f"back-fill {backfill_id} was queued and has no runs")
                bar.update(task, total=progress.total, completed=progress.ended, description=_in_words(progress))
                if progress.ended == progress.total:
                    return progress
                news.wait(_LOOK_S)
                # Runs of all customers are announced: a busy time must not keep this reading.
                time.sleep(_PAUSE_S)
    except KeyboardInterrupt:
        again = f"The back-fill goes on. To follow it again, give the same command --id {backfill_id}."
        console.ERR.print(again, markup=False)
        raise
    finally:
        listener.stop()


def _failed(progress: "Progress") -> int:
    from domain.pipeline_run import RunState

    return progress.states.get(RunState.FAILED, 0)


def _in_words(progress: "Progress") -> str:
    """`28 completed, 3 failed`."""
    return ", ".join(f"{runs} {state.lower()}" for state, runs in sorted(progress.states.items()))


def _print_queued(done: "Backfilled", same: str, *, went_on: bool) -> None:
    """`same` is the command without its first day; days of an earlier back-fill had their runs before."""
    days = console.counted(done.queued, "day")
    queued = f"{days} with a run now" if went_on else f"{days} queued"
    console.OUT.print(f"Back-fill {done.backfill_id}: {queued}.", markup=False)
    if done.refused:
        refused = console.counted(done.refused, "day")
        console.OUT.print(
            f"{refused} found no room. {done.refusal} Once there is room, go on with:"
            f"\n  {same} --from {done.next_from} --id {done.backfill_id}",
            style="yellow",
            markup=False,
        )


def _print_json(done: "Backfilled", progress: "Progress | None") -> None:
    from dataclasses import asdict

    states = {} if progress is None else {"states": dict(progress.states)}
    console.print_json({**asdict(done), **states})
