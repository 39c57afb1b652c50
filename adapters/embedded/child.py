"""A server as a child process: its start, its end, its directory's lock, and what an earlier one left behind."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from tenacity import RetryCallState, Retrying, sleep_using_event, wait_exponential

from adapters.embedded import EmbeddedError

_log = logging.getLogger(__name__)

_GUARDIAN = Path(__file__).with_name("guardian.py")
_LOG_BYTES = 10 * 1024 * 1024
_KILL_SECONDS = 10
_LOOK_SECONDS = 0.02


class Account(NamedTuple):
    """The user and group that a server runs as, where it is not our own."""

    uid: int
    gid: int


class DirectoryLock:
    """One living process per directory. The kernel frees the lock however that process ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None

    def acquire(self) -> None:
        """Raises `EmbeddedError` when another process holds the directory."""
        if self._file is not None:
            return
        file = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 20, 0).decode().strip()
            os.close(file)
            raise EmbeddedError(
                f"{self._directory} is already in use by another convergence process (pid {holder}): "
                "stop that one, or set DATA_DIR to another directory."
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Child:
    """One server process under a guardian, which ends it in order even when our own process is killed.

    It has a session of its own, so a Ctrl-C in the terminal reaches us alone. Its output goes to `log`; of our
    environment it gets nothing but `environment`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        log: Path,
        environment: Mapping[str, str],
        stop_signal: signal.Signals,
        grace_seconds: float,
        account: Account | None = None,
    ) -> None:
        self._grace_seconds = grace_seconds
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        uid, gid = account or (-1, -1)
        head = [
            sys.executable,
            "-I",
            "-S",
            str(_GUARDIAN),
            str(int(stop_signal)),
            str(grace_seconds),
            str(uid),
            str(gid),
        ]
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            self._log_start = output.tell()
            self._guardian = subprocess.Popen(  # noqa: S603 - a command of this package
                [*head, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**_loader_paths(), **environment},
                start_new_session=True,
            )
        self._log = log

    @property
    def running(self) -> bool:
        return self._guardian.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's own process id, None once it is gone."""
        with suppress(psutil.Error):
            for process in psutil.Process(self._guardian.pid).children():
                return process.pid
        return None

    @property
    def resident_bytes(self) -> int:
        """The server's resident memory, 0 once it is gone."""
        with suppress(psutil.Error):
            if (pid := self.pid) is not None:
                return int(psutil.Process(pid).memory_info().rss)
        return 0

    def output(self) -> str:
        """What the server has written since this start."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            return file.read(_LOG_BYTES).decode(errors="replace")

    def kill(self) -> None:
        """Kill the server at once, for one that no longer listens to its stop signal. `stop` still has to follow."""
        if (pid := self.pid) is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()

    def stop(self) -> None:
        """End the server in order, and wait until it is gone."""
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()
        # The guardian escalates to SIGKILL by itself; the margin only covers a machine that is very busy.
        self._guardian.wait(self._grace_seconds + 30)


class Supervisor:
    """A thread that looks after a server: whenever `ailing` names a reason, `restart` is tried until it succeeds."""

    def __init__(
        self, name: str, *, ailing: Callable[[], str | None], restart: Callable[[], None], every_seconds: float
    ) -> None:
        self._name = name
        self._ailing = ailing
        self._restart = restart
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name} supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when no restart is under way or will come."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_seconds):
            if (reason := self._ailing()) is not None:
                _log.warning("%s %s: restarting it", self._name, reason)
                Retrying(
                    stop=lambda _: self._ended.is_set(),
                    wait=wait_exponential(multiplier=0.5, max=30),
                    sleep=sleep_using_event(self._ended),
                    before_sleep=self._report,
                    retry_error_callback=lambda _: None,
                )(self._restart)

    def _report(self, state: RetryCallState) -> None:
        _log.warning("%s is still away: %s", self._name, state.outcome.exception() if state.outcome else "")


def prepare_directory(directory: Path) -> None:
    """Make the directory, readable by nobody but us. The permissions of its parents stay as they are."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise EmbeddedError(f"{directory} cannot be used: {error.strerror}.") from error


def end_leftovers(
    servers: Sequence[psutil.Process],
    stop_signal: signal.Signals,
    grace_seconds: float,
    *,
    helpers: Sequence[psutil.Process] = (),
) -> None:
    """End what an earlier run left behind: in order, and by force after the grace.

    Helpers are a server's own processes: they get no signal, because they end with it.
    """
    for server in servers:
        _log.warning("ending a server (pid %d) that an earlier run left behind", server.pid)
        with suppress(psutil.NoSuchProcess):
            server.send_signal(stop_signal)
    for process in _outlasting([*servers, *helpers], grace_seconds):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _outlasting([*servers, *helpers], _KILL_SECONDS)


def alive(process: psutil.Process) -> bool:
    """Whether the process still runs: a zombie, which a container's first process may never reap, does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _outlasting(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all have ended; those that have not by then."""
    left = list(processes)
    deadline = time.monotonic() + seconds
    while (left := [process for process in left if alive(process)]) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return left


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_in_use(port: int) -> bool:
    """Whether somebody listens on that port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise EmbeddedError(f"Port {port} of 127.0.0.1 cannot be used: {error.strerror}.") from error
    return False


def remove(directory: Path) -> None:
    """Remove a directory and what is in it, if it is there."""
    if directory.exists():
        shutil.rmtree(directory)


def _loader_paths() -> dict[str, str]:
    """Where an interpreter that was built with shared libraries finds them."""
    names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}
