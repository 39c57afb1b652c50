"""How fast the log becomes rows in BigQuery's emulator, how far those lag behind it, and whose time that is."""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
from google.cloud import bigquery

from adapters.bigquery.client import run
from adapters.bigquery.merge import merge_of, merge_sql
from adapters.bigquery.tables import ensure_table
from adapters.bigquery.writing import ChangeWriter
from adapters.bootstrap import Service, build
from adapters.embedded.bigquery import EmbeddedBigQuery
from adapters.embedded.child import free_port
from adapters.postgres.schema import migrate
from adapters.process import settle
from adapters.projector import warehouse_follower, warehouse_tables
from adapters.settings import Settings
from domain.projection import WAREHOUSE
from projections.fold import Folded
from projections.follow import MOST, PAGE, Placed
from projections.project import changes_of
from projections.rows import Change
from projections.tables import SCHEDULED_PIPELINE_RUNS
from tests.benchmarks import ours
from tests.benchmarks.databases import database
from tests.benchmarks.population import populate

_LOOK_S = 0.02


@contextmanager
def with_bigquery(server: str) -> Iterator[tuple[Service, psutil.Process]]:
    """A migrated service on a database, a directory and an emulator of its own, and the emulator's process."""
    with (
        database(server) as dsn,
        tempfile.TemporaryDirectory() as directory,
        EmbeddedBigQuery(Path(directory) / "bigquery", free_port()) as emulator,
    ):
        url = emulator.url.removeprefix("http://")
        service = build(Settings(data_dir=Path(directory), bigquery_emulator_host=url), dsn)
        settle()
        with service.datastore.reading() as cursor:
            migrate(cursor.connection)
        service.warehouse.ensure_central()
        try:
            yield service, psutil.Process(emulator.pid)
        finally:
            service.close()


def behind(server: str, runs: int, customers: int) -> dict[str, float]:
    """What a projector does per second that finds the events of so many runs waiting, and what the time goes into.

    Beside it, the yardstick: as many rows in one table, in bare MERGE statements of 5,000. What is counted by seconds
    of processor time does not move with what else the machine does.
    """
    with with_bigquery(server) as (service, emulator):
        ours.runs_through(service, runs=runs, customers=customers, processes=2, concurrency=50)
        for number in range(customers):
            service.warehouse.ensure_customer(f"bench_{number}")
        timed = _Timed(service)
        cpu, own_cpu, begun = _cpu(emulator), time.process_time(), time.perf_counter()
        events = timed.catch_up()
        seconds, own_cpu, cpu = time.perf_counter() - begun, time.process_time() - own_cpu, _cpu(emulator) - cpu
        figures = {
            "events": events,
            "per_s": events / seconds,
            "statements": timed.statements,
            "ms_per_statement": timed.in_bigquery_s * 1000 / timed.statements,
            "share_in_bigquery": timed.in_bigquery_s / seconds,
            "share_reading": timed.reading_s / seconds,
            "share_folding_and_encoding": timed.folding_s / seconds,
            "per_cpu_s": events / (own_cpu + cpu),
            "own_per_cpu_s": events / own_cpu,
            "emulator_per_cpu_s": events / cpu,
        }
        bare = _bare(service, timed.rows)
        return figures | {"rows": timed.rows, "rows_per_s": timed.rows / timed.in_bigquery_s, "bare_rows_per_s": bare}


def lag(server: str, runs: int, customers: int) -> dict[str, float]:
    """How long after they are appended events are in BigQuery, while so many runs are triggered and worked off.

    In the central tables, and in all of them: those of customers come after. The customers and their pipelines are
    there before.
    """
    with with_bigquery(server) as (service, emulator):
        for number in range(customers):
            service.warehouse.ensure_customer(f"bench_{number}")
        stop, done = threading.Event(), threading.Event()
        tables = warehouse_tables(service)
        follower = warehouse_follower(service, tables, stop)
        follower.start()
        slot = populate(service, customers, runs // customers, concurrent=50)
        seen: list[tuple[float, int, int, int]] = []

        def look() -> None:
            while not done.wait(_LOOK_S):
                follower.wake.set()
                tables.wake.set()
                handled, central = service.checkpoints.position(WAREHOUSE), tables.position(WAREHOUSE)
                seen.append((time.monotonic(), service.log.end(), handled, max(central, handled)))

        def caught_up() -> None:
            while not seen or seen[-1][2] < service.log.end():
                time.sleep(_LOOK_S)

        looking = threading.Thread(target=look)
        looking.start()
        caught_up()
        seen.clear()
        cpu, begun = _cpu(emulator), time.perf_counter()
        ours.worked_off(service, slot, runs=runs, processes=2, concurrency=50)
        caught_up()
        seconds = time.perf_counter() - begun
        busy = (_cpu(emulator) - cpu) / seconds
        done.set()
        looking.join()
        stop.set()
        follower.join()
        ahead = _lags([(at, end, central) for at, end, _, central in seen])
        whole = _lags([(at, end, handled) for at, end, handled, _ in seen])
        return {**whole, **{f"central_{name}": ahead[name] for name in ("p50_s", "p99_s")}, "emulator_cpu_share": busy}


def _lags(seen: Sequence[tuple[float, int, int]]) -> dict[str, float]:
    """Each event's lag, from when it was seen at the log's end to when the checkpoint had passed it."""
    lags: list[float] = []
    reached = 0
    before = seen[0][1]
    for at, end, _ in seen[1:]:
        if end == before:
            continue
        while seen[reached][2] < end:
            reached += 1
        lags += [seen[reached][0] - at] * (end - before)
        before = end
    lags.sort()
    return {"p50_s": lags[len(lags) // 2], "p99_s": lags[int(len(lags) * 0.99)], "events": len(lags)}


class _Timed:
    """A projector's work, page after page as it takes them, with a clock between the stages."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._changes: ChangeWriter = service.warehouse._changes
        self.reading_s = self.folding_s = self.in_bigquery_s = 0.0
        self.statements = self.rows = 0

    def catch_up(self) -> int:
        position = events = 0
        while placed := self._read(position):
            self._write(placed)
            self._service.checkpoints.advance(WAREHOUSE, position, placed[-1].at.position)
            position, events = placed[-1].at.position, events + len(placed)
        return events

    def _read(self, position: int) -> Sequence[Placed]:
        begun = time.perf_counter()
        waiting = self._service.log.end() - position
        placed = self._service.log.read(position, max(PAGE, min(waiting, MOST)))
        self.reading_s += time.perf_counter() - begun
        return placed

    def _write(self, placed: Sequence[Placed]) -> None:
        begun = time.perf_counter()
        changes: list[Change] = [change for p in placed for change in changes_of(p.event, p.at)]
        plan = self._changes.plan(changes)
        folded = time.perf_counter()
        self._changes.write(plan)
        self.folding_s += folded - begun
        self.in_bigquery_s += time.perf_counter() - folded
        self.statements += sum(len(writing.merge.chunks) for writing in plan.writings if writing.merge)
        self.rows += len({(c.customer_id, c.row.table.name, *map(c.row.values.get, c.row.table.key)) for c in changes})


def _bare(service: Service, rows: int) -> float:
    """Rows per second."""
    table = SCHEDULED_PIPELINE_RUNS
    dataset = service.settings.customers_dataset_id
    ensure_table(service.bigquery, f"{dataset}", table)
    values = {**dict.fromkeys(table.names), "customer_id": "bare", "state": "COMPLETED", "parameters": {}}
    folded = [Folded(table, None, (key,), {**values, "run_id": key}, whole=True, position=1) for key in _ids(rows)]
    merge = merge_of(folded)
    sql = merge_sql(f"`{service.settings.project}.{dataset}.{table.name}`", table, merge.shape)
    begun = time.perf_counter()
    for chunk in merge.chunks:
        run(service.bigquery, sql, [bigquery.ScalarQueryParameter("rows", "STRING", chunk)])
    return rows / (time.perf_counter() - begun)


def _ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
