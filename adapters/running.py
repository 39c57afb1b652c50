"""The `serve` that runs on a data directory: where its parts are, written down for the other commands."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

import psutil

from adapters.settings import Settings

_FILE: Final = "serve.json"
_CLOCK_JITTER_S: Final = 2.0
"""How much a process's start time may differ between two looks at it: Linux counts it from a boot time that drifts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServe:
    """Where the parts of a running `serve` are. Its repr has no DSN, which holds a password."""

    pid: int
    started_at: float
    """When that process began, in seconds since 1970: another process with the same id is not this one."""
    url: str
    dsn: str = field(repr=False)
    emulator_url: str | None

    @classmethod
    def here(cls, *, url: str, dsn: str, emulator_url: str | None) -> Self:
        """This process."""
        own = psutil.Process()
        return cls(pid=own.pid, started_at=own.create_time(), url=url, dsn=dsn, emulator_url=emulator_url)

    @classmethod
    def find(cls, data_dir: Path) -> Self | None:
        """The `serve` that runs on this data directory, or None. A file that a killed one left behind counts for none.

        Raises `OSError` when the file is there and not ours to read.
        """
        try:
            text = (data_dir / _FILE).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError):
            return None
        return found if found._lives() else None

    def _lives(self) -> bool:
        with suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.started_at) < _CLOCK_JITTER_S
        return False

    def write(self, data_dir: Path) -> None:
        """Make it known, to the data directory's owner only. The file appears whole or not at all."""
        draft = data_dir / f".{_FILE}.{self.pid}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)
        draft.replace(data_dir / _FILE)

    @staticmethod
    def remove(data_dir: Path) -> None:
        (data_dir / _FILE).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a command works on: its settings, and a database and a `serve` as far as they are known."""

    settings: Settings
    dsn: str | None = field(repr=False)
    serve: RunningServe | None

    @property
    def url(self) -> str:
        """Where the API is, or would be."""
        return self.serve.url if self.serve else f"http://{reachable_host(self.settings.host)}:{self.settings.port}"

    @property
    def has_bigquery(self) -> bool:
        """Whether one is configured, or a local one runs."""
        return self.serve is not None or not self.settings.embedded_bigquery


def locate(settings: Settings) -> Place:
    """What the settings name; what they leave open is taken from the `serve` that runs on the data directory."""
    serve = RunningServe.find(settings.data_dir)
    own = settings.database_url.get_secret_value() if settings.database_url else None
    if serve and own and own != serve.dsn:
        serve = None
    if serve and serve.emulator_url and settings.embedded_bigquery:
        settings = settings.model_copy(update={"bigquery_emulator_host": serve.emulator_url})
    return Place(settings=settings, dsn=own or (serve.dsn if serve else None), serve=serve)


def reachable_host(host: str) -> str:
    """The host to call for a server that listens on `host`."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 - what is listened on, not chosen
    if host in everywhere:
        return everywhere[host]
    return f"[{host}]" if ":" in host else host
