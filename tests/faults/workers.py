"""Worker processes that die, pause and misjudge the time, and what must be true after them."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.kms.local import LocalKeyFile
from adapters.postgres.event_log import Datastore
from adapters.postgres.store import PostgresSession, PostgresStore
from adapters.runs_in_hand import Timing
from adapters.settings import Settings
from adapters.worker import run_worker
from application.execution import Outcome, ReportOutcomes, report_outcomes
from application.platform import Platform
from application.ports import Cancelled, RunOrder, RunProgress, RunReport
from application.session import Lease
from domain.run_events import RunCancelled, RunCompleted, RunEvent, RunFailed, RunSkipped
from tests.application.world import World
from tests.faults.journal import Journal

ROOT = Path(__file__).parents[2]
ENDS = RunCompleted | RunFailed | RunCancelled | RunSkipped
QUICK = Timing(lease_s=2.0, heartbeat_s=0.4, lost_after_s=1.4, takeover_s=0.2, grace_s=5.0)


@dataclass
class Recording:
    """An engine that works for `days` tenths of a second at a run, or until the file `gate` is there.

    It writes down what it does. A `deaf` one never looks whether it should stop; an `unfenced` one reports its outcome
    in the name of whoever holds the run by then: the broken variant.
    """

    journal: Journal
    worker: str
    gate: Path | None = None
    deaf: bool = False
    unfenced: bool = False
    answers: list[RunReport] = field(default_factory=list)
    service: Service | None = None

    def run(self, order: RunOrder, progress: RunProgress) -> RunReport:
        self.journal.write("begin", order, self.worker)
        try:
            self._work(order, progress)
        except Cancelled:
            self.journal.write("stopped", order, self.worker)
            raise
        report = self.answers.pop(0) if self.answers else RunReport(succeeded=True, rows=time.monotonic_ns() % 2**31)
        self.journal.write("end", order, self.worker, report.rows)
        if self.unfenced:
            self._report_for_the_holder(order, report)
        return report

    def _work(self, order: RunOrder, progress: RunProgress) -> None:
        tenths = order.parameters["days"]
        until = time.monotonic() + tenths / 10
        while time.monotonic() < until and not (self.gate is not None and self.gate.exists()):
            if not self.deaf:
                progress.check()
            time.sleep(0.01)

    def _report_for_the_holder(self, order: RunOrder, report: RunReport) -> None:
        assert self.service is not None
        with self.service.datastore.reading() as cursor:
            holder = cursor.execute(
                "SELECT worker_id, attempt FROM run_leases WHERE run_id = %s", (order.run_id,)
            ).fetchone()
        assert holder is not None
        outcome = Outcome(
            run_id=order.run_id, customer_id=order.customer_id, attempt=holder["attempt"], at=utc_now(), report=report
        )
        by = origin(f"worker:{self.worker}")
        command = ReportOutcomes(at=utc_now(), by=by, worker_id=holder["worker_id"], outcomes=(outcome,))
        report_outcomes(command, self.service.platform)


class Altered:
    """A session but for what a subclass does differently."""

    def __init__(self, session: PostgresSession) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class OwnClockSession(Altered):
    """Leases by the clock of the process that looks at them: the broken variant."""

    def __init__(self, session: PostgresSession, now: Callable[[], datetime]) -> None:
        super().__init__(session)
        self._now = now

    def expired_leases(self, limit: int, besides: Collection[str] = frozenset()) -> Sequence[Lease]:
        found = self._rows(
            "SELECT run_id, customer_id, worker_id, attempt, begun FROM run_leases WHERE expires_at < %s"
            " ORDER BY run_id LIMIT %s FOR UPDATE",
            (self._now(), limit),
        )
        return [Lease(r["run_id"], r["customer_id"], r["worker_id"], r["attempt"], r["begun"]) for r in found]


class OwnClockStore(PostgresStore):
    def __init__(self, datastore: Datastore, now: Callable[[], datetime]) -> None:
        super().__init__(datastore)
        self._now = now

    @contextmanager
    def transaction(self) -> Iterator[Altered]:
        with super().transaction() as session:
            yield OwnClockSession(session, self._now)


def clock(offset_s: float, rate: float) -> Callable[[], datetime]:
    """A clock that is wrong by so much, and runs at `rate`: below zero it runs backwards."""
    began = time.time()
    return lambda: datetime.fromtimestamp(began + offset_s + rate * (time.time() - began), UTC)


def service(world: World, engine: Recording, directory: Path, **settings: Any) -> Service:
    """A worker's parts on the world's database, with BigQuery away. It is the caller's to close."""
    return _service(world.dsn, world.vault._wrapper._path, engine, directory, **settings)


def _service(
    dsn: str, key: Path, engine: Recording, directory: Path, now: Callable[[], datetime] = utc_now, **settings: Any
) -> Service:
    given = {"worker_concurrency": 4, "poll_interval_seconds": 60, **settings}
    of_worker = Settings(
        data_dir=directory, worker_id=engine.worker, bigquery_emulator_host="127.0.0.1:1", database_pool_size=8, **given
    )
    made = build(of_worker, dsn, engine=engine, keys=LocalKeyFile(key), now=now)
    engine.service = made
    return made


@contextmanager
def working(parts: Service, timing: Timing) -> Iterator[threading.Thread]:
    """A worker in a thread of this process."""
    stop = threading.Event()
    thread = threading.Thread(target=run_worker, args=(parts, stop), kwargs={"timing": timing})
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
        parts.close()


@dataclass
class Workers:
    """Worker processes on the world's database, killed at the end."""

    world: World
    directory: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal = Journal(self.directory / "journal")
        self.died: dict[str, float] = {}

    def start(self, name: str, timing: Timing = QUICK, **how: Any) -> subprocess.Popen[bytes]:
        """Start one. `how`: gate, deaf, unfenced; concurrency; offset_s and rate of its clock, own_clock."""
        given = {
            "name": name,
            "dsn": self.world.dsn,
            "key": str(self.world.vault._wrapper._path),
            "journal": str(self.journal.path),
            "directory": str(self.directory),
            "timing": asdict(timing),
            **how,
        }
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.workers", json.dumps(given)], cwd=ROOT, stderr=log
            )
        return self.processes[name]

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait(10)
        self.died[name] = time.monotonic()

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(10)


def main() -> None:
    """One worker process."""
    given = json.loads(sys.argv[1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    gate = given.get("gate")
    engine = Recording(
        Journal(Path(given["journal"])),
        given["name"],
        gate=None if gate is None else Path(gate),
        deaf=given.get("deaf", False),
        unfenced=given.get("unfenced", False),
    )
    now = clock(given.get("offset_s", 0), given.get("rate", 1))
    parts = _service(
        given["dsn"], Path(given["key"]), engine, Path(given["directory"]), now,
        worker_concurrency=given.get("concurrency", 4),
    )  # fmt: skip
    if given.get("own_clock"):
        store = OwnClockStore(parts.datastore, now)
        parts = replace(parts, store=store, platform=Platform(store, parts.mapper))
    run_worker(parts, stop, timing=Timing(**given["timing"]))


# what must be true afterwards


def life(world: World, run_id: str) -> list[RunEvent]:
    """Everything that happened to the run."""
    return [recorded.event for recorded in world.platform.history(UUID(run_id))]


def all_ended(world: World) -> bool:
    return not world.scalar("SELECT count(*) FROM pipeline_execution_queue WHERE deleted_at IS NULL")


def nothing_in_hand(world: World) -> None:
    """No run is held, and no place is taken."""
    assert world.rows("pipeline_execution_queue", state="RUNNING") == []
    assert world.scalar("SELECT count(*) FROM run_leases") == 0
    assert world.scalar("SELECT coalesce(sum(concurrent_pipelines_running), 0)::integer FROM customer_usage") == 0


def ended_once(world: World, journal: Journal, died: Collection[str] = ()) -> None:
    """Every run has one end, and it is what the attempt that held the run has come to.

    It is completed, unless all its three attempts were begun by workers that `died`.
    """
    told = {(e.run_id, e.attempt): e.rows for e in journal.entries("end")}
    held_by: dict[str, set[str]] = defaultdict(set)
    for begun in journal.entries("begin"):
        held_by[begun.run_id].add(begun.worker)
    for row in world.rows("scheduled_pipeline_runs"):
        [end] = [event for event in life(world, row["run_id"]) if isinstance(event, ENDS)]
        if isinstance(end, RunFailed) and held_by[row["run_id"]] <= set(died):
            assert end.attempt == 3
            continue
        assert isinstance(end, RunCompleted)
        assert end.rows == told.get((row["run_id"], end.attempt)), "the run ended with another attempt's outcome"


def crowd(world: World, runs: int, tenths: int) -> list[str]:
    """Runs of that length, of one customer who may have them all at once."""
    world.onboard("crowd", "SCALE")
    world.limits("crowd", max_pipelines_per_day=10_000, max_pipelines_per_month=10_000, max_concurrent_pipelines=50)
    return more(world, runs, tenths)


def more(world: World, runs: int, tenths: int) -> list[str]:
    return [world.request("crowd", parameters={"days": tenths}) for _ in range(runs)]


if __name__ == "__main__":
    main()
