"""Runs that the API executes itself, and passes that it makes: shut down, refused by the log, kept waiting."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters.bootstrap import origin
from adapters.scheduler import trigger_now
from adapters.worker import process_one
from application.ports import Away, RunReport
from tests.application.world import until


@pytest.fixture
def held(api) -> Iterator[threading.Event]:
    """Runs go on until they are told to stop, or the event is set."""
    api.engine.go.clear()
    yield api.engine.go
    api.engine.go.set()


def state(customer, run_id: str) -> dict:
    return customer.get(f"/api/v1/pipelines/runs/{run_id}").json()


def test_a_run_in_hand_is_handed_back_when_the_process_stops(api, acme, held):
    run_id = acme.run().json()["run_id"]
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process_one, api.service, "w", run_id, stop=stop)
        until(lambda: state(acme, run_id)["state"] == "RUNNING")
        stop.set()
        assert ended.result(timeout=10) == run_id
    run = state(acme, run_id)
    assert (run["state"], run["error"]) == ("PENDING", "The worker shut down.")
    held.set()
    assert process_one(api.service, "w", run_id) == run_id
    assert state(acme, run_id)["state"] == "COMPLETED"


def test_and_goes_on_when_nobody_tells_it_so(api, acme, held):
    """The control."""
    run_id = acme.run().json()["run_id"]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process_one, api.service, "w", run_id)
        until(lambda: state(acme, run_id)["state"] == "RUNNING")
        threading.Event().wait(1)
        assert not ended.done()
        held.set()
        ended.result(timeout=10)
    assert state(acme, run_id)["state"] == "COMPLETED"


@pytest.mark.parametrize(
    ("succeeded", "error", "ended"),
    [
        (True, None, ("COMPLETED", None)),
        (False, "no \ud800 text", ("FAILED", "The run failed, and what it said about it could not be recorded; ")),
    ],
)
def test_what_the_log_cannot_hold_is_not_executed_again(api, acme, succeeded, error, ended):
    """A lone surrogate has no UTF-8: neither a step nor an error that holds one can be recorded."""
    run_id = acme.run().json()["run_id"]
    before, table = api.engine.report, api.engine.table
    api.engine.report, api.engine.table = RunReport(succeeded=succeeded, rows=3, error=error), "\ud800"
    try:
        assert process_one(api.service, "w", run_id) == run_id
    finally:
        api.engine.report, api.engine.table = before, table
    run = state(acme, run_id)
    assert (run["state"], run["attempt"], run["steps"]) == (ended[0], 1, [])
    assert run["error"] == ended[1] or run["error"].startswith(ended[1])


def test_a_pass_does_not_wait_for_ever_for_the_one_before_it(api):
    by = origin("admin")
    with api.service.triggering, ThreadPoolExecutor(8) as pool:
        passes = [pool.submit(trigger_now, api.service, by, turn_s=0.2) for _ in range(8)]
        for one in passes:
            with pytest.raises(Away, match="are being triggered"):
                one.result(timeout=10)
    assert trigger_now(api.service, by, turn_s=0.2).triggered == 0
