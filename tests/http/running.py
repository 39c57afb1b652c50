"""An API in a real server, on a database of its own, and clients of it."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg
import uvicorn
from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from adapters.bootstrap import Service, build
from adapters.embedded.child import free_port
from adapters.http.app import create_app
from adapters.http.key_cache import KeyCache
from adapters.http.throttle import Throttle
from adapters.pipelines.registry import Registry
from adapters.settings import Settings
from adapters.worker import run_worker
from application.ports import Expectation, RunOrder, RunProgress, RunReport, StepReport
from tests.databases import drop

ADMIN = {"X-Admin-Key": "admin_key_12345"}
NOWHERE = "http://127.0.0.1:1"
"""A BigQuery that refuses every connection."""


PLENTY = {"rate_limit_per_minute": 1_000_000, "source_rate_limit_per_minute": 100_000, "failed_keys_per_minute": 20_000}
"""Limits that no test reaches by the way."""


_TEMPLATE = """
id: {place}
version: 1
description: Tells somebody.
parameters:
  days: {{type: int, default: 1, minimum: 1, maximum: 30}}
steps:
  - {{id: tell, type: notify}}
"""


def templates(directory: Path) -> Registry:
    """`gcp/example/dryrun` and `gcp/cost/cost_billing`, which do no more than their runner does."""
    for domain, name in (("example", "dryrun"), ("cost", "cost_billing")):
        file = directory / "gcp" / domain / f"{name}.yml"
        file.parent.mkdir(parents=True)
        file.write_text(_TEMPLATE.format(place=f"gcp-{domain}-{name}"))
    return Registry.load(directory)


class Quick:
    """A pipeline runner whose runs end as the test says: at once, or when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.report = RunReport(succeeded=True, rows=3)
        self.table = "t"

    def run(self, order: RunOrder, progress: RunProgress) -> RunReport:
        while not self.go.wait(0.02):
            progress.check()
        at = datetime.now(UTC)
        met = Expectation(name="rows", passed=False, severity="warn", observed="3 rows")
        progress.finished(
            StepReport(
                0, "count", "data_quality", "COMPLETED", at, at, rows=3, target_table=self.table, expectations=(met,)
            )
        )
        return self.report


@dataclass
class Clock:
    """The API's clock: the real one, moved."""

    ahead: timedelta = field(default_factory=timedelta)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    @contextmanager
    def moved(self, **span: float) -> Iterator[None]:
        """Another time, for the API alone."""
        self.ahead = timedelta(**span)
        try:
            yield
        finally:
            self.ahead = timedelta()


def application(customer_id: str, plan: str = "PROFESSIONAL") -> dict[str, str]:
    """The body of an onboarding."""
    return {
        "customer_id": customer_id,
        "company_name": "ACME Corporation",
        "admin_email": "admin@acmecorp.com",
        "subscription_plan": plan,
    }


@dataclass
class Customer:
    """A customer, and a client with its key."""

    id: str
    key: str
    http: httpx.Client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.http, name)

    @property
    def url(self) -> str:
        return f"/api/v1/customers/{self.id}"

    def run(
        self, template: str = "gcp/example/dryrun", prefer: str = "respond-async", **options: Any
    ) -> httpx.Response:
        """Ask for a run."""
        headers = {"Prefer": prefer, **options.pop("headers", {})}
        body = options.pop("json", {"date": "2025-11-17", "trigger_by": "manual"})
        return self.http.post(f"/api/v1/pipelines/run/{self.id}/{template}", json=body, headers=headers, **options)


class Running:
    """One server on a free port."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        engine: Quick | None = None,
        keys: KeyCache | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.service = service
        self.clock = clock
        self.engine = engine
        self.app = create_app(service, now=clock, keys=keys, throttle=throttle)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app,
            port=self.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="api")
        self._clients: list[httpx.Client] = []

    def __enter__(self) -> Self:
        self._thread.start()
        client = self.client()
        for attempt in Retrying(
            retry=retry_if_exception_type(httpx.ConnectError), wait=wait_fixed(0.02), stop=stop_after_delay(20)
        ):
            with attempt:
                client.get("/livez")
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join()

    def client(self, headers: Mapping[str, str] | None = None, **options: Any) -> httpx.Client:
        """A client with these headers, closed with the server."""
        made = httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)
        self._clients.append(made)
        return made

    def onboard(self, plan: str = "PROFESSIONAL", customer_id: str | None = None) -> Customer:
        """A new customer, without waiting for BigQuery."""
        customer_id = customer_id or f"acme_{uuid4().hex[:12]}"
        self.app.state.api.warehouse_flag.lower()
        answer = self.client().post("/api/v1/customers/onboard", json=application(customer_id, plan))
        assert answer.status_code == 200, answer.text
        key = answer.json()["api_key"]
        return Customer(customer_id, key, self.client({"X-API-Key": key}))

    def admin(self) -> httpx.Client:
        return self.client(ADMIN)

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A worker beside the API."""
        stop = threading.Event()
        thread = threading.Thread(target=run_worker, args=(self.service, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def running(
    dsn: str, directory: Path, *, engine: Quick | None = None, registry: Any = None, **settings: Any
) -> Iterator[Running]:
    """A server that has stopped, and a service that is closed, when the block ends."""
    chosen = {"data_dir": directory, "bigquery_emulator_host": NOWHERE, "worker_id": "tests", **PLENTY, **settings}
    service = build(Settings(**chosen), dsn, engine=engine)
    if engine is not None:
        service = replace(service, registry=registry or templates(directory / "templates"))
    try:
        with Running(service, Clock(), engine) as server:
            yield server
    finally:
        service.close()


@contextmanager
def database(server_dsn: str, template: str) -> Iterator[str]:
    """A copy of a database, dropped afterwards."""
    name = f"http_{uuid4().hex}"
    copied = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(copied)
    yield urlsplit(server_dsn)._replace(path=f"/{name}").geturl()
    drop(server_dsn, name)
