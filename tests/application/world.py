"""The core on a PostgreSQL of its own, with a clock that the test moves: what tests of the use cases share."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from adapters.kms.local import LocalKeyFile
from adapters.kms.vault import EnvelopeVault
from adapters.postgres import leases
from adapters.postgres.data_keys import PostgresDataKeys
from adapters.postgres.erasures import ErasedCustomers
from adapters.postgres.event_log import Datastore
from adapters.postgres.schema import migrate
from adapters.postgres.store import PostgresStore
from application import customers, execution, pipelines, runs, scheduling, subscriptions
from application.mapper import EventMapper
from application.platform import Platform
from application.ports import RunOrder, RunReport
from domain.envelope import Origin
from domain.refusals import Refusal

Answer = TypeVar("Answer")

TEMPLATES = {("gcp", "example", "dryrun"), ("gcp", "cost", "cost_billing"), ("aws", "cost", "focus_import")}


@dataclass(frozen=True)
class Known:
    """A template that takes a `days` parameter and no other."""

    id: str

    def check(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        if set(parameters) - {"days"}:
            raise ValueError("It takes: days.")
        return {"days": 1, **parameters}


@dataclass
class Listed:
    """A catalogue whose templates can go away."""

    names: set[tuple[str, str, str]] = field(default_factory=lambda: set(TEMPLATES))

    def find(self, provider: str, domain: str, name: str) -> Known | None:
        wanted = (provider.lower(), domain.lower(), name.lower())
        return Known("-".join(wanted)) if wanted in self.names else None


class World:
    """The parts of one process, on the database at `dsn`; `at` is what its clock shows."""

    def __init__(self, dsn: str, key_file: Path, *, size: int = 10) -> None:
        self.dsn = dsn
        self.datastore = Datastore(dsn, size=size)
        self.store = PostgresStore(self.datastore)
        self.data_keys = PostgresDataKeys(dsn)
        self.vault = EnvelopeVault(LocalKeyFile(key_file), self.data_keys)
        self.mapper = EventMapper(self.vault, ErasedCustomers(self.data_keys.datastore).__contains__)
        self.platform = Platform(self.store, self.mapper)
        self.catalogue = Listed()
        # Ahead of the database's clock, which stamps claims: they then count on this day and no other.
        self.at = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(days=1)

    def close(self) -> None:
        self.datastore.close()
        self.data_keys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, **span: float) -> datetime:
        self.at += timedelta(**span)
        return self.at

    def stamp(self, actor: str = "admin") -> dict[str, Any]:
        command = str(uuid4())
        return {"at": self.at, "by": Origin(actor=actor, command_id=command, correlation_id=command)}

    # commands

    def onboard(self, customer_id: str = "acme", plan: str = "PROFESSIONAL", **more: Any) -> customers.Issued:
        given = {"company_name": "ACME Corporation", "admin_email": "admin@acmecorp.com", **more}
        command = customers.Onboard(**self.stamp(), customer_id=customer_id, subscription_plan=plan, **given)
        return customers.onboard(command, self.platform, self.vault)

    def request(self, customer_id: str = "acme", **more: Any) -> str:
        given = {"provider": "gcp", "domain": "example", "template": "dryrun", **more}
        command = runs.RequestRun(**self.stamp(), customer_id=customer_id, **given)
        return str(runs.request_run(command, self.platform, self.catalogue))

    def pipeline(self, customer_id: str = "acme", cron: str = "0 2 * * *", **more: Any) -> str:
        given = {"provider": "gcp", "domain": "cost", "pipeline_template": "cost_billing", **more}
        command = pipelines.ConfigurePipeline(**self.stamp(), customer_id=customer_id, schedule_cron=cron, **given)
        return pipelines.configure_pipeline(command, self.platform, self.catalogue)

    def change(self, config_id: str, customer_id: str = "acme", **changes: Any) -> None:
        command = pipelines.ChangePipeline(**self.stamp(), customer_id=customer_id, config_id=config_id, **changes)
        pipelines.change_pipeline(command, self.platform, self.catalogue)

    def trigger(self, **more: Any) -> scheduling.Triggered:
        command = scheduling.TriggerSchedules(**self.stamp("scheduler"), **more)
        return scheduling.trigger_schedules(command, self.platform, self.catalogue)

    def claim(self, worker: str = "w1", limit: int = 100, *, begin: bool = True, **more: Any) -> list[RunOrder]:
        """Claim as a worker does, which marks what it got as begun before it executes it. Or die in between."""
        command = execution.ClaimRuns(**self.stamp(f"worker:{worker}"), worker_id=worker, limit=limit, **more)
        orders = execution.claim_runs(command, self.platform)
        if begin and orders:
            claimed = [(order.run_id, order.attempt) for order in orders]
            leases.renew(self.datastore, worker, claimed, command.lease_seconds)
        return orders

    def report(self, orders: Sequence[RunOrder], worker: str = "w1", **outcome: Any) -> list[str]:
        """Tell the same outcome of all these runs; the runs that were refused."""
        given = outcome or {"report": RunReport(succeeded=True, rows=3)}
        told = [
            execution.Outcome(run_id=o.run_id, customer_id=o.customer_id, attempt=o.attempt, at=self.at, **given)
            for o in orders
        ]
        command = execution.ReportOutcomes(**self.stamp(f"worker:{worker}"), worker_id=worker, outcomes=tuple(told))
        return execution.report_outcomes(command, self.platform)

    def take_over(self) -> list[str]:
        return execution.take_over(execution.TakeOver(**self.stamp("service")), self.platform)

    def cancel(self, run_id: str, customer_id: str = "acme") -> None:
        runs.cancel_run(runs.CancelRun(**self.stamp(), customer_id=customer_id, run_id=run_id), self.platform)

    def retry(self, run_id: str, customer_id: str = "acme") -> str:
        command = runs.RetryRun(**self.stamp(), customer_id=customer_id, run_id=run_id)
        return str(runs.retry_run(command, self.platform, self.catalogue))

    def suspend(self, customer_id: str = "acme") -> None:
        customers.suspend(customers.Suspend(**self.stamp(), customer_id=customer_id, reason="unpaid"), self.platform)

    def reactivate(self, customer_id: str = "acme") -> None:
        command = customers.Reactivate(**self.stamp(), customer_id=customer_id, reason="paid")
        customers.reactivate(command, self.platform)

    def limits(self, customer_id: str = "acme", **limits: int | None) -> None:
        command = subscriptions.OverrideLimits(**self.stamp(), customer_id=customer_id, reason="test", **limits)
        subscriptions.override_limits(command, self.platform)

    # what they leave

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """Rows of a table whose columns have these values, the last changed last."""
        equal = [sql.SQL("{} = %s").format(sql.Identifier(column)) for column in where]
        query = sql.SQL("SELECT * FROM {} WHERE {} ORDER BY position").format(
            sql.Identifier(table), sql.SQL(" AND ").join([sql.SQL("true"), *equal])
        )
        with self.datastore.reading() as cursor:
            return cursor.execute(query, list(where.values())).fetchall()

    def beat(self, worker: str) -> list[leases.Held]:
        """A heartbeat of a worker that believes it holds every run ever leased to it."""
        with self.datastore.reading() as cursor:
            query = "SELECT run_id, attempt FROM run_leases WHERE worker_id = %s"
            mine = [(row["run_id"], row["attempt"]) for row in cursor.execute(query, (worker,))]
        return leases.renew(self.datastore, worker, mine, 60)

    def leased(self, run_id: str) -> dict[str, Any] | None:
        """The run's lease, with how many `seconds` it has left."""
        with self.datastore.reading() as cursor:
            return cursor.execute(
                "SELECT *, extract(epoch FROM expires_at - clock_timestamp())::float8 AS seconds FROM run_leases"
                " WHERE run_id = %s",
                (run_id,),
            ).fetchone()

    def row(self, table: str, **where: Any) -> dict[str, Any]:
        [row] = self.rows(table, **where)
        return row

    def run(self, run_id: str) -> dict[str, Any]:
        return self.row("scheduled_pipeline_runs", run_id=run_id)

    def usage(self, customer_id: str = "acme", day: date | None = None) -> tuple[int, int, int]:
        """Today's and this month's runs, and how many run now."""
        row = self.row("customer_usage", customer_id=customer_id, usage_date=day or self.at.date())
        return row["pipelines_run_today"], row["pipelines_run_month"], row["concurrent_pipelines_running"]

    def states(self, **where: Any) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in self.rows("scheduled_pipeline_runs", **where):
            counts[row["state"]] = counts.get(row["state"], 0) + 1
        return counts

    def scalar(self, query: str, *parameters: Any) -> Any:
        with self.datastore.reading() as cursor:
            [row] = cursor.execute(query, parameters).fetchall()
        return next(iter(row.values()))

    def execute(self, query: str, *parameters: Any) -> None:
        with self.datastore.reading() as cursor:
            cursor.execute(query, parameters)

    def tamper(self, query: str, *parameters: Any) -> None:
        """As the database's owner: the service itself may not change an event."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(query, parameters)

    def waiting_sessions(self) -> int:
        """How many of the server's sessions wait for a lock; the service's own role does not see the others'."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
        return row[0] if row else 0

    def listeners(self) -> int:
        """How many sessions listen."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'convergence listener%'"
                " AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')"
            ).fetchone()
        return row[0] if row else 0

    def events(self) -> list[Any]:
        """The whole log, oldest first."""
        found = self.store.recorder.select_notifications(start=0, limit=1_000_000)
        return [r.event for n in found for r in self.mapper.to_domain_events(n)]

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events()]


def migrated(dsn: str) -> str:
    """Make a database with the schema of this code, to be copied; returns its name."""
    name = f"migrated_{uuid4().hex}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with psycopg.connect(urlsplit(dsn)._replace(path=f"/{name}").geturl(), row_factory=dict_row) as connection:
        migrate(connection)
    return name


def race(callers: int, act: Callable[[int], Answer]) -> list[Answer | Refusal]:
    """What each of so many callers got, all of whom asked at the same moment; anything but a refusal is raised."""
    start = Barrier(callers)

    def call(number: int) -> Answer | Refusal:
        start.wait()
        try:
            return act(number)
        except Refusal as refusal:
            return refusal

    with ThreadPoolExecutor(callers) as threads:
        return list(threads.map(call, range(callers)))


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Returns as soon as it is true; fails when it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
