"""What the commands share: their common options, and the place they work on."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

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
