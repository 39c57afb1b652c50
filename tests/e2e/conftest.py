"""A real `convergence serve`, started as a person starts it, on free ports and a data directory of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from adapters.embedded.child import free_port

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))
READY_S = 60


class NotReadyError(Exception):
    """The server has not said that it is ready."""


@dataclass
class Serve:
    """One process, and what a person in another terminal does with it."""

    data_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    ready_after_s: float = 0.0

    def __post_init__(self):
        self.port, self.emulator_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.data_dir.with_name(f"{self.data_dir.name}.log")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(self.data_dir.parent),
            "DATA_DIR": str(self.data_dir),
            "PORT": str(self.port),
            "BIGQUERY_EMULATOR_PORT": str(self.emulator_port),
            **self.settings,
        }

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Another command, with the same environment."""
        return subprocess.run(
            [CONVERGENCE, *arguments],
            env={**self.environment, **settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, *arguments: str, **settings: str):
        done = self.run(*arguments, "--json", **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def launch(self) -> None:
        """Begins to start it, without waiting."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([CONVERGENCE, "serve"], env=self.environment, stdout=log, stderr=log)

    def start(self) -> None:
        """Returns once the API is ready, and keeps how long that took."""
        began = time.monotonic()
        self.launch()
        for attempt in Retrying(
            retry=retry_if_exception_type((NotReadyError, httpx.TransportError)),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(READY_S),
            reraise=True,
        ):
            with attempt:
                assert self.process.poll() is None, self.log.read_text()
                if httpx.get(f"{self.url}/readyz", timeout=READY_S).status_code != 200:
                    raise NotReadyError(self.log.read_text())
        self.ready_after_s = time.monotonic() - began

    def await_bigquery(self) -> None:
        """Returns once the local BigQuery answers: it takes a little longer than the API."""
        for attempt in Retrying(
            retry=retry_if_exception_type(httpx.TransportError),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(READY_S),
            reraise=True,
        ):
            with attempt:
                httpx.get(f"http://127.0.0.1:{self.emulator_port}/healthz", timeout=5).raise_for_status()

    @property
    def family(self) -> list[psutil.Process]:
        """The process and everything below it."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(40)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture(scope="module")
def serve(tmp_path_factory) -> Iterator[Serve]:
    """A server that is ready, its BigQuery too. Customers are the test's own."""
    server = Serve(tmp_path_factory.mktemp("serve") / "var")
    try:
        server.start()
        server.await_bigquery()
        yield server
    finally:
        server.end()


@pytest.fixture
def fresh(tmp_path) -> Iterator[Serve]:
    """A server that was not started yet, on an empty directory."""
    server = Serve(tmp_path / "var")
    yield server
    server.end()
