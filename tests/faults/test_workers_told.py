"""`convergence worker` in the middle of a run that hangs, told to end once, and once more."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from adapters.pipelines.registry import Registry
from domain.run_events import RunRequeued
from tests.application.world import World, until

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


class Silence:
    """A BigQuery that takes every call and answers none."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return "{}:{}".format(*self._listener.getsockname())

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._connections.append(self._listener.accept()[0])
                self.called.set()

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def silence() -> Iterator[Silence]:
    made = Silence()
    yield made
    made.close()


@pytest.fixture
def hanging(world, silence, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A worker whose only run waits for BigQuery."""
    world.catalogue = Registry.load()
    world.onboard()
    world.request()
    process = subprocess.Popen(
        [CONVERGENCE, "worker", "--id", "hanging", "--json"],
        env={
            "PATH": os.defpath,
            "DATA_DIR": str(tmp_path / "var"),
            "DATABASE_URL": world.dsn,
            "BIGQUERY_EMULATOR_HOST": silence.address,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert json.loads(process.stdout.readline())["ready"]
        assert silence.called.wait(30)
        yield process
    finally:
        process.kill()
        process.communicate()


def requeued(world: World) -> RunRequeued:
    [row] = world.rows("scheduled_pipeline_runs")
    [event] = [r.event for r in world.platform.history(UUID(row["run_id"])) if isinstance(r.event, RunRequeued)]
    return event


def test_a_second_signal_ends_it_at_once_and_its_run_is_taken_over(world, hanging):
    began = time.monotonic()
    while hanging.poll() is None and time.monotonic() - began < 10:
        hanging.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            hanging.wait(0.1)
    assert hanging.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    assert world.states() == {"RUNNING": 1}
    assert world.take_over() == []
    world.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 s'")
    assert len(world.take_over()) == 1
    assert requeued(world).spent
    assert (world.states(), world.usage()[2]) == ({"PENDING": 1}, 0)


@pytest.mark.soak
def test_one_signal_hands_the_run_back_in_time(world, hanging):
    began = time.monotonic()
    hanging.send_signal(signal.SIGTERM)
    assert hanging.wait(40) == 0, hanging.stderr.read()
    assert time.monotonic() - began < 28
    assert not requeued(world).spent
    assert (world.states(), world.usage()[2]) == ({"PENDING": 1}, 0)
    until(lambda: world.scalar("SELECT count(*) FROM run_leases") == 0)
