"""`convergence encryption`: how keys are rotated while the service runs, and who has had which secret opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters import console
from adapters.cli.options import Json, place

if TYPE_CHECKING:
    from adapters.bootstrap import Service

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()
encryption = typer.Typer(
    no_args_is_help=True,
    help="Rotate the keys that guard customers' secrets, and see who has had which secret opened.",
    epilog="Example: [bold]convergence encryption status[/bold]",
)
app.add_typer(encryption, name="encryption")


@contextmanager
def _service() -> Iterator["Service"]:
    from adapters.roles import opened
    from application.ports import Purpose

    service = opened(place(), frozenset({Purpose.PERSONAL}))
    try:
        yield service
    finally:
        service.close()


@encryption.command(epilog="Example: [bold]convergence encryption status --json[/bold]")
def status(*, as_json: Json = False) -> None:
    """Show how many data keys each version of the wrapping keys has wrapped, and what a rotation has left to do."""
    console.log_to_stderr(as_json=as_json)
    from adapters.encryption import status as look

    with _service() as service:
        found = look(service)
    if as_json:
        console.print_json(found)
        return
    primary = found["primary_versions"]
    console.print_table(
        ("Wrapped under", "Data keys", "The oldest from", ""),
        [
            (row["version"], row["keys"], row["oldest"], "wraps now" if row["version"] in primary else "rewrap")
            for row in found["wrapped_under"]
        ],
    )
    names = ("purpose", "sealing", "oldest_sealing", "kept_for_the_log", "to_be_destroyed")
    console.print_table(
        ("Data keys for", "Sealing", "The oldest from", "Kept for the log", "To be destroyed"),
        [[row[name] for name in names] for row in found["data_keys"]],
    )
    left = ", ".join(f"{row['secrets']} of {row['purpose']}" for row in found["to_reseal"])
    console.OUT.print(f"Secrets to seal anew: {left or 'none'}.", markup=False)


@encryption.command(epilog="Example: [bold]convergence encryption rewrap[/bold]")
def rewrap(*, as_json: Json = False) -> None:
    """Wrap every data key under the newest version of its wrapping key; nothing else changes.

    To be run after a wrapping key was rotated, in KMS or by `convergence encryption new-wrapping-key`. The service goes
    on meanwhile; while KMS is away this waits, and begun again it goes on where it was. Exit status 1 when data keys
    are left.
    """
    console.log_to_stderr(as_json=as_json)
    from dataclasses import asdict

    from adapters import progress
    from adapters.encryption import rewrap as wrap_anew

    with _service() as service, progress.bar(shown=not as_json) as tell:
        done = wrap_anew(service, tell=tell)
    if as_json:
        console.print_json(asdict(done))
    else:
        console.OUT.print(f"{console.counted(done.rewrapped, 'data key')} wrapped anew.", markup=False)
        for version in done.unused:
            console.OUT.print(
                f"No data key here needs {version} any more; backups and exports from before now do.", markup=False
            )
        for whose in done.damaged:
            console.ERR.print(f"A data key of {whose} does not open.", style="yellow", markup=False)
        if done.others_left:
            left = console.counted(done.others_left, "data key")
            console.ERR.print(f"{left} wrapped otherwise: see `convergence encryption status`.", markup=False)
    if done.others_left:
        raise typer.Exit(console.FAILED)


@encryption.command(epilog="Example: [bold]convergence encryption rotate --older-than 365[/bold]")
def rotate(
    *,
    customer: Annotated[str | None, typer.Option(help="Only this customer's data keys.")] = None,
    older_than: Annotated[
        int | None, typer.Option("--older-than", min=0, metavar="DAYS", help="Only data keys that are as old as this.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Make no new keys: finish what earlier rotations have left.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give customers new data keys, seal their secrets anew under them, and destroy the old ones.

    A retired key is destroyed an hour later at the earliest, by the next rotation or by --resume. Keys for personal
    data stay, since the log holds what they sealed. The service goes on meanwhile; while KMS is away this waits.
    """
    console.log_to_stderr(as_json=as_json)
    if resume and older_than is not None:
        console.fail("--resume: makes no new keys, so there are none to choose by age.", console.WRONG)
    from dataclasses import asdict

    from adapters import progress
    from adapters.bootstrap import operator, origin
    from adapters.encryption import rotate as rotate_keys

    with _service() as service, progress.bar(shown=not as_json) as tell:

        def stamp() -> dict[str, Any]:
            return {"at": datetime.now(UTC), "by": origin(operator())}

        before = None if resume else datetime.now(UTC) - timedelta(days=older_than or 0)
        done = rotate_keys(service, stamp, made_before=before, customer_id=customer, tell=tell)
    if as_json:
        console.print_json(asdict(done))
    else:
        secrets = console.counted(done.resealed, "secret")
        keys = f"{console.counted(done.renewed, 'new data key')}, {done.destroyed} destroyed"
        console.OUT.print(f"{keys}, {secrets} sealed anew.", markup=False)
        if done.waiting:
            waiting = console.counted(done.waiting, "retired key")
            console.OUT.print(
                f"{waiting} to be destroyed: in an hour, run `convergence encryption rotate --resume`.", markup=False
            )
        for whose in done.passed_over:
            console.ERR.print(f"Secrets of {whose} are as they were: one does not open.", style="yellow", markup=False)
    if done.passed_over:
        raise typer.Exit(console.FAILED)


@encryption.command(epilog="Example: [bold]convergence encryption new-wrapping-key && convergence encryption rewrap[/]")
def new_wrapping_key(*, as_json: Json = False) -> None:
    """Add a key to the local key file. It wraps from now on, in running processes too; those before it unwrap.

    With Cloud KMS, rotate the key there instead. Back the file up; after `convergence encryption rewrap` its earlier
    lines serve older backups only.
    """
    where = place()
    from adapters.bootstrap import key_file
    from adapters.kms.local import KeyFileRefused, add_key

    if where.settings.kms_keyring is not None:
        console.fail("The wrapping keys are in Cloud KMS (KMS_KEYRING): rotate them there.", console.WRONG)
    try:
        keys = add_key(key_file(where.settings))
    except KeyFileRefused as error:
        console.fail(str(error))
    if as_json:
        console.print_json({"file": str(key_file(where.settings)), "keys": keys})
    else:
        console.OUT.print(f"{key_file(where.settings)} holds {console.counted(keys, 'key')} now.", markup=False)
        console.OUT.print("Next: back it up, and run `convergence encryption rewrap`.", markup=False)


@encryption.command(epilog="Example: [bold]convergence encryption decryptions --customer acme_corp[/bold]")
def decryptions(
    *,
    customer: Annotated[str, typer.Option(help="The customer_id.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Show at most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Show who has had which of a customer's secrets opened, when, and for which run or request; the newest first."""
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.database import readable
    from adapters.postgres.decryptions import of_customer

    with readable(where.dsn, name="decryptions") as datastore:
        rows = of_customer(datastore, customer, limit=limit)
    if as_json:
        console.print_json(rows)
        return
    names = ("at", "purpose", "record_id", "actor", "reason", "run_id", "attempt", "request_id")
    console.print_table(
        ("Opened", "What", "Its id", "By", "For", "Run", "Attempt", "Request"),
        [["" if row[name] is None else row[name] for name in names] for row in rows],
    )
