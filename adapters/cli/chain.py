"""What `convergence verify --chain` does and shows: the log itself against its seals and its signed heads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters import console

if TYPE_CHECKING:
    from adapters.bootstrap import Service
    from adapters.chain.findings import Checked

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415


def check_chain(
    service: "Service", *, public_keys: Sequence[str], heads_file: Path | None, most: int, shown: bool
) -> "Checked":
    """Check the whole log, with progress on standard error; ends the command with a sentence when it cannot."""
    from adapters.chain.check import check
    from adapters.progress import bar
    from application.ports import Away

    if heads_file is not None and not heads_file.is_file():
        console.fail(f"--heads-file: there is no file {heads_file}.", console.WRONG)
    try:
        with bar(shown=shown) as tell:
            return check(service, public_keys=public_keys, heads_file=heads_file, most=most, tell=tell)
    except ValueError as error:
        console.fail(f"--public-key: {error}", console.WRONG)
    except Away as away:
        console.fail(str(away))


def print_checked(result: "Checked") -> None:
    """The result in a table, and a line for each finding."""
    signed = console.shown(result.signed_at) if result.signed_at else "never"
    sealed = console.shown(result.sealed_at) if result.sealed_at else "never"
    bigquery = "not compared" if result.heads_in_bigquery is None else str(result.heads_in_bigquery)
    lines = [
        ("Events", f"{result.events}, up to position {result.position}"),
        ("Hash", result.hash),
        ("Seals", f"{result.seals}, up to position {result.sealed_position} ({sealed})"),
        ("Not sealed yet", console.counted(result.unsealed_events, "event")),
        ("Signed heads", f"{result.heads_in_file} in the file, BigQuery: {bigquery}"),
        ("Signed", f"up to position {result.signed_position} ({signed})"),
        ("Not signed yet", console.counted(result.unsigned_events, "event")),
        *(("Signed with", key) for key in result.public_keys),
    ]
    console.print_table(["The log", ""], lines)
    for finding in result.findings:
        console.OUT.print(f"[bold red]{finding.kind}[/]  ", end="")
        console.OUT.print(finding.sentence, markup=False)
    if result.found > len(result.findings):
        console.OUT.print(f"… and {result.found - len(result.findings)} more: --limit shows them.", style="dim")
    for note in result.notes:
        console.OUT.print(note, style="dim", markup=False)
    from adapters.chain.findings import Kind

    unchecked = result.counts.get(Kind.UNCHECKED, 0)
    if result.found and result.found == unchecked:
        verdict = "What could be checked is what was sealed and signed; the rest is named above: check again."
        console.OUT.print(verdict, style="yellow")
    elif result.found:
        counts = ", ".join(f"{kind}: {count}" for kind, count in result.counts.items())
        console.OUT.print(f"The log is not what was sealed and signed ({counts}).", style="bold red", markup=False)
    else:
        console.OUT.print("The log is what was sealed and signed.", style="green")


def as_json(result: "Checked") -> dict[str, object]:
    """The result for machines."""
    from dataclasses import asdict

    return {**asdict(result), "found": result.found}
