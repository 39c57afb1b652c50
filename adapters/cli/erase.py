"""`convergence erase`: a customer goes for ever, after its id was typed once more."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adapters import console
from adapters.cli.options import Json, place

if TYPE_CHECKING:
    from adapters.bootstrap import Service
    from adapters.postgres.erasures import Erasure

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_LOOK_S: Final = 0.5


@app.command(
    epilog='Example: [bold]convergence erase acme_corp --reason "Asked to on 17 November."[/bold]'
    " · [bold]convergence erase acme_corp --status[/bold]"
)
def erase(
    customer: Annotated[str | None, typer.Argument(metavar="CUSTOMER", help="The customer_id.")] = None,
    *,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    confirm: Annotated[
        str | None, typer.Option(metavar="CUSTOMER", help="The customer_id once more, for scripts: nothing is asked.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a projector to finish it.")] = 30.0,
    status: Annotated[
        bool, typer.Option("--status", help="Only say how far the erasure of CUSTOMER has come.")
    ] = False,
    from_ledger: Annotated[
        bool,
        typer.Option("--apply-ledger", help="Erase again whoever was erased before and came back with a backup."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Erase a customer for ever: its runs end, its data keys are destroyed, its rows and its dataset are removed.

    What remains are events without names, e-mails and secrets. The id stays taken. Give the person their data before:
    convergence export --customer CUSTOMER --readable. Backups that are older have it all still: what was erased is
    kept in ERASURES_FILE and in BigQuery, and is applied again to a database that is restored from one.

    Interrupted, give the same command again. Exit status 1 when there is no such customer.
    """
    console.log_to_stderr(as_json=as_json)
    if from_ledger == (customer is not None):
        console.fail("Give either CUSTOMER or --apply-ledger.", console.WRONG)
    if customer is not None and not status:
        _must_be_meant(customer, reason, confirm)
    where = place()
    from adapters.roles import opened

    service = opened(where)
    try:
        if customer is None:
            _apply_ledger(service, in_warehouse=where.has_bigquery, as_json=as_json)
            return
        if not status:
            _erase(service, customer, reason or "", shown=not as_json)
        _tell(_progress(service, customer, 0.0 if status else wait), as_json=as_json)
    finally:
        service.close()


def _must_be_meant(customer: str, reason: str | None, confirm: str | None) -> None:
    if reason is None:
        console.fail("--reason: has to say why.", console.WRONG)
    if confirm is None:
        if not sys.stdin.isatty():
            console.fail(f"--confirm {customer}: is needed where nobody can be asked.", console.WRONG)
        console.ERR.print(f"{customer} will be erased for ever. Nobody can bring it back.", markup=False)
        confirm = typer.prompt("Type its id to go on", err=True)
    if confirm != customer:
        console.fail("That is not its id: nothing was erased.", console.WRONG)


def _erase(service: "Service", customer: str, reason: str, *, shown: bool) -> None:
    from functools import partial

    from pydantic import ValidationError

    from adapters.bootstrap import operator, origin
    from adapters.erasure import begin
    from adapters.progress import bar
    from application.erasure import Erase
    from application.erasure import erase as end_for_ever
    from domain.refusals import NotFound

    try:
        command = Erase(at=service.now(), by=origin(operator()), customer_id=customer, reason=reason)
    except ValidationError:
        console.fail("--reason: must be one line of at most 200 characters.", console.WRONG)
    try:
        with bar(shown=shown) as tell:
            end_for_ever(command, service.platform, tell=partial(tell, "Runs"))
    except NotFound as refusal:
        console.fail(str(refusal))
    begin(service, customer)


def _progress(service: "Service", customer: str, seconds: float) -> "Erasure":
    """How far the erasure is, once it is complete or the time is over."""
    from adapters.postgres import erasures

    until = time.monotonic() + seconds
    while True:
        found = erasures.find(service.datastore, customer)
        if found is None:
            console.fail(f"{customer} was not erased.")
        if found.completed_at is not None or time.monotonic() >= until:
            return found
        time.sleep(_LOOK_S)


def _apply_ledger(service: "Service", *, in_warehouse: bool, as_json: bool) -> None:
    from adapters.bootstrap import operator
    from adapters.erasure import apply_ledger

    back = apply_ledger(service, operator(), in_warehouse=in_warehouse)
    if as_json:
        console.print_json({"erased_again": back})
    elif back:
        console.OUT.print(f"Erased again: {', '.join(back)}.", markup=False)
    else:
        console.OUT.print("Nobody whom the deletion ledger names is here.")


def _tell(erasure: "Erasure", *, as_json: bool) -> None:
    from adapters.erasure import STEPS

    if as_json:
        steps = {name: erasure.done.get(name) for name in STEPS}
        complete = erasure.completed_at is not None
        console.print_json(
            {
                "customer_id": erasure.customer_id,
                "erased_at": erasure.erased_at,
                "complete": complete,
                "completed_at": erasure.completed_at,
                "steps": steps,
                "problem": erasure.problem,
            }
        )
        return
    console.OUT.print(f"{erasure.customer_id} was erased at {console.shown(erasure.erased_at)}.", markup=False)
    console.print_table(["step", "done at"], [[name, erasure.done.get(name, "not yet")] for name in STEPS])
    if erasure.completed_at is None:
        rest = erasure.problem or "A projector finishes the rest: convergence serve, or projector."
        console.OUT.print(rest, style="yellow", markup=False)
