"""BigQuery's tables made anew from the log, while a projector follows it into them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest

from adapters.bigquery.client import NotThere
from adapters.bigquery.reading import Reader
from adapters.bootstrap import Service, build
from adapters.postgres import rebuilds
from adapters.postgres.beside import TEMPORARY, Beside
from adapters.postgres.maintenance import maintenance
from adapters.postgres.rebuilds import State
from adapters.projector import run_projector
from adapters.rebuild import carry_out, chosen
from adapters.rebuild_stages import LOADING, SWAPPING
from adapters.settings import Settings
from application.customers import Provision, provision
from application.ports import Away, Expectation, RunReport, StepReport
from domain.projection import WAREHOUSE
from projections.rows import Scope
from projections.tables import EVERY
from projections.targets import Target
from tests.application.world import World, until
from tests.projections.test_rebuild import NOWHERE, killed

X_META = "x_meta_pipeline_runs"
TABLES = [table for table in EVERY if table.name in {"customer_api_keys", "customer_usage", X_META}]
NAMES = [table.name for table in TABLES]


class Life:
    """Two customers whose runs begin and end."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.customers = [f"{name}_a", f"{name}_b"]

    def begin(self) -> None:
        for customer_id in self.customers:
            self.world.onboard(customer_id, "SCALE")
            self.world.limits(customer_id, max_pipelines_per_day=100_000, max_pipelines_per_month=100_000)

    def step(self) -> None:
        for customer_id in self.customers:
            self.world.request(customer_id)
        at = self.world.at
        met = Expectation("rows", passed=False, severity="warn", observed="0 rows")
        step = StepReport(0, "check", "data_quality", "COMPLETED", at, at + timedelta(seconds=1.5), expectations=(met,))
        self.world.report(self.world.claim(), report=RunReport(succeeded=True, rows=3), steps=(step,))


@pytest.fixture
def life(database_url, tmp_path) -> Iterator[Life]:
    with World(database_url, tmp_path / "keys" / "wrapping.key") as world:
        made = Life(world, f"re{uuid4().hex[:12]}")
        made.begin()
        for _ in range(3):
            made.step()
        yield made


@pytest.fixture
def service(database_url, tmp_path, life, bigquery_emulator) -> Iterator[Service]:
    made = build(
        Settings(
            data_dir=tmp_path,
            bigquery_emulator_host=bigquery_emulator,
            customers_dataset_id=f"central_{life.customers[0]}",
        ),
        database_url,
    )
    yield made
    made.close()


@contextmanager
def projecting(service: Service) -> Iterator[None]:
    stop = threading.Event()
    projector = threading.Thread(target=run_projector, args=(service, stop))
    projector.start()
    try:
        yield
    finally:
        stop.set()
        projector.join()


def caught_up(service: Service) -> bool:
    return service.checkpoints.position(WAREHOUSE) == service.log.end()


def asked(service: Service, target: Target, *tables: str) -> rebuilds.Rebuild:
    names = chosen(tables, target)
    return rebuilds.ask(service.datastore, str(uuid4()), tables=names, target=target, asked_by="tests", reason=None)


def wrong(service: Service, life: Life) -> list[str]:
    """The tables of BigQuery whose rows are not what the log says, every value of every row."""
    reader = Reader(service.bigquery, service.settings.project)
    with maintenance(service.dsn, name="expected") as connection:
        beside = Beside(connection, TEMPORARY, TABLES)
        beside.create()
        beside.write(service.log.read(0, 1_000_000))
        found = []
        for table in TABLES:
            expected = list(beside.rows(table.name))
            datasets = [service.settings.customers_dataset_id] if table.scope is Scope.CENTRAL else life.customers
            there = [
                {**({} if table.scope is Scope.CENTRAL else {"dataset": dataset}), **row}
                for dataset in datasets
                for row in reader.rows(dataset, table)
            ]
            if there != expected:
                found.append(table.name)
    return found


def edit(service: Service, life: Life) -> None:
    """What somebody did by hand in the console."""
    central, own = service.settings.customers_dataset_id, life.customers[0]
    service.warehouse.query(f"UPDATE `{central}.customer_usage` SET pipelines_run_today = 99 WHERE TRUE")
    service.warehouse.query(f"DELETE FROM `{own}.{X_META}` WHERE TRUE")


def test_both_are_rebuilt_while_a_projector_and_writers_go_on(life, service):
    with projecting(service):
        until(lambda: caught_up(service), seconds=120)
        assert wrong(service, life) == []
        edit(service, life)
        assert wrong(service, life) == ["customer_usage", X_META]
        asked(service, Target.BOTH, *NAMES)
        ended = threading.Event()

        def live() -> None:
            while not ended.wait(1):
                life.step()

        with ThreadPoolExecutor(1) as threads:
            living = threads.submit(live)
            try:
                until(lambda: rebuilds.unfinished(service.datastore) is None, seconds=200)
            finally:
                ended.set()
            living.result()
        until(lambda: caught_up(service), seconds=120)
    [done] = rebuilds.newest(service.datastore)
    assert (done.state, done.differences) == (State.DONE, {})
    assert done.loaded["customer_api_keys"] == 2
    assert done.loaded[X_META] >= 6
    assert wrong(service, life) == []


def test_customers_that_have_no_rows(life, service):
    """What lies in the tables of theirs goes; a customer without a dataset gets none."""
    name, table = f"{life.customers[0]}_c", next(table for table in EVERY if table.name == "x_meta_step_logs")
    life.world.onboard(name)
    life.world.onboard(f"{name}_later")
    stamp = life.world.stamp("service")
    provision(Provision(**stamp, customer_id=name), life.world.platform, service.warehouse)
    service.warehouse.query(f"INSERT INTO `{name}.{table.name}` (step_logging_id, position) VALUES ('x', 1)")
    assert carry_out(service, asked(service, Target.BIGQUERY, table.name).rebuild_id).state is State.DONE
    reader = Reader(service.bigquery, service.settings.project)
    assert list(reader.rows(name, table)) == []
    with pytest.raises(NotThere):
        list(reader.rows(f"{name}_later", table))


def test_it_goes_on_after_a_kill_while_loading_and_while_swapping(life, service, tmp_path, bigquery_emulator):
    rebuild = asked(service, Target.BIGQUERY, *NAMES)
    central = service.settings.customers_dataset_id
    where = {"emulator": bigquery_emulator, "central": central}
    assert killed(service, tmp_path, rebuild, LOADING, 2, **where).state is State.LOADING
    life.step()
    assert killed(service, tmp_path, rebuild, SWAPPING, 2, **where).state is State.SWAPPING
    life.step()
    with projecting(service):
        until(lambda: rebuilds.unfinished(service.datastore) is None, seconds=200)
        until(lambda: caught_up(service), seconds=120)
    assert rebuilds.newest(service.datastore)[0].state is State.DONE
    assert wrong(service, life) == []


def test_bigquery_that_is_away_is_waited_for(life, service, tmp_path):
    away = build(Settings(data_dir=tmp_path, bigquery_emulator_host=NOWHERE), service.dsn)
    rebuild = asked(service, Target.BIGQUERY, X_META)
    try:
        with pytest.raises(Away):
            carry_out(away, rebuild.rebuild_id, patience_s=0)
    finally:
        away.close()
    assert rebuilds.newest(service.datastore)[0].state is State.LOADING
    assert carry_out(service, rebuild.rebuild_id).state is State.DONE
