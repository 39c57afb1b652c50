"""The status over HTTP, and what Prometheus is told of it."""

import re

from adapters.presence import Presence
from tests.application.world import until

BEFORE = {
    "now",
    "due",
    "next_slot",
    "pending",
    "running",
    "oldest_pending_age_seconds",
    "workers",
    "leases",
}
"""What callers of earlier versions read."""


def status(admin):
    answer = admin.get("/api/v1/scheduler/status")
    assert answer.status_code == 200, answer.text
    return answer.json()


def figure(anyone, name: str) -> float:
    found = re.search(rf"^convergence_{re.escape(name)} (\S+)$", anyone.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_fields_of_earlier_versions_stay(admin):
    assert set(status(admin)) >= BEFORE


def test_what_waits_runs_and_lives(api, admin, anyone):
    acme = api.onboard()
    while admin.post("/api/v1/scheduler/process-queue").json()["processed"]:
        pass
    acme.run()
    now = status(admin)
    [customer] = now["customers"]
    assert (customer["customer_id"], customer["pending"], customer["places"]) == (acme.id, 1, 5)
    assert (customer["waits_for"], customer["why"]) == ("worker", "For a worker.")
    assert figure(anyone, "queue_depth") == 1
    assert figure(anyone, "oldest_wait_seconds") >= 0
    api.engine.go.clear()
    try:
        with Presence(api.service, ["worker"]) as presence, api.worker():
            until(lambda: status(admin)["running"] == 1)
            now = status(admin)
            assert now["alive"]["worker"] == 1
            [lease] = now["leases"]
            [worker] = [worker for worker in now["workers"] if worker["runs"]]
            assert lease["worker_id"] == worker["worker_id"] == presence.process.worker_id
            assert (worker["alive"], lease["expired"], lease["begun"]) == (True, False, True)
            assert 0 < lease["seconds_left"] <= 60
            assert figure(anyone, 'processes{role="worker"}') == 1
            api.engine.go.set()
            until(lambda: status(admin)["running"] == 0)
    finally:
        api.engine.go.set()
    assert status(admin)["problems"] == []
    assert figure(anyone, 'processes{role="worker"}') == 0
    assert figure(anyone, "due_pipelines") == figure(anyone, "overdue_workers") == 0


def test_the_status_is_documented(anyone):
    document = anyone.get("/openapi.json").json()
    operation = document["paths"]["/api/v1/scheduler/status"]["get"]
    assert "problems" in operation["description"]
    assert set(document["components"]["schemas"]["StatusView"]["properties"]) >= BEFORE
