"""The check of an API key, remembered and not: by itself, and in requests to one process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import uvicorn
from starlette.requests import Request

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.embedded.child import free_port
from adapters.http.api import Api
from adapters.http.app import create_app
from adapters.http.auth import CustomerCaller, identify
from adapters.http.key_cache import KeyCache
from adapters.settings import Settings
from application.customers import Onboard, onboard
from tests.benchmarks.http import load, wait_for

CUSTOMERS = 20
_TURNS = 3
_WARM_UP = 100
_NEVER_S = 0.0
_ALWAYS_S = 3600.0


def constant(caller: CustomerCaller) -> dict[str, str]:
    return {"customer_id": caller.customer_id}


def keyless(customer_id: str) -> dict[str, str]:
    return {"customer_id": customer_id}


def _unlimited(data_dir: str) -> Settings:
    """The check alone, without what a caller is allowed by the minute."""
    return Settings(
        data_dir=data_dir,
        bigquery_emulator_host="127.0.0.1:1",
        rate_limit_per_minute=0,
        source_rate_limit_per_minute=0,
        failed_keys_per_minute=0,
    )


def serve() -> None:
    """One API process with two more routes, which do nothing: with a key and without."""
    dsn, data_dir, port, lease_s = sys.argv[1:5]
    app = create_app(build(_unlimited(data_dir), dsn), keys=KeyCache(lease_s=float(lease_s)))
    app.add_api_route("/api/v1/customers/{customer_id}/constant", constant, methods=["POST"])
    app.add_api_route("/api/v1/customers/{customer_id}/keyless", keyless, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


def check(service: Service, requests: int) -> dict[str, float]:
    """Microseconds for one check, and requests per second to one process: the best of three turns."""
    keys = {}
    for number in range(CUSTOMERS):
        who = {"customer_id": f"keys_{number}", "company_name": "Keys", "admin_email": "someone@example.com"}
        command = Onboard(at=utc_now(), by=origin("anyone"), **who)
        keys[command.customer_id] = onboard(command, service.platform, service.vault).api_key.get_secret_value()
    figures = {
        "keys.check_cached_us": asyncio.run(_microseconds(service, keys, _ALWAYS_S, 20_000)),
        "keys.check_uncached_us": asyncio.run(_microseconds(service, keys, _NEVER_S, 1_000)),
    }
    with _serving(service, _ALWAYS_S) as cached, _serving(service, _NEVER_S) as uncached:
        places = {"cached": (cached, "constant"), "uncached": (uncached, "constant"), "keyless": (cached, "keyless")}
        for turn in range(_TURNS + 1):
            for name, (base, route) in places.items():
                each = requests if turn else _WARM_UP
                per_second = asyncio.run(load(base, keys, route, {}, requests=each, clients=8))
                figure = f"keys.requests_{name}_per_s"
                figures[figure] = max(figures.get(figure, 0.0), per_second if turn else 0.0)
    return figures


async def _microseconds(service: Service, keys: dict[str, str], lease_s: float, times: int) -> float:
    cache = KeyCache(lease_s=lease_s)
    cache.hear(time.monotonic())
    app = create_app(replace(service, settings=_unlimited(str(service.settings.data_dir))), keys=cache)
    api: Api = app.state.api

    def request(key: str) -> Request:
        headers = [(b"x-api-key", key.encode())]
        return Request({"type": "http", "app": app, "headers": headers, "state": {}, "client": ("127.0.0.1", 1)})

    given = list(keys.values())
    for key in given:
        await identify(request(key))
    asked = [request(given[n % len(given)]) for n in range(times)]
    begun = time.perf_counter()
    for one in asked:
        await identify(one)
    took = time.perf_counter() - begun
    api.key_uses.flush(service.datastore)
    return took / times * 1e6


@contextmanager
def _serving(service: Service, lease_s: float) -> Iterator[str]:
    """An API process; where its customers are."""
    port = free_port()
    place = [service.dsn, str(service.settings.data_dir), str(port), str(lease_s)]
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.keys", *place])
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}/api/v1/customers"
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    serve()
