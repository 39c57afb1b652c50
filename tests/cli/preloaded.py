"""The command line in processes of their own that begin with everything imported: each costs a moment, not seconds."""

import multiprocessing
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

_PATIENCE_S = 60.0


def convergence(*arguments: str, **settings: str) -> "CompletedProcess[str]":
    """What the command does with these settings and no others."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, by the process that all the others are copies of.
    context.set_forkserver_preload(["adapters.roles"])
    with TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        process = context.Process(target=_run, args=(arguments, settings, out, err))
        process.start()
        process.join(_PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        return CompletedProcess(arguments, process.exitcode or 0, out.read_text(), err.read_text())


def _run(arguments: tuple[str, ...], settings: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update({"PATH": os.defpath, "COLUMNS": "160", **settings})
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.argv = ["convergence", *arguments]
    # What it prints to is chosen as it is imported.
    from adapters.cli import main  # noqa: PLC0415

    main()
