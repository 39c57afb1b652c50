"""`convergence export` and `convergence import`: the log in files, to be kept, and to go on elsewhere."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters import console
from adapters.cli.options import Json, place

if TYPE_CHECKING:
    from adapters.running import Place

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()


@app.command(
    epilog="Example: [bold]convergence export /backup/convergence[/bold]"
    " · [bold]convergence export --check /backup/convergence[/bold]"
)
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="One of its own; made if it is not there.")],
    *,
    customer: Annotated[str | None, typer.Option(help="Only this customer's events and data keys.")] = None,
    readable: Annotated[
        bool,
        typer.Option("--readable", help="With --customer: what is known of it, for a person to read. Not to import."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare what is there: checksums, chain, seals. Needs no database.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the log into DIRECTORY as gzip-compressed JSON lines; again into the same one, only what is new.

    With --readable and --customer, DIRECTORY gets a file of JSON lines for each table with rows of the customer, and
    events.jsonl with its audit trail: names and e-mails in clear, no secrets. So it can be given to whoever asks what
    is stored about them, before they are erased.

    Interrupted, it goes on when it is called again; a finished export stays whole until the next one has ended.

    The files hold events with personal fields sealed, data keys wrapped, seals and signed heads. They do not hold the
    wrapping key: keep the key of Cloud KMS, or the file DATA_DIR/keys/wrapping.key, in another place. Without it
    nothing sealed can be read again. A data key that was destroyed leaves the directory with the next export.
    """
    console.log_to_stderr(as_json=as_json)
    if check:
        if customer is not None:
            console.fail("--customer: --check looks at whatever the directory holds.", console.WRONG)
        _check(directory, as_json=as_json)
        return
    where = place()
    if readable:
        _readable(where, customer, directory, as_json=as_json)
        return
    from adapters.database import required
    from adapters.export import export as write
    from adapters.progress import bar

    dsn = required(where.dsn)
    with bar(shown=not as_json) as tell:
        done = write(dsn, directory, customer_id=customer, heads=where.settings.heads_file, tell=tell)
    if as_json:
        console.print_json(asdict(done))
        return
    total = console.counted(done.events, "event")
    console.OUT.print(
        f"{total} up to position {done.last_position} in {console.counted(done.files, 'file')}, {done.added} of them"
        f" new. The hash over them is {done.hash}.",
        markup=False,
    )
    if where.settings.kms_keyring is None:
        key = where.settings.data_dir / "keys" / "wrapping.key"
        console.ERR.print(f"Keep {key} too, in another place: without it nothing sealed can be read.", markup=False)


def _readable(where: "Place", customer: str | None, directory: Path, *, as_json: bool) -> None:
    if customer is None:
        console.fail("--readable: needs --customer.", console.WRONG)
    from adapters.progress import bar
    from adapters.readable_export import export_readable
    from adapters.roles import opened

    service = opened(where)
    try:
        with bar(shown=not as_json) as tell:
            done = export_readable(service, customer, directory, tell=tell)
    finally:
        service.close()
    if as_json:
        console.print_json(asdict(done))
    else:
        console.print_table(["file", "lines"], [[name, count] for name, count in done.lines.items()])
        console.ERR.print(f"{directory} names people: give it to nobody else, and delete it then.", markup=False)


def _check(directory: Path, *, as_json: bool) -> None:
    from adapters.archive.reading import opened
    from adapters.progress import bar

    with opened(directory) as archive, bar(shown=not as_json) as tell:
        checked = archive.check(tell)
    if as_json:
        console.print_json(asdict(checked))
    else:
        whose = "" if checked.customer_id is None else f" of {checked.customer_id}"
        sealed = "" if checked.customer_id else f", sealed up to {checked.sealed_to}"
        console.OUT.print(
            f"{console.counted(checked.events, 'event')}{whose} up to position {checked.last_position}{sealed}:"
            f" as they were written. The hash over them is {checked.hash}.",
            markup=False,
        )
    if checked.broken_seal is not None:
        console.fail(
            f"The log was changed before it was exported: the seal that ends at position {checked.broken_seal} does not"
            " agree with it. After an import, convergence verify --chain says what was changed."
        )


@app.command(
    "import",
    epilog="Example: [bold]cp /safe/wrapping.key var/keys/ && convergence serve &[/bold]"
    " · [bold]convergence import /backup/convergence[/bold]",
)
def import_(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="What convergence export wrote.")],
    *,
    as_json: Json = False,
) -> None:
    """Put the log of an export into a store that was never used, and make its tables from it: all or nothing.

    It needs the wrapping key that the log was written with (Cloud KMS, or DATA_DIR/keys/wrapping.key), the schema
    (convergence migrate), and the login that made it. Positions, streams and versions, data keys, seals and signed
    heads are as they were.

    What is not in a log: leases, so runs that were running are taken over, at the cost of an attempt; answers kept for
    Idempotency-Keys; links that show a first API key, which have to be issued anew; the list of processes; rebuilds.
    BigQuery is filled from the beginning of the log. Whoever is in the deletion ledger is erased again. Welcome mails
    are not sent again. Slots that came meanwhile are handled as after any standstill, by each pipeline's catch_up. For
    all that is in the database, use pg_dump.
    """
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.archive.reading import opened
    from adapters.database import required
    from adapters.importing import restore
    from adapters.progress import bar

    dsn = required(where.dsn)
    with opened(directory) as archive, bar(shown=not as_json) as tell:
        done = restore(dsn, archive, where.settings, tell=tell)
    erased = _erase_again(where)
    if as_json:
        console.print_json({**asdict(done), "erased_again": erased})
        return
    console.OUT.print(
        f"{console.counted(done.events, 'event')} up to position {done.last_position}, and"
        f" {console.counted(done.rows, 'row')} made from them. The hash over the events is {done.hash}.",
        markup=False,
    )
    if done.running:
        runs = console.counted(done.running, "run")
        console.OUT.print(f"{runs} had a worker when the log ended: to be taken over.", markup=False)
    if erased:
        console.OUT.print(f"Erased again, as the deletion ledger says: {', '.join(erased)}.", markup=False)


def _erase_again(where: "Place") -> list[str]:
    """Whoever was erased after the export was written is not to come back with it."""
    from adapters.bootstrap import operator
    from adapters.erasure import apply_ledger
    from adapters.roles import opened

    service = opened(where)
    try:
        return apply_ledger(service, operator(), in_warehouse=where.has_bigquery)
    finally:
        service.close()
