"""`convergence keys`: a customer's API keys, listed, issued and revoked by an operator."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from adapters import console
from adapters.cli.options import Json, place
from domain.scopes import Scope

if TYPE_CHECKING:
    from adapters.bootstrap import Service
    from adapters.key_views import ApiKeyView

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415


app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, help="List, issue and revoke the API keys of a customer.")
app.add_typer(keys, name="keys")

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer_id.")]


@keys.command("list", epilog="Example: [bold]convergence keys list acme_corp[/bold]")
def list_(customer: Customer, *, as_json: Json = False) -> None:
    """Show a customer's keys, the newest first: what they may be used for, when they end, when they were last used."""
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.database import readable

    with readable(where.dsn, name="keys") as datastore:
        from adapters.key_views import key_view
        from adapters.postgres.key_uses import last_uses
        from adapters.postgres.reads import profiles
        from adapters.postgres.reads.listing import Where, newest_first
        from projections.tables import CUSTOMER_API_KEYS

        if not profiles.exists(datastore, customer):
            console.fail("No such customer.")
        rows = newest_first(datastore, CUSTOMER_API_KEYS, [Where("customer_id", "=", customer)], after=None, limit=200)
        uses = last_uses(datastore, [row["api_key_id"] for row in rows])
        found = [key_view(row, uses.get(row["api_key_id"]), datetime.now(UTC)) for row in rows]
    if as_json:
        console.print_json([key.model_dump(mode="json") for key in found])
    else:
        columns = ("Key", "Ends in", "Name", "Scopes", "State", "Expires", "Last used")
        console.print_table(columns, [_line(key) for key in found])


def _line(key: "ApiKeyView") -> tuple[object, ...]:
    state = "works" if key.days_left else "expired"
    if not key.is_active:
        state = "revoked" if key.revoked_reason is None else f"revoked: {key.revoked_reason}"
    scopes = "all" if key.scopes is None else " ".join(key.scopes)
    used = "never" if key.last_used_at is None else f"{console.shown(key.last_used_at)} from {key.last_used_from}"
    return (key.api_key_id, key.last4, key.name, scopes, state, console.shown(key.expires_at), used)


@keys.command(epilog="Example: [bold]convergence keys issue acme_corp --name CI --scope runs:write[/bold]")
def issue(
    customer: Customer,
    *,
    name: Annotated[str | None, typer.Option(help="The key before of the same name works for another day.")] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="What it may be used for; may be repeated. Without: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Issue a key, good for 90 days, and show it: this once. At most two keys of a name are active."""
    from application.api_keys import IssueApiKey, issue_api_key

    console.log_to_stderr(as_json=as_json)

    def work(service: "Service") -> None:
        given = {"customer_id": customer, "name": name, "scopes": tuple(scope) if scope else None}
        command = IssueApiKey(**_stamp(service), **given)
        issued = issue_api_key(command, service.platform, service.vault)
        key = issued.api_key.get_secret_value() if issued.api_key else None
        if as_json:
            shown = {"api_key_id": issued.api_key_id, "customer_id": customer, "api_key": key}
            replaced = [{"api_key_id": old, "works_until": until} for old, until in issued.replaced.items()]
            console.print_json({**shown, "expires_at": issued.expires_at, "replaced": replaced})
            return
        console.OUT.print(key, markup=False, highlight=False, soft_wrap=True)
        console.ERR.print(
            f"Save this key now: it is shown only once. It works until {console.shown(issued.expires_at)}."
        )
        for old, until in issued.replaced.items():
            console.ERR.print(f"The key before ({old}) works until {console.shown(until)}.", markup=False)

    _on_service(work)


@keys.command(epilog='Example: [bold]convergence keys revoke acme_corp 4f0c6a52-… --reason "Laptop lost."[/bold]')
def revoke(
    customer: Customer,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The api_key_id, as `convergence keys list` shows it.")],
    *,
    reason: Annotated[str | None, typer.Option(help="Why, for the record: the customer is shown it.")] = None,
    as_json: Json = False,
) -> None:
    """Revoke a key: it stops working within a second in every process of the service."""
    from application.api_keys import RevokeApiKey, revoke_api_key

    console.log_to_stderr(as_json=as_json)

    def work(service: "Service") -> None:
        command = RevokeApiKey(**_stamp(service), customer_id=customer, api_key_id=key, reason=reason)
        revoke_api_key(command, service.platform)
        if as_json:
            console.print_json({"api_key_id": key, "revoked": True})
        else:
            console.OUT.print(f"Key {key} of {customer} does not work any more.", markup=False)

    _on_service(work)


def _stamp(service: "Service") -> dict[str, object]:
    from adapters.bootstrap import operator, origin

    with service.store.transaction() as session:
        return {"at": session.now(), "by": origin(operator())}


def _on_service(work: Callable[["Service"], None]) -> None:
    """Do `work` with the service; what is refused or wrong is said in a sentence."""
    where = place()
    from pydantic import ValidationError

    from adapters.roles import opened
    from domain.refusals import Refusal

    service = opened(where)
    try:
        work(service)
    except ValidationError as error:
        names = ", ".join(f"--{problem['loc'][0]}" for problem in error.errors(include_input=False))
        console.fail(f"{names}: must be one line of at most 200 characters.", console.WRONG)
    except Refusal as refusal:
        console.fail(str(refusal))
    finally:
        service.close()
