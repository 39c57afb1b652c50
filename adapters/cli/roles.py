"""The commands that run the service: `serve` for all of it, and one for each role."""

from typing import TYPE_CHECKING, Annotated

import typer

from adapters import console
from adapters.cli.options import Json, Verbose, place, read_settings

if TYPE_CHECKING:
    from adapters.roles import Role
    from adapters.running import Place
    from adapters.serve import Addresses

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()


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
    settings = read_settings()
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


def _run_role(role: "Role", where: "Place", *, as_json: bool) -> None:
    from adapters.process import Shutdown
    from adapters.roles import Role, run_role

    shutdown = Shutdown()
    shutdown.listen()
    facts = {"role": str(role), "url": where.url} if role is Role.API else {"role": str(role)}
    if role is Role.WORKER:
        facts["worker_id"] = where.settings.worker_id

    def announce() -> None:
        if as_json:
            console.print_json({**facts, "ready": True})
        else:
            console.OUT.print("Running: " + ", ".join(facts.values()), markup=False)

    run_role(role, where, shutdown, announce)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app PORT=8080 convergence api[/bold]")
def api(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run the HTTP API alone, on HOST and PORT."""
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    from adapters.roles import Role

    _run_role(Role.API, place(), as_json=as_json)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app convergence scheduler[/bold]")
def scheduler(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run a scheduler alone: it turns due slots into runs. Any number may run."""
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    where = place()
    from adapters.roles import Role

    _run_role(Role.SCHEDULER, where, as_json=as_json)


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

    SIGTERM: it finishes what it can within 25 seconds and hands the rest back to the queue. A second one ends it at
    once; others take its runs over within 70 seconds.
    """
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    where = place(worker_id=worker_id, worker_concurrency=concurrency)
    from adapters.roles import Role

    _run_role(Role.WORKER, where, as_json=as_json)


@app.command(epilog="Example: [bold]DATABASE_URL=postgresql://app:secret@db/app convergence projector[/bold]")
def projector(*, as_json: Json = False, verbose: Verbose = False) -> None:
    """Run a projector alone: it brings the log to BigQuery. Of several, one leads and the others stand by."""
    console.log_to_stderr(as_json=as_json, verbose=verbose)
    where = place()
    from adapters.roles import Role

    _run_role(Role.PROJECTOR, where, as_json=as_json)
