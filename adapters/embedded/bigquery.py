"""BigQuery on a laptop and in tests: the emulator as a child process, watched, restarted, and wiped when damaged."""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from adapters.embedded import EmbeddedError
from adapters.embedded.child import (
    Child,
    DirectoryLock,
    Supervisor,
    end_leftovers,
    port_in_use,
    prepare_directory,
    remove,
)

_log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false",  # Avro, which it would download
    # Every write copies its table for time travel. At 0 days the copies go within a minute.
    "BQEMU_TIME_TRAVEL_RETENTION_DAYS": "0",
    # DuckDB takes 80 % of the machine's memory and no setting of the emulator reaches it, but it believes a batch
    # scheduler's word on what it may use. Beyond that it works from disk.
    "SLURM_MEM_PER_NODE": "256M",
    "SLURM_CPUS_ON_NODE": "2",
    # Memory that is free goes back to the system soon.
    "DUCKDB_JE_MALLOC_CONF": "narenas:1,dirty_decay_ms:500,muzzy_decay_ms:0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}
_READY_FILES = Path(__file__).with_name("warehouse_file.py")
_DAMAGED_STATUS = 3
"""Its exit status when the database cannot be read."""
_READY_SECONDS = 60
_STOP_SECONDS = 10
_SILENT_SECONDS = 60
"""How long it may leave /healthz without an answer: one long query blocks it whole."""
_ASK_SECONDS = 30
"""How often it is asked a query. After a write that failed for want of memory or disk it answers /healthz as before,
and every query with an error, until it is started anew."""
_QUESTION = json.dumps({"query": "SELECT 1", "useLegacySql": False, "timeoutMs": 5000})
_RESIDENT_BYTES = 520 * 1024 * 1024
"""Where a restart is due: every job's result stays in its memory. Idle it takes 210 MB."""
_SETTLED_SECONDS = 300
"""No restart for memory sooner than this after a start, so that a large warehouse is slow rather than away."""


class _DamagedError(EmbeddedError):
    """The emulator cannot start on its files."""


class EmbeddedBigQuery:
    """One BigQuery emulator on one directory and one port of 127.0.0.1, with no secret: it knows no callers.

    The directory holds `data`, `home` (its HOME, with DuckDB's extension) and `emulator.log`. The event log is the
    truth and its tables are copies, so damaged files are removed and made anew. `on_empty` is called before the server
    starts without tables, the first time included: put the checkpoint back to the beginning there. If it raises,
    nothing is removed and the start is tried again.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        on_empty: Callable[[], None] = lambda: None,
        ask_seconds: float = _ASK_SECONDS,
    ) -> None:
        self._directory = directory.resolve()
        self._port = port
        self._on_empty = on_empty
        self._ask_seconds = ask_seconds
        self._data = self._directory / "data"
        self._home = self._directory / "home"
        self._log_file = self._directory / "emulator.log"
        self._lock = DirectoryLock(self._directory)
        self._gate = threading.RLock()
        self._child: Child | None = None
        self._looked_at: Child | None = None
        self._supervisor: Supervisor | None = None
        self._answered_at = self._started_at = self._asked_at = time.monotonic()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL of its REST API, for `api_endpoint`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        child = self._child
        return child.pid if child else None

    @property
    def resident_bytes(self) -> int:
        """Its resident memory, 0 while it does not run."""
        child = self._child
        return child.resident_bytes if child else 0

    def start(self) -> str:
        """Start the emulator and return its URL once it answers.

        From then on it is restarted whenever it dies, is silent for a minute, only knows errors, or has grown too
        large. Raises `EmbeddedError` when the directory belongs to another process or the port is taken.
        """
        prepare_directory(self._directory)
        with self._gate:
            if self._child is not None:
                return self.url
            self._lock.acquire()
            try:
                end_leftovers(list(_emulators_of(self._data)), signal.SIGTERM, _STOP_SECONDS)
                self._open()
            except BaseException:
                self._lock.release()
                raise
            self._supervisor = Supervisor(
                "The local BigQuery", ailing=self._ailing, restart=self._replace, every_seconds=1
            )
            self._supervisor.start()
            return self.url

    def stop(self) -> None:
        """End the emulator; its tables stay."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        with self._gate:
            self._end()
            self._lock.release()

    def restart(self) -> None:
        """Kill it, whatever it is doing, and start it again on the same port and tables: they survive that."""
        with self._gate:
            if self._child is not None:
                self._child.kill()
            self._end()
            end_leftovers(list(_emulators_of(self._data)), signal.SIGKILL, _STOP_SECONDS)
            self._open()

    def _replace(self) -> None:
        """Restart the process that was found ailing, unless it has been replaced meanwhile."""
        with self._gate:
            if self._child is None or self._child is self._looked_at:
                self.restart()

    def healthy(self) -> bool:
        """Whether it runs and answers within five seconds."""
        child = self._child
        if child is None or not child.running:
            return False
        return self._status("GET", "/healthz") == HTTPStatus.OK

    def _status(self, method: str, path: str, body: str | None = None) -> int | None:
        """What it answers within five seconds, None if nothing."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            return connection.getresponse().status
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def _only_knows_errors(self) -> bool:
        """Whether the simplest query is an error to it. No answer is none: it may be busy."""
        self._asked_at = time.monotonic()
        status = self._status("POST", "/bigquery/v2/projects/convergence-watch/queries", _QUESTION)
        return status is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def _ailing(self) -> str | None:
        child = self._looked_at = self._child
        if child is None or not child.running:
            return "ended by itself"
        now = time.monotonic()
        if self.healthy():
            self._answered_at = now
        elif now - self._answered_at > _SILENT_SECONDS:
            return f"did not answer for {_SILENT_SECONDS} seconds"
        if now - self._asked_at > self._ask_seconds and self._only_knows_errors():
            return "answers every query with an error"
        if now - self._started_at > _SETTLED_SECONDS and self.resident_bytes > _RESIDENT_BYTES:
            return f"has grown to {self.resident_bytes // 2**20} MB"
        return None

    def _end(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _open(self) -> None:
        if port_in_use(self._port):
            raise EmbeddedError(
                f"Port {self._port} is in use by another program: set BIGQUERY_EMULATOR_PORT to a free one."
            )
        if not self._database.exists():
            self._on_empty()
        try:
            self._launch()
        except _DamagedError as error:
            _log.warning("%s Its files are removed; the event log fills it again.", error)
            self._on_empty()
            remove(self._data)
            self._launch()

    @property
    def _database(self) -> Path:
        return self._data / "bqemulator.duckdb"

    def _environment(self) -> dict[str, str]:
        # Uploads are staged under one fixed name in the temporary directory, where another user's may stand already.
        return {
            "HOME": str(self._home),
            "TMPDIR": str(self._home),
            "PATH": os.defpath,
            "PYTHONDONTWRITEBYTECODE": "1",
            **_ENVIRONMENT,
        }

    def _launch(self) -> None:
        for directory in (self._data, self._home):
            prepare_directory(directory)
        self._ready_files()
        options = ["--data-dir", str(self._data), "--rest-port", str(self._port), "--grpc-port", "0"]
        options += ["--log-level", "warning"]
        child = Child(
            [sys.executable, "-P", "-m", "bqemulator", "start", *options],
            directory=self._directory,
            log=self._log_file,
            environment=self._environment(),
            stop_signal=signal.SIGTERM,
            grace_seconds=_STOP_SECONDS,
        )
        self._child = child
        self._started_at = time.monotonic()
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(TimeoutError),
                wait=wait_fixed(0.05),
                stop=stop_after_delay(_READY_SECONDS),
                reraise=True,
            ):
                with attempt:
                    self._check_answer(child)
        except BaseException as error:
            self._end()
            if isinstance(error, TimeoutError):
                raise _DamagedError(str(error)) from None
            raise
        self._answered_at = self._asked_at = time.monotonic()

    def _check_answer(self, child: Child) -> None:
        if not child.running:
            raise _DamagedError(f"The local BigQuery does not start on {self._data}: see {self._log_file}.")
        if not self.healthy():
            raise TimeoutError(f"The local BigQuery on {self._data} does not answer: see {self._log_file}.")

    def _ready_files(self) -> None:
        done = subprocess.run(  # noqa: S603 - a script of this package
            [sys.executable, "-P", str(_READY_FILES), str(_extension()), str(self._database)],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode == 0:
            return
        with self._log_file.open("ab") as log:
            log.write(done.stdout)
        # A file that makes DuckDB crash is as damaged as one that it refuses.
        if done.returncode == _DAMAGED_STATUS or done.returncode < 0:
            raise _DamagedError(f"The local BigQuery cannot read {self._database}: see {self._log_file}.")
        raise EmbeddedError(f"The local BigQuery cannot be set up in {self._home}: see {self._log_file}.")


def _extension() -> Path:
    """DuckDB's spatial extension as its wheel carries it; the emulator does not start without it."""
    spec = importlib.util.find_spec("duckdb_extension_spatial")
    for location in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(location).glob("extensions/*/spatial.duckdb_extension")):
            return file
    raise EmbeddedError("DuckDB's spatial extension is not installed: run make install.")


def _emulators_of(data: Path) -> Iterator[psutil.Process]:
    """The emulators that were started on that directory."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "bqemulator" in command and str(data) in command and "-m" in command[:3]:
            yield process
