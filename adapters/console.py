"""What commands print: tables and sentences for people, JSON for machines, logs beside them on standard error."""

import base64
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Final, NoReturn

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

OUT: Final = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 1_000)
"""In a terminal as wide as that; piped into a file or another program, tables are as wide as they need to be."""
ERR: Final = Console(stderr=True, soft_wrap=True, highlight=False)

FAILED: Final = 1
"""The exit status of a command that could not do its work."""
WRONG: Final = 2
"""The exit status of a command that was asked the wrong thing: an argument, or a setting."""

_MOST_BYTES: Final = 24
_ENDLESS: Final = 100_000
"""Characters: wider than any table."""


def fail(sentence: str, status: int = FAILED) -> NoReturn:
    """End the command with one sentence on standard error."""
    ERR.print(Text(sentence.strip()))
    raise typer.Exit(status)


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    OUT.file.write(json.dumps(value, default=plain, ensure_ascii=False) + "\n")
    OUT.file.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """A table of plain values; in a terminal too narrow for its longest words, a paragraph for each row instead."""
    table = Table(
        *(Column(name, overflow="fold") for name in columns), title=title, title_justify="left", header_style="bold"
    )
    cells = [[shown(value) for value in row] for row in rows]
    for row in cells:
        table.add_row(*map(Text, row))
    if Measurement.get(OUT, OUT.options.update(width=_ENDLESS), table).minimum <= OUT.width:
        OUT.print(table)
        return
    if title is not None:
        OUT.print(title, style="italic", markup=False)
    for first, *others in cells:
        told = Text(first, style="bold")
        for name, value in zip(columns[1:], others, strict=True):
            if value:
                told.append("\n    " if told.plain == first else " · ", style="not bold")
                told.append(f"{name} ".lstrip(), style="not bold dim").append(value, style="not bold")
        OUT.print(told)


def print_findings(findings: Sequence[tuple[str, str, str, str, str]]) -> None:
    """A line per check: its name, its result in a colour, what was found, and below it what to do."""
    table = Table("Check", "Result", Column("Found", overflow="fold"), header_style="bold")
    for check, result, colour, detail, remedy in findings:
        found = Text(detail)
        if remedy:
            found.append(f"\n→ {remedy}", style=colour)
        table.add_row(Text(check), Text(result, style=colour), found)
    OUT.print(table)


def counted(number: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def shown(value: object) -> str:
    """A value for people: bytes by their length and beginning, instants in UTC."""
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).lower()
        case bytes():
            start = value[:_MOST_BYTES].hex()
            return f"{start}… ({len(value)} bytes)" if len(value) > _MOST_BYTES else start
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        case dict() | list():
            return json.dumps(value, default=plain, ensure_ascii=False)
    return str(value)


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON takes
    """A value as JSON knows it: exact numbers and bytes (base64, as BigQuery's own tools show them) become strings."""
    match value:
        case datetime():
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return dict(value)
    return str(value)


class _JsonLines(logging.Formatter):
    """One JSON object per record, with the names that Google's log collectors look for."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(*, as_json: bool, verbose: bool = False) -> None:
    """Send the service's own log to standard error; libraries are heard from WARNING on."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter("{asctime} {levelname:<7} {message}", "%H:%M:%S", style="{")
    handler.setFormatter(_JsonLines() if as_json else formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("adapters", "application", "projections"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
