"""A worker process whose pipelines do nothing: what is left is the cost of running them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.bootstrap import Service, build
from adapters.process import settle
from adapters.settings import Settings
from adapters.worker import run_worker
from application.ports import RunOrder, RunProgress, RunReport


class Noop:
    """Completes every run at once. On the way it writes down when, by the clock that all processes share."""

    def __init__(self, stamps: int | None) -> None:
        self._stamps = stamps

    def run(self, order: RunOrder, progress: RunProgress) -> RunReport:
        begun = time.monotonic_ns()
        if self._stamps is not None:
            os.write(self._stamps, f"{order.run_id} {begun}\n".encode())
        return RunReport(succeeded=True)


@contextmanager
def workers(service: Service, processes: int, concurrency: int, *, stamps: Path | None = None) -> Iterator[None]:
    """So many worker processes, stopped at the end. `stamps` is where each run's beginning is written down."""
    command = [sys.executable, "-m", "tests.benchmarks.noop_worker", service.dsn, str(service.settings.data_dir)]
    children = [
        subprocess.Popen([*command, f"w{number}", str(concurrency), *([] if stamps is None else [str(stamps)])])
        for number in range(processes)
    ]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(40)


def stamped(stamps: Path) -> dict[str, int]:
    """When each run began, in nanoseconds of CLOCK_MONOTONIC. A line that is being written is left out."""
    lines = stamps.read_text().split("\n")[:-1]
    return {run_id: int(begun) for run_id, begun in (line.split() for line in lines)}


def main() -> None:
    dsn, data_dir, worker_id, concurrency = sys.argv[1:5]
    stamps = os.open(sys.argv[5], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if len(sys.argv) > 5 else None
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = Settings(
        data_dir=data_dir,
        worker_id=worker_id,
        worker_concurrency=int(concurrency),
        bigquery_emulator_host="127.0.0.1:1",
        # Threads touch the database only to claim, to report and to beat: more connections would only rest.
        database_pool_size=10,
    )
    service = build(settings, dsn, engine=Noop(stamps))
    settle()
    run_worker(service, stop)


if __name__ == "__main__":
    main()
