"""`convergence replay`: what a customer or a stream was at any version or instant, and what changed it since."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from adapters import console
from adapters.cli.options import WHEN, Json, instant, place

if TYPE_CHECKING:
    from pydantic import BaseModel

    from adapters.replayed import CustomerAt, DifferenceView, Past, StreamView
    from application.replay import Until

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

app = typer.Typer()

_NOW: Final = "now"


@app.command(
    epilog='Example: [bold]convergence replay acme_corp --at "2025-11-11T14:05Z"[/bold] shows limits and usage of then'
    " · [bold]convergence replay acme_corp --diff 7d now[/bold]"
    " · [bold]convergence replay 4f0c6a52-1d3e-4c56-9a55-0d1ec5f1a9e4 --version 3[/bold]"
)
def replay(
    what: Annotated[
        str, typer.Argument(metavar="CUSTOMER|STREAM_ID", help="A customer_id, or a stream's or run's id.")
    ],
    *,
    version: Annotated[int | None, typer.Option(min=1, help="As it was after so many events of the stream.")] = None,
    at: Annotated[str | None, typer.Option(help=f"As it was then. {WHEN}")] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="What changed between two instants or versions, by whom and why; B may be now."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most this many runs that had not ended.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Fold the events of a stream again, or of a customer with its subscription and runs, and show what they come to.

    Nothing is changed, sent or executed. An event that cannot be read ends it, with its position, unless it lies
    behind what is asked for.
    """
    console.log_to_stderr(as_json=as_json)
    if sum(option is not None for option in (version, at, diff)) > 1:
        console.fail("--version, --at, --diff: only one of them can be given.", console.WRONG)
    from adapters.looking import looking
    from adapters.progress import bar
    from application.command import as_uuid
    from application.replay import Until

    now = datetime.now(UTC)
    until = Until(version, instant("--at", at, now))
    stream_id = as_uuid(what.lower())
    if stream_id is None and version is not None:
        console.fail("--version: counts the events of one stream; for a customer, use --at.", console.WRONG)
    span = tuple(_until(point, now, customer=stream_id is None) for point in diff) if diff else None
    with looking(place(), name="replay") as found, _said(), bar(shown=console.ERR.is_terminal) as tell:
        past = dataclasses.replace(found, tell=tell)
        if span is not None:
            _print_difference(_difference(past, what, *span), as_json=as_json)
        elif stream_id is not None:
            _print_stream(past.stream(stream_id, until), as_json=as_json)
        else:
            customer, _ = past.customer(what, until.at, now, limit=limit)
            _print_customer(customer, as_json=as_json)


@contextmanager
def _said() -> Iterator[None]:
    """What there was not, or cannot be read, ends the command with its sentence."""
    from application.mapper import UnreadableEvent
    from domain.refusals import Invalid, NotFound

    try:
        yield
    except Invalid as wrong:
        console.fail(str(wrong), console.WRONG)
    except NotFound as missing:
        console.fail(str(missing))
    except UnreadableEvent as unreadable:
        console.fail(f"Position {unreadable.position}: {unreadable}")


def _until(point: str, now: datetime, *, customer: bool) -> "Until":
    from application.replay import NOW, Until

    if point == _NOW:
        return NOW
    if not point.isdecimal():
        return Until(at=instant("--diff", point, now))
    if customer:
        console.fail("--diff: versions count the events of one stream; for a customer, give instants.", console.WRONG)
    return Until(version=int(point))


def _difference(past: "Past", what: str, since: "Until", until: "Until") -> "DifferenceView":
    from application.command import as_uuid

    stream_id = as_uuid(what.lower())
    if stream_id is not None:
        return past.stream_difference(stream_id, since, until)
    return past.customer_difference(what, since, until)


def _json(view: "BaseModel", *, as_json: bool) -> None:
    if as_json:
        console.print_json(view.model_dump(mode="json"))


def _print_stream(stream: "StreamView", *, as_json: bool) -> None:
    _json(stream, as_json=as_json)
    if not as_json:
        _print_state(stream)


def _print_state(stream: "StreamView") -> None:
    console.OUT.print(_heading(stream))
    console.OUT.print_json(data=stream.state, indent=2)


def _heading(stream: "StreamView") -> Text:
    heading = Text(f"{stream.kind.capitalize()} {stream.stream_id}", style="bold")
    heading.append(
        f" after event {stream.version}, position {stream.position}, {console.shown(stream.at)}, by {stream.actor}",
        style="dim",
    )
    return heading


def _print_customer(customer: "CustomerAt", *, as_json: bool) -> None:
    if as_json:
        _json(customer, as_json=True)
        return
    _print_state(customer.customer)
    if customer.subscription is not None:
        _print_state(customer.subscription)
    if customer.usage is not None:
        console.OUT.print(Text("Usage", style="bold"))
        console.OUT.print_json(data=customer.usage.model_dump(), indent=2)
    counted = ", ".join(f"{count} {state.lower()}" for state, count in customer.runs.states.items())
    console.OUT.print(Text(f"Runs: {counted or 'none'}", style="bold"))
    rows = [(r.stream_id, r.state["state"], r.state["attempt"], r.version, r.at, r.actor) for r in customer.runs.items]
    if rows:
        console.print_table(("Run", "State", "Attempt", "Events", "Since", "By"), rows)
    for sentence in customer.runs.unreadable:
        console.ERR.print(sentence, style="yellow", markup=False)


def _print_difference(found: "DifferenceView", *, as_json: bool) -> None:
    if as_json:
        _json(found, as_json=True)
        return
    if not found.changes:
        console.OUT.print(f"Nothing differs between {found.since} and {found.until}.")
        return
    from adapters.event_lines import lines

    actors = {event.position: event.actor for event in found.events}
    console.OUT.print(f"Between {found.since} and {found.until}:", style="dim", markup=False)
    for change in found.changes:
        told = f"by {actors[change.causes[-1]]} at position {change.causes[-1]}" if change.causes else ""
        told = f"{told}, the last of {change.times} times" if change.times > 1 else told
        for field, what in leaves(change.field, change.before, change.after):
            line = Text(field, style="bold")
            line.append(f" {what}", style="not bold")
            line.append(f"  {told}", style="not bold dim")
            console.OUT.print(line)
    console.OUT.print("\nThe newest events that did it", style="bold")
    for event in found.events:
        console.OUT.print(lines(event, with_data=False))


def leaves(field: str, before: Any, after: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - as JSON knows them
    """What changed, a line for each plain field: `25 -> 5`; of lists, what was added (+) and what removed (-)."""
    objects = [side for side in (before, after) if isinstance(side, dict)]
    if objects and all(side is None or isinstance(side, dict) for side in (before, after)):
        old, new = before or {}, after or {}
        for name in dict.fromkeys(name for side in objects for name in side):
            if old.get(name) != new.get(name):
                yield from leaves(f"{field}.{name}", old.get(name), new.get(name))
    elif isinstance(before, list) and isinstance(after, list):
        gone, come = ([item for item in a if item not in b] for a, b in ((before, after), (after, before)))
        what = [f"- {console.shown(item)}" for item in gone] + [f"+ {console.shown(item)}" for item in come]
        yield field, ", ".join(what) or f"{console.shown(before)} -> {console.shown(after)}"
    else:
        yield field, f"{_value(before)} -> {_value(after)}"


def _value(value: Any) -> str:  # noqa: ANN401 - as JSON knows it
    return "(none)" if value is None else console.shown(value)
