"""The yardstick: Procrastinate, the Python job queue that a user would pick instead."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from tests.benchmarks.latency import GAP_S, distribution

SCHEMA = "yardstick"
_LEFT = f"SELECT count(*) FROM {SCHEMA}.procrastinate_jobs WHERE status IN ('todo', 'doing')"
_WARM_UP = 10


def _app(dsn: str, stamps: int | None = None) -> tuple[Any, Any, Any]:
    import procrastinate  # noqa: PLC0415 - installed for benchmarks only

    conninfo = psycopg.conninfo.make_conninfo(dsn, options=f"-c search_path={SCHEMA}")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))

    @app.task(name="noop")
    async def noop(number: int) -> None:
        return None

    @app.task(name="stamp")
    async def stamp(asked: int) -> None:
        os.write(stamps or 2, f"{time.monotonic_ns() - asked}\n".encode())

    return app, noop, stamp


def _prepare(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
    app, _, _ = _app(dsn)
    with app.open():
        app.schema_manager.apply_schema()


def enqueue(dsn: str, jobs: int) -> float:
    """Jobs per second, enqueued in batches of 1,000."""
    _prepare(dsn)
    return asyncio.run(_enqueue(dsn, jobs))


async def _enqueue(dsn: str, jobs: int) -> float:
    app, noop, _ = _app(dsn)
    async with app.open_async():
        begun = time.perf_counter()
        for start in range(0, jobs, 1000):
            await noop.batch_defer_async(*[{"number": n} for n in range(start, min(jobs, start + 1000))])
        return jobs / (time.perf_counter() - begun)


def drain(dsn: str, jobs: int, processes: int, concurrency: int) -> float:
    """Waiting jobs that worker processes work off per second, start-up excluded."""
    enqueue(dsn, jobs)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        with _workers(dsn, processes, concurrency):
            while connection.execute(_LEFT).fetchone()[0]:
                time.sleep(0.2)
        seconds = connection.execute(
            "SELECT extract(epoch FROM max(at) FILTER (WHERE type = 'succeeded')"
            f" - min(at) FILTER (WHERE type = 'started')) FROM {SCHEMA}.procrastinate_events"
        ).fetchone()[0]
    return jobs / float(seconds)


def idle(dsn: str, samples: int) -> dict[str, float]:
    """From defer to the task's first line, 20 to 60 ms apart, one idle worker process of ten."""
    _prepare(dsn)
    with TemporaryDirectory() as directory:
        stamps = Path(directory) / "stamps"
        stamps.touch()
        with _workers(dsn, 1, 10, stamps):
            asyncio.run(_ask(dsn, stamps, samples))
        return distribution([int(line) / 1e6 for line in stamps.read_text().split()[_WARM_UP:]])


async def _ask(dsn: str, stamps: Path, samples: int) -> None:
    app, _, stamp = _app(dsn)
    gaps = random.Random(1)  # noqa: S311 - no secret
    async with app.open_async():
        for _ in range(_WARM_UP):
            await stamp.defer_async(asked=time.monotonic_ns())
        await _wait_for(stamps, _WARM_UP)
        for _ in range(samples):
            await asyncio.sleep(gaps.uniform(*GAP_S))
            await stamp.defer_async(asked=time.monotonic_ns())
        await _wait_for(stamps, _WARM_UP + samples)


async def _wait_for(stamps: Path, jobs: int, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while (await asyncio.to_thread(stamps.read_text)).count("\n") < jobs:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)


@contextmanager
def _workers(dsn: str, processes: int, concurrency: int, stamps: Path | None = None) -> Iterator[None]:
    # Not as the main module: it warns of applications that are made there.
    main = "from tests.benchmarks.procrastinate_jobs import main; main()"
    command = [sys.executable, "-c", main, dsn, str(concurrency)]
    children = [subprocess.Popen([*command, *([] if stamps is None else [str(stamps)])]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(30)


async def _work(dsn: str, concurrency: int, stamps: int | None) -> None:
    app, _, _ = _app(dsn, stamps)
    async with app.open_async():
        await app.run_worker_async(concurrency=concurrency, wait=True)


def main() -> None:
    """A worker process."""
    stamps = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND) if len(sys.argv) > 3 else None
    asyncio.run(_work(sys.argv[1], int(sys.argv[2]), stamps))
