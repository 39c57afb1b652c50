"""Commands one after the other in one process: what they import takes longer than what they do."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_TYPED = """
import contextlib, io, json, sys
from adapters.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["convergence", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


@dataclass(frozen=True)
class Typed:
    """What came of a command."""

    status: int
    out: str
    err: str


def type_in_turn(data_dir: Path, dsn: str, *commands: list[str]) -> list[Typed]:
    """Type `convergence` with each of these arguments, where nobody can be asked; a fault ends them all."""
    done = subprocess.run(
        [sys.executable, "-c", _TYPED, json.dumps(commands)],
        env={"PATH": os.defpath, "DATABASE_URL": dsn, "DATA_DIR": str(data_dir), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Typed(*json.loads(line)) for line in done.stdout.splitlines()]
