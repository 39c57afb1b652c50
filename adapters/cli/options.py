"""What the commands share: their common options, and the place they work on."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters import console

if TYPE_CHECKING:
    from adapters.running import Place
    from adapters.settings import Settings

# What a command needs is imported inside it: `--help` answers at once, and a query does not load a web server.
# ruff: noqa: PLC0415

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more, to standard error.")]


def read_settings(**given: Any) -> "Settings":  # noqa: ANN401 - any setting
    """The settings, of which those that were given on the command line count more than the environment's."""
    from adapters.settings import read

    return read(**{name: value for name, value in given.items() if value is not None})


def place(**given: Any) -> "Place":  # noqa: ANN401 - any setting
    """What the settings name; what they leave open is the running `serve`'s."""
    from adapters.running import locate

    return locate(read_settings(**given))


WHEN: Final = "A date or instant (UTC unless it says otherwise), or 90s, 30m, 2h, 7d ago."
"""What `instant` understands, for a command's help."""
_AGO: Final = re.compile(r"(\d{1,5})\s*([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def instant(option: str, text: str | None, now: datetime) -> datetime | None:
    """The instant that an option names, if it is given; ends the command when it names none."""
    if text is None:
        return None
    if ago := _AGO.fullmatch(text.strip().lower()):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        console.fail(f"{option}: is a date, an instant like 2025-11-17T02:00Z, or a time ago like 2h.", console.WRONG)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
