"""`convergence events`: who did what, when and why, and whatever happens next."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from adapters import console
from adapters.cli.options import WHEN, Json, instant, place

if TYPE_CHECKING:
    from eventsourcing.persistence import Notification

    from adapters.event_views import EventView
    from adapters.postgres.reads.events import Wanted
    from adapters.replayed import Past

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_PAGE: Final = 1_000


@app.command(
    epilog="Example: [bold]convergence events --customer acme_corp --type customer.suspended[/bold] says who did it"
    " and why · [bold]convergence events --stream RUN_ID[/bold] tells the life of a run"
    " · [bold]convergence events --actor admin --since 24h[/bold] · [bold]convergence events --follow --json[/bold]"
)
def events(
    *,
    customer: Annotated[str | None, typer.Option(help="Only of this customer, its subscription and its runs.")] = None,
    stream: Annotated[str | None, typer.Option(help="Only of this stream: a run's id, or any stream_id.")] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", help="Only of types that begin so: customer., run.failed, subscription.run-refused."),
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option(help="Only by this actor, or all whose first parts these are: admin, customer:acme_corp."),
    ] = None,
    correlation: Annotated[
        str | None, typer.Option(help="Only what this request or command set off: an X-Request-ID, for one.")
    ] = None,
    since: Annotated[str | None, typer.Option(help=f"Only at or after this. {WHEN}")] = None,
    until: Annotated[str | None, typer.Option(help="Only before this, said in the same ways.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most this many.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Then print events as they happen, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what happened, the newest first: when, what, by whom, to which customer, and with which reason.

    With --json each event is a line of JSON, and nothing of it is shortened. Names and e-mails of persons are shown
    where the keys are; secrets never are.
    """
    console.log_to_stderr(as_json=as_json)
    from adapters.postgres.reads.events import Wanted

    now = datetime.now(UTC)
    wanted = Wanted(
        customer_id=customer,
        stream_id=_stream(stream),
        type=type_,
        actor=_visible("--actor", actor.rstrip(":/") if actor else None),
        correlation_id=_visible("--correlation", correlation),
        since=instant("--since", since, now),
        until=instant("--until", until, now),
    )
    if follow and until is not None:
        console.fail("--until: what is to come is followed until Ctrl-C.", console.WRONG)
    where = place()
    from adapters.looking import looking

    with looking(where, name="events") as past:
        if follow and where.dsn:
            _follow(past, where.dsn, wanted, limit, as_json=as_json)
        else:
            _list(past, wanted, limit, as_json=as_json)


def _stream(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text is not None else None
    except ValueError:
        console.fail("--stream: is the id of a stream, such as a run's id.", console.WRONG)


def _visible(option: str, text: str | None) -> str | None:
    if text is not None and not (text.isascii() and text.isprintable() and text and not set(text) & set(' "\\')):
        console.fail(f"{option}: holds visible ASCII characters only, no quotes and no backslashes.", console.WRONG)
    return text


def _list(past: "Past", wanted: "Wanted", limit: int, *, as_json: bool) -> None:
    found = _views(past, _newest(past, wanted, limit), wanted)
    if as_json:
        for event in found:
            console.print_json(event.model_dump(mode="json"))
        return
    shown = 0
    for shown, event in enumerate(found, 1):  # noqa: B007 - how many there were is said at the end
        _print(event, as_json=False)
    if not shown:
        console.OUT.print("No events.")
        return
    more = "; there may be more: -n" if shown >= limit else ""
    console.OUT.print(f"{console.counted(shown, 'event')}, newest first{more}", style="dim")


def _newest(past: "Past", wanted: "Wanted", limit: int, end: int | None = None) -> "list[Notification]":
    """The newest events up to a position. To search a long log for few takes a while, and shows how far it is."""
    from adapters.postgres.reads.events import search
    from adapters.postgres.reads.history import end as end_of_log
    from adapters.progress import bar

    found: list[Notification] = []
    end = end_of_log(past.datastore) if end is None else end
    after: int | None = end + 1
    with ExitStack() as stack:
        tell = None
        while after is not None and len(found) < limit:
            page = search(past.datastore, wanted, after=after, limit=min(_PAGE, limit - len(found)))
            found += page.events
            after = page.next
            if after is not None and len(found) < limit:
                tell = tell or stack.enter_context(bar(shown=console.ERR.is_terminal))
                tell("Searching the log", end - after, end)
    return found


def _views(past: "Past", stored: "Sequence[Notification]", wanted: "Wanted") -> "Iterator[EventView]":
    from adapters.event_views import views

    for event in stored:
        yield from (v for v in views(event, past.mapper, for_operators=True) if wanted.of_type(v.type))


def _follow(past: "Past", dsn: str, wanted: "Wanted", limit: int, *, as_json: bool) -> None:
    """The newest ones, the oldest of them first, and from there on every other one."""
    from adapters.following import Following
    from adapters.postgres.reads.events import search
    from adapters.postgres.reads.history import end as end_of_log

    coming = replace(wanted, since=None)

    def look(after: int) -> "tuple[Sequence[Notification], int]":
        found = search(past.datastore, coming, after=after, limit=_PAGE, oldest_first=True)
        return found.events, max(after, found.searched_to)

    try:
        end = end_of_log(past.datastore)
        for event in _views(past, _newest(past, wanted, limit, end)[::-1], wanted):
            _print(event, as_json=as_json)
        for stored in Following(look, dsn, end):
            for event in _views(past, [stored], wanted):
                _print(event, as_json=as_json)
    except KeyboardInterrupt:
        return


def _print(event: "EventView", *, as_json: bool) -> None:
    if as_json:
        console.print_json(event.model_dump(mode="json"))
        return
    from adapters.event_lines import lines

    console.OUT.print(lines(event))
