"""Commands over HTTP, against the same application answering a constant after the same key check."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import uvicorn

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.embedded.child import free_port
from adapters.http.api import Parts
from adapters.http.app import create_app
from adapters.http.auth import CustomerCaller, RunsReader
from adapters.http.paging import Page, PageAsked
from adapters.http.run_views import RunSummary
from adapters.http.runs import run_summary
from adapters.postgres.reads.listing import Where, newest_first
from adapters.process import settle
from adapters.settings import Settings
from application.customers import Onboard, onboard
from projections.tables import SCHEDULED_PIPELINE_RUNS

CUSTOMERS = 20
"""A customer holds at most 100 provider configurations."""
_CONFIG = {
    "provider": "GCP",
    "domain": "COST",
    "source_project_id": "acme-gcp-project",
    "source_dataset": "billing_export",
    "notification_emails": ["ops@acmecorp.com"],
}


def constant(caller: CustomerCaller) -> dict[str, str]:
    return {"customer_id": caller.customer_id}


def bare(api: Parts, caller: RunsReader, paging: PageAsked) -> Page[RunSummary]:
    """A customer's runs, read by the service itself."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(api.service.datastore, SCHEDULED_PIPELINE_RUNS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, partial(run_summary, api), ("created_at", "run_id"))


def serve() -> None:
    """One API process with one more route, which does nothing."""
    dsn, data_dir, port = sys.argv[1:4]
    app = create_app(build(Settings(data_dir=data_dir, bigquery_emulator_host="127.0.0.1:1"), dsn))
    settle()  # as an API process does
    app.add_api_route("/api/v1/customers/{customer_id}/constant", constant, methods=["POST"])
    app.add_api_route("/api/v1/customers/{customer_id}/bare", bare, methods=["GET"])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


def commands(service: Service, requests: int, clients: int) -> dict[str, float]:
    """Requests per second to one process, the two routes in turns."""
    keys = _onboarded(service)
    with _serving(service) as base:
        asyncio.run(load(base, keys, "constant", {}, requests=100, clients=clients))
        return {
            "http.constant_per_s": asyncio.run(load(base, keys, "constant", {}, requests=requests, clients=clients)),
            "http.provider_config_per_s": asyncio.run(
                load(base, keys, "provider-configs", _CONFIG, requests=requests, clients=clients)
            ),
        }


def readings(service: Service, requests: int, clients: int) -> dict[str, float]:
    """Pages of a customer's runs per second, bound to the customer by the database and not; the best of three turns."""
    keys = _onboarded(service)
    figures: dict[str, float] = {}
    with _serving(service) as base:
        for _ in range(3):
            for name, route in (("bare_pages_per_s", "bare"), ("bound_pages_per_s", "pipelines")):
                per_second = asyncio.run(load(base, keys, route, None, requests=requests, clients=clients))
                figures[name] = max(figures.get(name, 0.0), per_second)
    return figures


def _onboarded(service: Service) -> dict[str, str]:
    """Keys by customer."""
    keys = {}
    for number in range(CUSTOMERS):
        command = Onboard(
            at=utc_now(),
            by=origin("anyone"),
            customer_id=f"http_{number}",
            company_name="HTTP",
            admin_email="someone@example.com",
        )
        keys[command.customer_id] = onboard(command, service.platform, service.vault).api_key.get_secret_value()
    return keys


@contextmanager
def _serving(service: Service) -> Iterator[str]:
    """An API process; where its customers are."""
    port = free_port()
    arguments = [sys.executable, "-m", "tests.benchmarks.http", service.dsn, str(service.settings.data_dir), str(port)]
    process = subprocess.Popen(arguments)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}/api/v1/customers"
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(port: int, seconds: float = 30) -> None:
    """Returns once something listens on the port of this machine; raises `TimeoutError`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("The API did not start.")


async def load(
    base: str, keys: dict[str, str], route: str, body: dict[str, object] | None, *, requests: int, clients: int
) -> float:
    """Requests per second with these keys in turns; without a body they are GETs."""
    left = iter(range(requests))
    turns = itertools.cycle(keys.items())

    async def client() -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            for _ in left:
                customer_id, key = next(turns)
                url = f"{base}/{customer_id}/{route}"
                method = "GET" if body is None else "POST"
                answer = await http.request(method, url, json=body, headers={"X-API-Key": key})
                answer.raise_for_status()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return requests / (time.perf_counter() - begun)


if __name__ == "__main__":
    serve()
