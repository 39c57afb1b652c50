"""The floor: bare SQL, which has no quota, no fairness, and events that nobody reads."""

import multiprocessing
import threading
import time
from typing import Any

import psycopg

SCHEMA = "yardstick"
_CLAIM = f"""WITH c AS (UPDATE {SCHEMA}.jobs SET state = 1, version = version + 1 WHERE id = ANY(ARRAY(
 SELECT id FROM {SCHEMA}.jobs WHERE state = 0 ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)) RETURNING id, version)
 INSERT INTO {SCHEMA}.events (stream, version, what) SELECT id, version, 'claimed' FROM c RETURNING stream"""
_DONE = f"""WITH d AS (UPDATE {SCHEMA}.jobs SET state = 2, version = version + 1 WHERE id = ANY(%s) AND state = 1
 RETURNING id, version) INSERT INTO {SCHEMA}.events (stream, version, what) SELECT id, version, 'done' FROM d"""


def drain(dsn: str, jobs: int, processes: int, threads: int, batch: int) -> float:
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
