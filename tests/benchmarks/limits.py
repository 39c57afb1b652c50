"""What limits cost: one call counted from memory and in the database, and requests to one process with and without."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.requests import Request

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.embedded.child import free_port
from adapters.http.app import create_app
from adapters.http.auth import CustomerCaller
from adapters.http.figures import Figures
from adapters.http.ledger import Ledger, bucket
from adapters.http.rates import Rates
from adapters.http.throttle import SharedAllowances
from adapters.postgres.allowances import Allowance, Ask
from adapters.settings import Settings
from application.customers import Onboard, onboard
from tests.benchmarks.http import load, wait_for

CUSTOMERS = 20
USUAL = 600
"""Requests a minute of one customer, as the service is delivered: leases are of up to thirty."""
_TURNS = 3
_WARM_UP = 100


def constant(caller: CustomerCaller) -> dict[str, str]:
    return {"customer_id": caller.customer_id}


def serve() -> None:
    """One API process with one more route, which does nothing."""
    dsn, data_dir, port, per_minute = sys.argv[1:5]
    settings = Settings(data_dir=data_dir, bigquery_emulator_host="127.0.0.1:1", rate_limit_per_minute=int(per_minute))
    app = create_app(build(settings, dsn))
    app.add_api_route("/api/v1/customers/{customer_id}/constant", constant, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


def limits(service: Service, requests: int) -> dict[str, float]:
    """Microseconds for one call, and requests per second to one process: the best of three turns."""
    keys = {}
    for number in range(CUSTOMERS):
        who = {"customer_id": f"limits_{number}", "company_name": "Limits", "admin_email": "someone@example.com"}
        command = Onboard(at=utc_now(), by=origin("anyone"), **who)
        keys[command.customer_id] = onboard(command, service.platform, service.vault).api_key.get_secret_value()
    figures = asyncio.run(_microseconds(service.dsn))
    with _serving(service, USUAL) as limited, _serving(service, 0) as unlimited:
        for turn in range(_TURNS + 1):
            for name, base in (("limited", limited), ("unlimited", unlimited)):
                each = requests if turn else _WARM_UP
                per_second = asyncio.run(load(base, keys, "constant", {}, requests=each, clients=8))
                figure = f"limits.requests_{name}_per_s"
                figures[figure] = max(figures.get(figure, 0.0), per_second if turn else 0.0)
    return figures


async def _microseconds(dsn: str) -> dict[str, float]:
    """One call out of leases alone, one out of the usual ones, and one time that the database is asked."""
    allowances = SharedAllowances(dsn)
    ledger = Ledger(allowances.take)
    figures = {}
    try:
        for name, per_minute, customers, times in (("memory", 1_000_000, 1, 40_000), ("leased", USUAL, 20, 10_000)):
            rates = Rates(ledger, customer_per_minute=per_minute, source_per_minute=0, figures=Figures())
            asked = [(Request({"type": "http", "state": {}, "headers": []}), f"c{n % customers}") for n in range(times)]
            begun = time.perf_counter()
            for request, customer_id in asked:
                await rates.of_customer(request, f"{name}_{customer_id}")
            figures[f"limits.call_{name}_us"] = (time.perf_counter() - begun) / times * 1e6
        wanted = Ask(bucket("bench"), Allowance.per_minute(1_000_000))
        begun = time.perf_counter()
        for _ in range(500):
            await ledger.take(wanted)
        figures["limits.round_trip_us"] = (time.perf_counter() - begun) / 500 * 1e6
    finally:
        allowances.close()
        ledger.close()
    return figures


@contextmanager
def _serving(service: Service, per_minute: int) -> Iterator[str]:
    """An API process; where its customers are."""
    port = free_port()
    place = [service.dsn, str(service.settings.data_dir), str(port), str(per_minute)]
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.limits", *place])
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}/api/v1/customers"
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    serve()
