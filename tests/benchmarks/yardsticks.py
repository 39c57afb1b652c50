"""The yardsticks: the Python job queue that a user would pick instead, and bare SQL."""

import asyncio
import multiprocessing
import subprocess
import sys
import threading
import time
from typing import Any

import psycopg

SCHEMA = "yardstick"


def procrastinate_app(dsn: str) -> tuple[Any, Any]:
    import procrastinate  # noqa: PLC0415 - installed for benchmarks only

    conninfo = psycopg.conninfo.make_conninfo(dsn, options=f"-c search_path={SCHEMA}")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))

    @app.task(name="noop")
    async def noop(number: int) -> None:
        return None

    return app, noop


def procrastinate_drain(dsn: str, jobs: int, processes: int, concurrency: int) -> dict[str, float]:
    """Enqueue `jobs` in batches of 1,000, then drain them with worker processes; both in jobs per second."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
    app, _ = procrastinate_app(dsn)
    with app.open():
        app.schema_manager.apply_schema()
    enqueued = asyncio.run(_enqueue(dsn, jobs))
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.benchmarks.yardsticks", dsn, str(concurrency)])
        for _ in range(processes)
    ]
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            waiting = f"SELECT count(*) FROM {SCHEMA}.procrastinate_jobs WHERE status IN ('todo', 'doing')"
            while connection.execute(waiting).fetchone()[0]:
                time.sleep(0.2)
            seconds = connection.execute(
                "SELECT extract(epoch FROM max(at) FILTER (WHERE type = 'succeeded')"
                f" - min(at) FILTER (WHERE type = 'started')) FROM {SCHEMA}.procrastinate_events"
            ).fetchone()[0]
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(30)
    return {"enqueue_per_s": enqueued, "through_per_s": jobs / float(seconds)}


async def _enqueue(dsn: str, jobs: int) -> float:
    app, noop = procrastinate_app(dsn)
    async with app.open_async():
        begun = time.perf_counter()
        for start in range(0, jobs, 1000):
            await noop.batch_defer_async(*[{"number": n} for n in range(start, min(jobs, start + 1000))])
        return jobs / (time.perf_counter() - begun)


async def _work(dsn: str, concurrency: int) -> None:
    app, _ = procrastinate_app(dsn)
    async with app.open_async():
        await app.run_worker_async(concurrency=concurrency, wait=True)


_CLAIM = f"""WITH c AS (UPDATE {SCHEMA}.jobs SET state = 1, version = version + 1 WHERE id = ANY(ARRAY(
 SELECT id FROM {SCHEMA}.jobs WHERE state = 0 ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)) RETURNING id, version)
 INSERT INTO {SCHEMA}.events (stream, version, what) SELECT id, version, 'claimed' FROM c RETURNING stream"""
_DONE = f"""WITH d AS (UPDATE {SCHEMA}.jobs SET state = 2, version = version + 1 WHERE id = ANY(%s) AND state = 1
 RETURNING id, version) INSERT INTO {SCHEMA}.events (stream, version, what) SELECT id, version, 'done' FROM d"""


def bare_sql(dsn: str, jobs: int, processes: int, threads: int, batch: int) -> float:
    """Claim and complete rows in batches, with an event row each; jobs per second."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute(
            f"CREATE TABLE {SCHEMA}.jobs (id bigint PRIMARY KEY, state smallint NOT NULL, version int NOT NULL)"
        )
        connection.execute(f"CREATE INDEX ON {SCHEMA}.jobs (id) WHERE state = 0")
        connection.execute(
            f"CREATE TABLE {SCHEMA}.events (position bigserial PRIMARY KEY, stream bigint, version int, what text,"
            " UNIQUE (stream, version))"
        )
        connection.execute(f"INSERT INTO {SCHEMA}.jobs SELECT g, 0, 1 FROM generate_series(1, %s) g", (jobs,))
        connection.execute(f"VACUUM ANALYZE {SCHEMA}.jobs")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=_bare_process, args=(dsn, threads, batch, barrier, answers)) for _ in range(processes)
    ]
    for child in children:
        child.start()
    spans = [answers.get() for _ in children]
    for child in children:
        child.join()
    if (done := sum(count for count, _, _ in spans)) != jobs:
        raise AssertionError(f"{done} of {jobs} jobs were done")
    return jobs / (max(end for _, _, end in spans) - min(begin for _, begin, _ in spans))


def _bare_process(dsn: str, threads: int, batch: int, barrier: Any, answers: Any) -> None:
    counts: list[int] = []

    def loop() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            count = 0
            while ids := [row[0] for row in connection.execute(_CLAIM, (batch,), prepare=True)]:
                connection.execute(_DONE, (ids,), prepare=True)
                count += len(ids)
            counts.append(count)

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    barrier.wait()
    begin = time.time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    answers.put((sum(counts), begin, time.time()))


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2])))
