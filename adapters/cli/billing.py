"""`convergence billing`: which customers Stripe pays for, how they stand, and what an operator has to look at."""

from typing import TYPE_CHECKING, Annotated

import typer

from adapters import console
from adapters.cli.options import Json, place

if TYPE_CHECKING:
    from adapters.billing_views import BillingAccountView, BillingProblem

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()


@app.command(epilog="Example: [bold]convergence billing acme_corp[/bold]")
def billing(
    customer: Annotated[str | None, typer.Argument(metavar="[CUSTOMER]", help="Only this customer_id.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 50,
    as_json: Json = False,
) -> None:
    """Show how customers stand with Stripe, the newest first, and what you have to look at, with remedies."""
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.billing_views import account_view, problem_view
    from adapters.postgres.reads import billing as reads
    from adapters.postgres.reads import profiles
    from adapters.roles import opened

    service = opened(where)
    try:
        if customer is not None and not profiles.exists(service.datastore, customer):
            console.fail("No such customer.")
        accounts = [account_view(row) for row in reads.accounts(service.datastore, customer, limit=limit)]
        problems = [problem_view(row) for row in reads.problems(service.datastore, customer, limit=limit)]
    finally:
        service.close()
    if as_json:
        shown = {
            "accounts": [account.model_dump(mode="json") for account in accounts],
            "problems": [problem.model_dump(mode="json") for problem in problems],
        }
        console.print_json(shown)
        return
    _print(accounts, problems)


def _print(accounts: "list[BillingAccountView]", problems: "list[BillingProblem]") -> None:
    if not accounts:
        console.OUT.print("Stripe has told of nobody.")
    else:
        columns = ("customer", "stripe customer", "standing", "plan", "status", "access ends", "cancels at")
        rows = [
            (a.customer_id, a.stripe_customer_id, a.standing, a.plan, a.status, a.ends_at, a.cancel_at)
            for a in accounts
        ]
        console.print_table(columns, rows)
    for problem in problems:
        whose = problem.customer_id or problem.stripe_customer_id or "nobody"
        console.OUT.print(f"{problem.problem} {problem.subject} ({whose})", style="yellow", markup=False)
        console.OUT.print(f"  {problem.remedy}", markup=False)
