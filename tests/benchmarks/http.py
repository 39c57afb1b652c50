"""Commands over HTTP, against the same application answering a constant after the same key check."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import uvicorn

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.embedded.child import free_port
from adapters.http.app import create_app
from adapters.http.auth import CustomerCaller
from adapters.settings import Settings
from application.customers import Onboard, onboard

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


def serve() -> None:
    """One API process with one more route, which does nothing."""
    dsn, data_dir, port = sys.argv[1:4]
    app = create_app(build(Settings(data_dir=data_dir, bigquery_emulator_host="127.0.0.1:1"), dsn))
    app.add_api_route("/api/v1/customers/{customer_id}/constant", constant, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


def commands(service: Service, requests: int, clients: int) -> dict[str, float]:
    """Requests per second to one process, the two routes in turns."""
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
    port = free_port()
    arguments = [sys.executable, "-m", "tests.benchmarks.http", service.dsn, str(service.settings.data_dir), str(port)]
    process = subprocess.Popen(arguments)
    try:
        _wait_for(port)
        base = f"http://127.0.0.1:{port}/api/v1/customers"
        asyncio.run(_load(base, keys, "constant", {}, requests=100, clients=clients))
        return {
            "http.constant_per_s": asyncio.run(_load(base, keys, "constant", {}, requests=requests, clients=clients)),
            "http.provider_config_per_s": asyncio.run(
                _load(base, keys, "provider-configs", _CONFIG, requests=requests, clients=clients)
            ),
        }
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for(port: int, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("The API did not start.")


async def _load(
    base: str, keys: dict[str, str], route: str, body: dict[str, object], *, requests: int, clients: int
) -> float:
    left = iter(range(requests))
    turns = itertools.cycle(keys.items())

    async def client() -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            for _ in left:
                customer_id, key = next(turns)
                url = f"{base}/{customer_id}/{route}"
                answer = await http.post(url, json=body, headers={"X-API-Key": key})
                answer.raise_for_status()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return requests / (time.perf_counter() - begun)


if __name__ == "__main__":
    serve()
