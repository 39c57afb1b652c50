"""What the tests of the audit commands share: a terminal, and a customer that has a past."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.application.world import World

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


class Terminal:
    """A terminal of an operator on the machine that has the keys."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.settings = {"PATH": os.defpath, "COLUMNS": "100", "DATABASE_URL": dsn, "DATA_DIR": str(data_dir)}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [CONVERGENCE, *arguments], env=self.settings, capture_output=True, text=True, timeout=60, check=False
        )

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """The lines of JSON that a command prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def json(self, *arguments: str) -> dict[str, Any]:
        [line] = self.lines(*arguments)
        return line

    @contextmanager
    def started(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """A command that goes on until the block ends."""
        process = subprocess.Popen(
            [CONVERGENCE, *arguments], env=self.settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextmanager
def customer(dsn: str, data_dir: Path) -> Iterator[World]:
    """ACME, on this machine's clock, with its keys where commands look for them."""
    with World(dsn, data_dir / "keys" / "wrapping.key") as world:
        world.at = datetime.now(UTC).replace(microsecond=0)
        world.onboard()
        yield world
