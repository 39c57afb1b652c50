"""From asking to the first line of the run in another process, with nothing else going on and behind a long line."""

import random
import statistics
import time
from pathlib import Path

from adapters.bootstrap import Service, origin, utc_now
from application.runs import RequestRun, request_run
from application.scheduling import TriggerSchedules, trigger_schedules
from tests.benchmarks.databases import rested
from tests.benchmarks.noop_worker import stamped, workers
from tests.benchmarks.population import populate

_WARM_UP = 10
GAP_S = (0.02, 0.06)


def distribution(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {"p50_ms": statistics.median(ordered), "p99_ms": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]}


def idle(service: Service, samples: int) -> dict[str, float]:
    """From request_run to the engine, requests 20 to 60 ms apart, one idle worker process of ten threads."""
    populate(service, 1, 0, concurrent=50)
    rested(service)
    stamps = Path(service.settings.data_dir) / "stamps"
    stamps.touch()
    gaps = random.Random(1)  # noqa: S311 - no secret
    asked: dict[str, int] = {}
    with workers(service, 1, 10, stamps=stamps):
        for _ in range(_WARM_UP):
            _ask(service, "bench_0")
        _wait_for(stamps, _WARM_UP)
        for _ in range(samples):
            time.sleep(gaps.uniform(*GAP_S))
            begun = time.monotonic_ns()
            asked[_ask(service, "bench_0")] = begun
        _wait_for(stamps, _WARM_UP + samples)
    began = stamped(stamps)
    return distribution([(began[run_id] - at) / 1e6 for run_id, at in asked.items()])


def behind(service: Service, line: int, singles: int) -> float:
    """The longest that one of some single runs of other customers waits behind one customer's `line`, in seconds."""
    slot = populate(service, 1, line, concurrent=50, prefix="hog")
    populate(service, singles, 0, concurrent=3, prefix="single")
    trigger_schedules(TriggerSchedules(at=slot, by=origin("scheduler")), service.platform, service.registry)
    rested(service)
    stamps = Path(service.settings.data_dir) / "stamps"
    stamps.touch()
    asked: dict[str, int] = {}
    with workers(service, 2, 10, stamps=stamps):
        _wait_for(stamps, 100)
        for number in range(singles):
            begun = time.monotonic_ns()
            asked[_ask(service, f"single_{number}")] = begun
            time.sleep(0.1)
        until = time.monotonic() + 60
        while not asked.keys() <= stamped(stamps).keys():
            if time.monotonic() > until:
                raise TimeoutError("The single runs did not start.")
            time.sleep(0.05)
    began = stamped(stamps)
    if len(began) >= line:
        raise AssertionError("The line was gone before the single runs came.")
    return max(began[run_id] - at for run_id, at in asked.items()) / 1e9


def _ask(service: Service, customer_id: str) -> str:
    command = RequestRun(
        at=utc_now(),
        by=origin("bench"),
        customer_id=customer_id,
        provider="gcp",
        domain="example",
        template="dryrun",
    )
    return str(request_run(command, service.platform, service.registry))


def _wait_for(stamps: Path, runs: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while len(stamped(stamps)) < runs:
        if time.monotonic() > until:
            raise TimeoutError("The runs did not start.")
        time.sleep(0.05)
