"""`convergence notifications`: what customers were told, what was given up, and having that tried again."""

from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from adapters import console
from adapters.cli.options import Json, place
from domain.notification import DeliveryState, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()
notifications = typer.Typer(help="Show what customers were told, and have what was given up tried again.")
app.add_typer(notifications, name="notifications")

_MOST: Final = 1000


@notifications.command("list", epilog="Example: [bold]convergence notifications list --state DEAD[/bold]")
def list_(
    *,
    state: Annotated[DeliveryState | None, typer.Option(help="Only those with a delivery in this state.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only those of this kind.")] = None,
    customer: Annotated[str | None, typer.Option(metavar="CUSTOMER", help="Only this customer's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MOST, help="Show at most this many.")] = 50,
    as_json: Json = False,
) -> None:
    """Show notifications, newest first, with what became of each at its receivers."""
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.database import readable
    from adapters.notifications.listing import newest_first

    with readable(where.dsn, name="notifications") as datastore:
        rows = newest_first(datastore, customer_id=customer, kind=kind, state=state, limit=limit)
    if as_json:
        console.print_json(rows)
    elif rows:
        _print(rows)
    else:
        console.OUT.print("There are none.", style="dim")


@notifications.command(
    epilog="Example: [bold]convergence notifications replay 9f1c2f0e-5b0a-5b7e-8c59-0d1ec5f1a9e4[/bold]"
)
def replay(
    ids: Annotated[list[UUID], typer.Argument(metavar="ID...", help="The notification_ids.")],
    *,
    as_json: Json = False,
) -> None:
    """Have deliveries that were given up tried again, from the beginning and under the same ids.

    Exit status 1 when one of the notifications is not there or has no delivery that was given up.
    """
    console.log_to_stderr(as_json=as_json)
    where = place()
    from adapters.database import readable
    from adapters.notifications.deliveries import replay as try_again
    from domain.refusals import Refusal

    answers: list[dict[str, Any]] = []
    with readable(where.dsn, name="notifications") as datastore:
        for notification_id in ids:
            answer: dict[str, Any] = {"notification_id": str(notification_id), "replayed": 0, "refused": None}
            try:
                answer["replayed"] = try_again(datastore, notification_id)
            except Refusal as refusal:
                answer["refused"] = str(refusal)
            answers.append(answer)
    if as_json:
        console.print_json(answers)
    for answer in () if as_json else answers:
        said = answer["refused"] or f"{console.counted(answer['replayed'], 'receiver')} tried again."
        console.OUT.print(f"{answer['notification_id']}: {said}", markup=False)
    if any(answer["refused"] for answer in answers):
        raise typer.Exit(console.FAILED)


def _print(rows: "Sequence[dict[str, Any]]") -> None:
    lines = [
        (
            str(row["notification_id"]),
            row["customer_id"],
            row["kind"],
            console.shown(row["occurred_at"]),
            delivery["endpoint_id"] or delivery["by"],
            delivery["state"],
            delivery["attempts"],
            delivery["last_error"] or "",
        )
        for row in rows
        for delivery in row["deliveries"]
    ]
    columns = ("notification_id", "customer", "kind", "occurred", "receiver", "state", "attempts", "last error")
    console.print_table(columns, lines)
