"""PostgreSQL on a laptop and in tests: the wheel's own server, on its own directory, for as long as we run."""

import os
import re
import secrets
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_fixed

from adapters.embedded import EmbeddedError, cluster
from adapters.embedded.binaries import installation, reachable
from adapters.embedded.child import (
    Child,
    DirectoryLock,
    Supervisor,
    end_leftovers,
    free_port,
    port_in_use,
    prepare_directory,
)

_NAME = "convergence"
"""The database, and the role that owns it: no superuser, as in production, but it may make databases and roles."""

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path is limited to 107 bytes: too short for some projects
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "io_method": "sync",  # no worker processes for a database that fits into memory
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log tells how the server fares. Statements, their values and their failures belong to whoever sent them.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_FLEETING = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}

_READY_SECONDS = 120
"""Crash recovery replays at most `max_wal_size`, which even a slow disk reads in that time."""
_STOP_SECONDS = 30


class _PortLostError(EmbeddedError):
    """Somebody took the port between our look and the server's start."""


class EmbeddedPostgres:
    """One PostgreSQL server on one directory, reachable on 127.0.0.1 with a secret that only we can read.

    The directory holds `data`, `secret` and `postgres.log`, and is closed to every other user. Root's server runs under
    an id of its own, because PostgreSQL refuses root; no permission outside the directory changes. `durable=False`
    survives a crash of the server but not of the machine: for tests.
    """

    def __init__(self, directory: Path, port: int | None = None, *, durable: bool = True) -> None:
        self._directory = directory.resolve()
        self._asked_port = port
        self._port = port
        self._settings = {**_SETTINGS, **(_DURABLE if durable else _FLEETING)}
        self._durable = durable
        self._data = self._directory / "data"
        self._secret = self._directory / "secret"
        self._log_file = self._directory / "postgres.log"
        self._lock = DirectoryLock(self._directory)
        self._gate = threading.RLock()
        self._child: Child | None = None
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        child = self._child
        return child.pid if child else None

    @property
    def dsn(self) -> str:
        """The URL of the database, password included, while the server runs."""
        if self._port is None:
            raise EmbeddedError("The embedded PostgreSQL was not started.")
        return _url(self._port, self._secret.read_text())

    def start(self) -> str:
        """Start the server, make its database the first time, and return its DSN once it answers.

        From then on it is restarted, on the same port, whenever it dies. Raises `EmbeddedError` when the directory
        belongs to another process, when its files are damaged, or when the port is taken.
        """
        prepare_directory(self._directory)
        with self._gate:
            if self._child is not None:
                return self.dsn
            self._lock.acquire()
            try:
                self._open()
            except BaseException:
                self._lock.release()
                raise
            self._supervisor = Supervisor("PostgreSQL", ailing=self._ailing, restart=self._reopen, every_seconds=1)
            self._supervisor.start()
            return self.dsn

    def stop(self) -> None:
        """Shut the server down in order: open transactions are rolled back, committed ones are on disk."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        with self._gate:
            self._end()
            self._lock.release()

    def _end(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _ailing(self) -> str | None:
        return None if self._child and self._child.running else "ended by itself"

    def _reopen(self) -> None:
        with self._gate:
            self._end()
            self._end_leftovers()
            self._launch()

    def _open(self) -> None:
        self._end_leftovers()
        if not self._data.exists():
            self._create()
        for file in (self._data / "PG_VERSION", self._data / "global" / "pg_control", self._secret):
            if not file.exists():
                raise self._damaged(f"{file.name} is missing")
        for attempt in Retrying(
            retry=retry_if_exception_type(_PortLostError),
            stop=stop_after_attempt(1 if self._asked_port else 3),
            reraise=True,
        ):
            with attempt:
                self._port = self._asked_port or free_port()
                self._launch()

    def _end_leftovers(self) -> None:
        processes = _processes_of(self._data)
        postmaster = [process for process in processes if process.pid == _recorded(self._data)]
        helpers = [process for process in processes if process not in postmaster]
        end_leftovers(postmaster, signal.SIGINT, _STOP_SECONDS, helpers=helpers)

    def _create(self) -> None:
        password = secrets.token_urlsafe(32)
        with os.fdopen(os.open(self._secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(password)
        cluster.create(self._data, role=_NAME, password=password, log=self._log_file, durable=self._durable)

    def _launch(self) -> None:
        account = cluster.owner(self._data)
        if self._port is None or port_in_use(self._port):
            raise _PortLostError(f"Port {self._port} of 127.0.0.1, meant for PostgreSQL, is in use by another program.")
        # Left by a server that did not live to remove it; its id may by now be another program's. No server of this
        # directory runs any more: the caller ended them, under the lock.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        version = (self._data / "PG_VERSION").read_text(errors="replace").strip()
        if not version.isdecimal():
            raise self._damaged("PG_VERSION is no version")
        postgres = reachable(installation(version), account) / "bin" / "postgres"
        options = [f"--{name}={value}" for name, value in {**self._settings, "port": str(self._port)}.items()]
        child = Child(
            [str(postgres), "-D", cluster.place(self._data, account), *options],
            directory=self._data,
            log=self._log_file,
            environment=cluster.ENVIRONMENT,
            stop_signal=signal.SIGINT,
            grace_seconds=_STOP_SECONDS,
            account=account,
        )
        try:
            self._await_answer(child)
        except BaseException:
            child.stop()
            raise
        self._child = child

    def _await_answer(self, child: Child) -> None:
        for attempt in Retrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            wait=wait_fixed(0.02),
            stop=stop_after_delay(_READY_SECONDS),
            reraise=True,
        ):
            with attempt:
                if not child.running:
                    raise self._failure(child.output())
                try:
                    psycopg.connect(self.dsn, connect_timeout=5).close()
                except psycopg.OperationalError as error:
                    if "password authentication failed" in str(error):
                        raise self._damaged("its secret does not fit its data") from None
                    raise

    def _failure(self, output: str) -> EmbeddedError:
        if "could not create any TCP/IP sockets" in output:
            return _PortLostError(
                f"Port {self._port} of 127.0.0.1, meant for PostgreSQL, was taken by another program."
            )
        severe = re.findall(r"(?:PANIC|FATAL):\s+(.*)", output) or output.split("\n")[-2:-1] or ["it said nothing"]
        return self._damaged(severe[0])

    def _damaged(self, reason: str) -> EmbeddedError:
        return EmbeddedError(
            f"PostgreSQL cannot start on {self._data} ({reason}): see {self._log_file}, and restore the directory "
            "from a backup or move it away to begin anew."
        )


def running_dsn(directory: Path) -> str | None:
    """The DSN of the server that another process runs on this directory, or None when there is none."""
    data = directory.resolve() / "data"
    if not _processes_of(data):
        return None
    lines = (data / "postmaster.pid").read_text().split("\n")
    return _url(int(lines[3]), (data.parent / "secret").read_text())


def _url(port: int, password: str) -> str:
    # require_auth: whoever else might answer on that port is never told the password.
    return f"postgresql://{_NAME}:{password}@127.0.0.1:{port}/{_NAME}?require_auth=scram-sha-256"


def _processes_of(data: Path) -> list[psutil.Process]:
    """The PostgreSQL processes that work in that directory."""
    if not (data / "postmaster.pid").exists():
        return []
    return [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == "postgres" and process.info["cwd"] == str(data)
    ]


def _recorded(data: Path) -> int | None:
    """The process id that the last server of that directory wrote down."""
    first, *_ = (data / "postmaster.pid").read_text().split("\n")
    return int(first) if first.isdecimal() else None
