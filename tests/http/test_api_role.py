"""The API as a process serves it: it brings back what another one like it left behind, and ends with runs in hand."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from adapters.process import Part, Shutdown, bind
from adapters.roles import api_part
from adapters.scheduler import run_takeover
from domain.pipeline_run import RunState
from tests.application.world import until
from tests.http.running import ADMIN, Customer, Running


@contextmanager
def serving(api: Running, takeover: Callable[..., None] = run_takeover) -> Iterator[tuple[Part, str]]:
    """A second API on the same database, and its address."""
    listener = bind("127.0.0.1", 0)
    answering = threading.Event()
    part = api_part(api.service, listener, answering.set, takeover=takeover)
    part.start(Shutdown())
    try:
        assert answering.wait(20)
        yield part, "http://{}:{}".format(*listener.getsockname())
    finally:
        part.stop()
        assert part.join(25)
        listener.close()


def state(acme: Customer, run_id: str) -> str:
    return acme.get(f"/api/v1/pipelines/runs/{run_id}").json()["state"]


@pytest.fixture
def held(api) -> Iterator[threading.Event]:
    """Runs go on until they are told to stop, or the event is set."""
    api.engine.go.clear()
    yield api.engine.go
    api.engine.go.set()


def process(url: str) -> httpx.Response:
    return httpx.post(f"{url}/api/v1/scheduler/process-queue", headers=ADMIN, timeout=60)


@pytest.mark.parametrize("notices", [True, False], ids=["", "control"])
def test_a_run_that_another_api_left_behind_waits_again(api, acme, held, notices):
    often = partial(run_takeover, every_s=0.05, lease_s=0.05)
    with ThreadPoolExecutor(1) as pool, serving(api, often if notices else lambda service, stop: None):
        run_id = acme.run().json()["run_id"]
        answer = pool.submit(process, api.url)
        until(lambda: state(acme, run_id) == RunState.RUNNING)

        def waits_again() -> bool:
            # Its lease ends, as if nobody renewed it.
            with api.service.datastore.reading() as cursor:
                cursor.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 ms'")
            return state(acme, run_id) == RunState.PENDING

        if notices:
            until(waits_again)
        else:
            time.sleep(0.5)
            assert not waits_again()
        held.set()
        assert answer.result(timeout=20).status_code == 200
    # Nothing waits for whoever processes the queue next.
    acme.post(f"/api/v1/pipelines/runs/{run_id}/cancel")


@pytest.mark.soak
def test_a_run_in_hand_holds_up_no_shutdown(api, acme, held):
    """Callers have twenty seconds for their answers; then what is in hand goes back, and the process can end."""
    with ThreadPoolExecutor(1) as pool:
        with serving(api) as (part, url):
            run_id = acme.run().json()["run_id"]
            answer = pool.submit(process, url)
            until(lambda: state(acme, run_id) == RunState.RUNNING)
            began = time.monotonic()
            part.stop()
            assert part.join(27)
            assert time.monotonic() - began < 25
        assert state(acme, run_id) == RunState.PENDING
        assert answer.exception(timeout=20) is not None or answer.result().status_code >= 500
