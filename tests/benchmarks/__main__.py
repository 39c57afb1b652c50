"""`make bench`: runs the yardsticks and the service's own work in turns, and prints one JSON object with the ratios."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from rich.console import Console

from adapters.embedded.postgres import EmbeddedPostgres
from tests.benchmarks import http, ours, yardsticks

_PROGRESS = Console(stderr=True)


@contextmanager
def database(server: str) -> Iterator[str]:
    name = f"bench_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _round(server: str, runs: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    with database(server) as dsn:
        _PROGRESS.print("procrastinate …")
        theirs = yardsticks.procrastinate_drain(dsn, runs, processes=2, concurrency=10)
        figures |= {f"procrastinate.{name}": value for name, value in theirs.items()}
    with database(server) as dsn:
        _PROGRESS.print("bare SQL …")
        figures["bare_sql.through_per_s"] = yardsticks.bare_sql(dsn, runs, processes=2, threads=4, batch=50)
    with database(server) as dsn, tempfile.TemporaryDirectory() as directory:
        _PROGRESS.print("runs …")
        service = ours.service_on(dsn, Path(directory))
        through = ours.runs_through(service, Path(directory), runs=runs, customers=100, workers=2, concurrency=8)
        figures |= {f"convergence.{name}": value for name, value in through.items()}
        service.close()
    with database(server) as dsn, tempfile.TemporaryDirectory() as directory:
        _PROGRESS.print("onboarding and HTTP …")
        service = ours.service_on(dsn, Path(directory))
        figures["convergence.onboarding_per_s"] = ours.onboarding(service, customers=500, threads=4)
        figures |= http.commands(service, requests=500, clients=8)
        service.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres(Path(directory) / "postgres") as server:
        rounds = [_round(server.dsn, arguments.runs) for _ in range(arguments.rounds)]
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    report = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
        "rounds": [{name: round(value, 1) for name, value in r.items()} for r in rounds],
        "median": {name: round(value, 1) for name, value in median.items()},
        "ratios": {
            "runs through / procrastinate": median["convergence.through_per_s"] / median["procrastinate.through_per_s"],
            "runs through / bare SQL in fifties": median["convergence.through_per_s"]
            / median["bare_sql.through_per_s"],
            "trigger / procrastinate batch enqueue": median["convergence.trigger_per_s"]
            / median["procrastinate.enqueue_per_s"],
            "add a provider config / constant answer": median["http.provider_config_per_s"]
            / median["http.constant_per_s"],
        },
        "goals": {
            "runs through / procrastinate": 3.0,
            "runs through / bare SQL in fifties": 0.2,
            "trigger / procrastinate batch enqueue": 1.0,
            "add a provider config / constant answer": 0.6,
            "convergence.onboarding_per_s": 100,
        },
    }
    report["ratios"] = {name: round(value, 3) for name, value in report["ratios"].items()}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
