"""`make bench`: runs the yardsticks and the service's own work in turns, and prints one JSON object with the ratios."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from adapters.embedded.postgres import EmbeddedPostgres
from tests.benchmarks import (
    bare_sql,
    copies,
    encryption,
    growth,
    http,
    isolation,
    keys,
    latency,
    limits,
    ours,
    procrastinate_jobs,
    projector,
    rebuild,
)
from tests.benchmarks.databases import database, service_on

_PROGRESS = Console(stderr=True)
Figures = dict[str, float]
CONCURRENCIES = (10, 50)


def _prefixed(prefix: str, figures: Figures) -> Figures:
    return {f"{prefix}{name}": value for name, value in figures.items()}


def runs_through(server: str, arguments: argparse.Namespace) -> Figures:
    """Two worker processes each, at both concurrencies; the best counts."""
    figures: Figures = {}
    for concurrency in CONCURRENCIES:
        with database(server) as dsn:
            theirs = procrastinate_jobs.drain(dsn, arguments.runs, 2, concurrency)
        with service_on(server) as service:
            mine = ours.runs_through(service, runs=arguments.runs, customers=100, processes=2, concurrency=concurrency)
        figures |= {
            f"procrastinate.through_per_s.{concurrency}": theirs,
            f"convergence.through_per_s.{concurrency}": mine,
        }
    for name in ("procrastinate", "convergence"):
        best = max(figures[f"{name}.through_per_s.{concurrency}"] for concurrency in CONCURRENCIES)
        figures[f"{name}.through_per_s"] = best
    with database(server) as dsn:
        figures["bare_sql.through_per_s"] = bare_sql.drain(dsn, 20_000, processes=2, threads=4, batch=50)
    return figures


def trigger(server: str, _: argparse.Namespace) -> Figures:
    """Ten thousand due pipelines of a thousand customers, beside ten thousand jobs enqueued: by new processes, both."""
    with database(server) as dsn, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        theirs = process.submit(procrastinate_jobs.enqueue, dsn, 10_000).result()
    with service_on(server) as service:
        mine = ours.trigger(service, 1000, 10)
    return {"procrastinate.enqueue_per_s": theirs, **_prefixed("convergence.trigger_", mine)}


def idle(server: str, arguments: argparse.Namespace) -> Figures:
    with database(server) as dsn:
        theirs = procrastinate_jobs.idle(dsn, arguments.samples)
    with service_on(server) as service:
        mine = latency.idle(service, arguments.samples)
    return _prefixed("procrastinate.idle_", theirs) | _prefixed("convergence.idle_", mine)


def hog(server: str, _: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return {"convergence.single_behind_10000_s": latency.behind(service, 10_000, 5)}


def commands(server: str, _: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return {
            "convergence.onboarding_per_s": ours.onboarding(service, customers=500, threads=4),
            **http.commands(service, requests=500, clients=8),
        }


def rebuilding(server: str, arguments: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return _prefixed("convergence.", rebuild.rebuild(service, arguments.events))


def rebuilding_a_million(server: str, _: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return _prefixed("convergence.million_", rebuild.rebuild(service, 1_000_000))


def projecting(server: str, arguments: argparse.Namespace) -> Figures:
    """Into the emulator: what waits, of few and of many customers, and what comes while runs are worked off."""
    figures: Figures = {}
    for customers in (1, 10, 100):
        figures |= _prefixed(
            f"projector.behind_{customers}_customers.", projector.behind(server, arguments.runs, customers)
        )
    for customers in (1, 10, 100):
        figures |= _prefixed(f"projector.lag_{customers}_customers.", projector.lag(server, arguments.runs, customers))
    return figures


def picking(server: str, _: argparse.Namespace) -> Figures:
    """With few and many runs waiting, and of few and many customers."""
    figures: Figures = {}
    for customers, each in ((100, 10), (100, 1000), (10, 100), (1000, 10), (10_000, 1)):
        with service_on(server) as service:
            copies.waiting(service, customers, each)
            size = f".{customers}_customers_{customers * each}_runs"
            figures |= {f"convergence.{name}{size}": value for name, value in growth.picking(service, times=30).items()}
    return figures


def events(server: str, arguments: argparse.Namespace) -> Figures:
    """What a run costs after so many events."""
    figures: Figures = {}
    with service_on(server) as service:
        growth.per_run(service, 500, "warm")
        made = 0
        for total in (10_000, 100_000, *([1_000_000] if arguments.long else [])):
            copies.history(service, total - made)
            made = total
            costs = [growth.per_run(service, 1000, f"after_{total}_{turn}") for turn in range(3)]
            figures[f"convergence.ms_per_run_after_{total}_events"] = statistics.median(costs)
    return figures


def subscription(server: str, _: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return {"convergence.subscription_of_73000_events_ms": growth.subscription_load(service, 73_000)}


def encrypting(server: str, _: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return _prefixed("convergence.encryption_", encryption.costs(service))


def hour_tick(server: str, _: argparse.Namespace) -> Figures:
    with service_on(server) as service:
        return _prefixed("convergence.hour_tick_of_100000_", ours.trigger(service, 10_000, 10))


def isolating(server: str, _: argparse.Namespace) -> Figures:
    """Reads by the service itself and bound to the customer, below HTTP and through it."""
    with service_on(server) as service:
        return _prefixed("isolation.", isolation.reads(service, 2000) | http.readings(service, 600, 8))


def key_check(server: str, _: argparse.Namespace) -> Figures:
    """Remembered and looked up, by itself and in requests to a route that does nothing else."""
    with service_on(server) as service:
        return keys.check(service, requests=600)


def limiting(server: str, _: argparse.Namespace) -> Figures:
    """A call counted, and requests to a route that does nothing else with and without rate limits."""
    with service_on(server) as service:
        return limits.limits(service, requests=600)


Part = Callable[[str, argparse.Namespace], Figures]
ROUNDS: dict[str, Part] = {
    "through": runs_through,
    "trigger": trigger,
    "idle": idle,
    "hog": hog,
    "http": commands,
    "rebuild": rebuilding,
}
ONCE: dict[str, Part] = {
    "encryption": encrypting,
    "picking": picking,
    "events": events,
    "subscription": subscription,
    "projector": projecting,
    "isolation": isolating,
    "keys": key_check,
    "limits": limiting,
}
LONG: dict[str, Part] = {"hour-tick": hour_tick, "rebuild-million": rebuilding_a_million}

RATIOS = {
    "rebuild / reading and decoding": ("convergence.rebuild_per_s", "convergence.read_per_s"),
    "rebuild of 1,000,000 / reading and decoding": (
        "convergence.million_rebuild_per_s",
        "convergence.million_read_per_s",
    ),
    "runs through / procrastinate": ("convergence.through_per_s", "procrastinate.through_per_s"),
    "runs through / bare SQL in fifties": ("convergence.through_per_s", "bare_sql.through_per_s"),
    "trigger / procrastinate batch enqueue": ("convergence.trigger_per_s", "procrastinate.enqueue_per_s"),
    "add a provider config / constant answer": ("http.provider_config_per_s", "http.constant_per_s"),
    "requests with rate limits / without": ("limits.requests_limited_per_s", "limits.requests_unlimited_per_s"),
    "requests with a remembered key / without a key": ("keys.requests_cached_per_s", "keys.requests_keyless_per_s"),
    "requests with a key looked up / without a key": ("keys.requests_uncached_per_s", "keys.requests_keyless_per_s"),
    "requests bound to their customer / not bound": ("isolation.bound_pages_per_s", "isolation.bare_pages_per_s"),
    "reads bound to their customer / not bound": (
        "isolation.bound_reads_per_s.4_threads",
        "isolation.bare_reads_per_s.4_threads",
    ),
    "idle latency p99 / procrastinate": ("convergence.idle_p99_ms", "procrastinate.idle_p99_ms"),
    "idle latency p50 / procrastinate": ("convergence.idle_p50_ms", "procrastinate.idle_p50_ms"),
    "pick, 100,000 waiting / 1,000": (
        "convergence.pick_ms.100_customers_100000_runs",
        "convergence.pick_ms.100_customers_1000_runs",
    ),
    "claim, 100,000 waiting / 1,000": (
        "convergence.claim_of_10_ms.100_customers_100000_runs",
        "convergence.claim_of_10_ms.100_customers_1000_runs",
    ),
    "pick, 10,000 customers / 10": (
        "convergence.pick_ms.10000_customers_10000_runs",
        "convergence.pick_ms.10_customers_1000_runs",
    ),
    "per run, after 100,000 events / 10,000": (
        "convergence.ms_per_run_after_100000_events",
        "convergence.ms_per_run_after_10000_events",
    ),
    "per run, after 1,000,000 events / 10,000": (
        "convergence.ms_per_run_after_1000000_events",
        "convergence.ms_per_run_after_10000_events",
    ),
}
AT_LEAST = {
    "runs through / procrastinate": 3.0,
    "runs through / bare SQL in fifties": 0.2,
    "trigger / procrastinate batch enqueue": 1.0,
    "add a provider config / constant answer": 0.6,
    "convergence.onboarding_per_s": 100,
    "projector.behind_1_customers.per_s": 5000,
    "rebuild / reading and decoding": 0.3,
    "rebuild of 1,000,000 / reading and decoding": 0.3,
}
AT_MOST = {
    "keys.check_cached_us": 200.0,
    "idle latency p99 / procrastinate": 1.0,
    "convergence.single_behind_10000_s": 1.0,
    "projector.lag_1_customers.p99_s": 2.0,
    "projector.lag_100_customers.central_p99_s": 2.0,
    "convergence.subscription_of_73000_events_ms": 5.0,
    "convergence.hour_tick_of_100000_seconds": 30.0,
}


def measured(server: str, arguments: argparse.Namespace) -> list[Figures]:
    """The figures of each round, the parts in turns; what is measured once is in the first."""
    rounds: list[Figures] = []
    for number in range(arguments.rounds):
        parts = ROUNDS if number else {**ROUNDS, **ONCE, **(LONG if arguments.long else {})}
        rounds.append({})
        for name, part in parts.items():
            if not arguments.only or name in arguments.only:
                begun = time.monotonic()
                rounds[-1] |= part(server, arguments)
                took = time.monotonic() - begun
                _PROGRESS.print(f"round {number + 1} of {arguments.rounds}: {name}, {took:.0f} s")
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3000, help="worked off in each measurement of runs through")
    parser.add_argument("--samples", type=int, default=500, help="of idle latency, in each round")
    parser.add_argument("--events", type=int, default=100_000, help="in the log of each measurement of a rebuild")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[*ROUNDS, *ONCE, *LONG], help="this part, and others named")
    parser.add_argument("--long", action="store_true", help="also a million events, and 100,000 due pipelines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres(Path(directory) / "postgres") as server:
        rounds = measured(server.dsn, arguments)
    median = {name: statistics.median(r[name] for r in rounds if name in r) for name in rounds[0]}
    ratios = {
        name: round(median[ours_] / median[theirs], 3)
        for name, (ours_, theirs) in RATIOS.items()
        if ours_ in median and theirs in median
    }
    report = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
        "rounds": [{name: round(value, 2) for name, value in r.items()} for r in rounds],
        "median": {name: round(value, 2) for name, value in median.items()},
        "ratios": ratios,
        "goals": {"at least": AT_LEAST, "at most": AT_MOST},
        "missed": [
            *(name for name, goal in AT_LEAST.items() if (ratios | median).get(name, goal) < goal),
            *(name for name, goal in AT_MOST.items() if (ratios | median).get(name, goal) > goal),
        ],
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
