"""Runs over HTTP: waited for, refused by quota, looked at, cancelled, tried again."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from adapters.worker import process_one
from application.ports import RunReport


def limit(admin, acme, **limits):
    answer = admin.patch(f"/api/v1/admin/customers/{acme.id}/limits", json={**limits, "reason": "test"})
    assert answer.status_code == 200, answer.text


def usage(acme):
    return acme.get(f"{acme.url}/usage").json()


@pytest.fixture
def busy(api):
    """Runs that started go on until the test ends."""
    api.engine.go.clear()
    yield api.engine
    api.engine.go.set()


def test_an_answer_waits_for_the_outcome(api, acme):
    with api.worker():
        before = time.monotonic()
        answer = acme.run(prefer="")
    assert time.monotonic() - before < 8
    run = answer.json()
    assert answer.status_code == 200, run
    assert run["run_id"] == run["pipeline_logging_id"]
    assert (run["pipeline_id"], run["state"], run["rows"], run["error"]) == ("gcp-example-dryrun", "COMPLETED", 3, None)
    assert run["started"] <= run["ended"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", run["started"])
    assert (run["run_date"], run["trigger_type"], run["trigger_by"]) == ("2025-11-17", "manual", "manual")
    assert acme.get(f"/api/v1/pipelines/runs/{run['run_id']}").json() == run


def test_a_run_in_full(api, acme):
    run_id = acme.run(json={"parameters": {"days": 3}}).json()["run_id"]
    process_one(api.service, "w", run_id)
    run = acme.get(f"/api/v1/pipelines/runs/{run_id}").json()
    assert run["parameters"] == {"days": 3}
    assert [(s["step_name"], s["status"], s["rows_processed"]) for s in run["steps"]] == [("count", "COMPLETED", 3)]
    quality = run["dq_results"][0]
    assert (quality["expectations_failed"], quality["overall_status"]) == (1, "WARN")
    assert quality["failed_expectations"] == [{"name": "rows", "severity": "warn", "observed": "3 rows"}]
    assert run["timeline"][-1]["text"] == "Completed, 3 rows."


def test_a_failed_run_is_an_answer(api, acme):
    api.engine.report = RunReport(succeeded=False, error="The table is not there.")
    try:
        with api.worker():
            answer = acme.run(prefer="")
    finally:
        api.engine.report = RunReport(succeeded=True, rows=3)
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["error"]) == ("FAILED", "The table is not there.")


def test_a_run_that_takes_longer(acme):
    before = time.monotonic()
    answer = acme.run(prefer="wait=1")
    assert 0.9 < time.monotonic() - before < 5
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/api/v1/pipelines/runs/{answer.json()['run_id']}"
    assert acme.get(answer.headers["Location"]).json()["state"] == "PENDING"


def test_an_answer_that_does_not_wait(acme):
    before = time.monotonic()
    answer = acme.run(prefer="respond-async")
    assert time.monotonic() - before < 5
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"


def test_waiting_holds_no_thread(api, acme, admin):
    """More requests wait than there are threads, and another one is answered meanwhile."""
    limit(admin, acme, max_pipelines_per_day=100)
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(acme.run, prefer="wait=8") for _ in range(60)]
        time.sleep(0)
        before = time.monotonic()
        while admin.get("/api/v1/scheduler/status").json()["pending"] < 60 and time.monotonic() < before + 30:
            pass
        before = time.monotonic()
        assert acme.get(acme.url).status_code == 200
        assert time.monotonic() - before < 5
        assert {future.result().status_code for future in waiting} == {202}


def test_provider_domain_and_template_in_any_case(acme):
    run = acme.run("GCP/Example/DRYRUN").json()
    assert (run["provider"], run["domain"], run["pipeline_template"]) == ("GCP", "EXAMPLE", "dryrun")


def test_a_body_is_not_needed(acme):
    answer = acme.http.post(f"/api/v1/pipelines/run/{acme.id}/gcp/example/dryrun", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.json()["run_date"] == datetime.now(UTC).date().isoformat()


def test_the_daily_quota(acme, admin, api):
    limit(admin, acme, max_pipelines_per_day=2)
    assert [acme.run().status_code for _ in range(3)] == [202, 202, 429]
    answer = acme.run()
    midnight = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    body = answer.json()
    assert list(body)[:4] == ["detail", "customer_id", "quota_reset_time", "status_code"]
    assert {k: body[k] for k in list(body)[:4]} == {
        "detail": "Daily pipeline quota exceeded. Used 2/2 pipelines today.",
        "customer_id": acme.id,
        "quota_reset_time": midnight.strftime("%Y-%m-%dT00:00:00Z"),
        "status_code": 429,
    }
    assert body["title"] == "Too Many Requests"
    seconds = int(answer.headers["Retry-After"])
    assert abs((midnight - datetime.now(UTC)).total_seconds() - seconds) < 60
    assert answer.headers["RateLimit"] == f'"daily";r=0;t={seconds}'
    assert answer.headers["RateLimit-Policy"] == '"daily";q=2;w=86400'
    with api.clock.moved(days=1):
        assert usage(acme)["daily_remaining"] == 2
        assert acme.run().status_code == 202


def test_the_monthly_quota(acme, admin):
    limit(admin, acme, max_pipelines_per_month=1)
    acme.run()
    answer = acme.run()
    first = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).strftime("%Y-%m-01")
    body = answer.json()
    assert list(body)[:4] == ["detail", "customer_id", "quota_reset_date", "status_code"]
    assert body["detail"] == "Monthly pipeline quota exceeded. Used 1/1 pipelines this month."
    assert (body["customer_id"], body["quota_reset_date"], body["status_code"]) == (acme.id, first, 429)
    assert int(answer.headers["Retry-After"]) > 0


def test_the_concurrent_limit(api, acme, admin, busy):
    limit(admin, acme, max_concurrent_pipelines=1)
    run_id = acme.run().json()["run_id"]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process_one, api.service, "w", run_id)
        while acme.get(f"/api/v1/pipelines/runs/{run_id}").json()["state"] == "PENDING":
            pass
        assert usage(acme)["concurrent_pipelines_running"] == 1
        answer = acme.run()
        busy.go.set()
        assert ended.result() == run_id
    body = answer.json()
    assert list(body)[:3] == ["detail", "customer_id", "status_code"]
    assert body["detail"] == "Concurrent pipeline limit reached. 1/1 pipelines currently running."
    assert (body["customer_id"], body["status_code"]) == (acme.id, 429)
    assert "quota_reset_time" not in body
    assert int(answer.headers["Retry-After"]) > 0
    assert usage(acme)["concurrent_pipelines_running"] == 0
    assert acme.run().status_code == 202


def test_sixteen_callers_get_exactly_the_places_there_are(acme, admin):
    limit(admin, acme, max_pipelines_per_day=7)
    start = threading.Barrier(16)

    def one(_):
        start.wait()
        return acme.run().status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = sorted(pool.map(one, range(16)))
    assert statuses == [202] * 7 + [429] * 9
    assert usage(acme)["pipelines_run_today"] == 7
    assert usage(acme)["daily_remaining"] == 0


def test_a_waiting_run_is_cancelled_at_once_and_gives_its_unit_back(acme):
    run_id = acme.run().json()["run_id"]
    answer = acme.post(f"/api/v1/pipelines/runs/{run_id}/cancel", json={"reason": "Wrong date."})
    assert (answer.status_code, answer.json()["state"]) == (200, "CANCELLED")
    assert answer.json()["timeline"][-1]["text"] == "Cancelled: Wrong date."
    assert usage(acme)["pipelines_run_today"] == 0
    again = acme.post(f"/api/v1/pipelines/runs/{run_id}/cancel")
    assert again.status_code == 409


def test_a_running_run_is_cancelled_by_its_worker(api, acme, busy):
    run_id = acme.run().json()["run_id"]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process_one, api.service, "w", run_id)
        while acme.get(f"/api/v1/pipelines/runs/{run_id}").json()["state"] == "PENDING":
            pass
        answer = acme.post(f"/api/v1/pipelines/runs/{run_id}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "RUNNING")
        ended.result(timeout=20)
    assert not busy.go.is_set()
    assert acme.get(f"/api/v1/pipelines/runs/{run_id}").json()["state"] == "CANCELLED"


def test_a_run_is_tried_again(acme):
    first = acme.run(json={"date": "2025-11-01", "parameters": {"days": 2}}).json()
    url = f"/api/v1/pipelines/runs/{first['run_id']}"
    headers = {"Prefer": "respond-async", "Idempotency-Key": uuid4().hex}
    assert acme.post(f"{url}/retry", headers={"Prefer": "respond-async"}).status_code == 409
    acme.post(f"{url}/cancel")
    answer = acme.post(f"{url}/retry", headers=headers)
    second = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/api/v1/pipelines/runs/{second['run_id']}"
    assert second["run_id"] != first["run_id"]
    assert (second["run_date"], second["parameters"], second["trigger_type"]) == ("2025-11-01", {"days": 2}, "retry")
    assert acme.post(f"{url}/retry", headers=headers).json() == second


def test_the_queue_is_processed_one_run_at_a_time(api, admin):
    acme = api.onboard()
    while admin.post("/api/v1/scheduler/process-queue").json()["processed"]:
        pass
    run_id = acme.run().json()["run_id"]
    status = admin.get("/api/v1/scheduler/status").json()
    assert status["pending"] == 1
    assert status["oldest_pending_age_seconds"] >= 0
    answer = admin.post("/api/v1/scheduler/process-queue")
    assert (answer.status_code, answer.json()["processed"], answer.json()["run_id"]) == (200, 1, run_id)
    assert answer.json()["state"] == "COMPLETED"
    assert admin.post("/api/v1/scheduler/process-queue").json() == {"processed": 0}


def test_due_schedules_are_triggered_once(api, acme, admin):
    body = {"provider": "GCP", "domain": "COST", "pipeline_template": "cost_billing", "schedule_cron": "* * * * *"}
    config = acme.post(f"/api/v1/scheduler/customer/{acme.id}/pipelines", json=body).json()
    assert len(config["next_slots"]) == 5
    assert config["next_slots"][0]["utc"] == config["next_run_time"]
    with api.service.datastore.reading() as cursor:  # the slot came while nobody looked
        cursor.execute(
            "UPDATE customer_pipeline_configs SET next_run_time = next_run_time - interval '2 minutes'"
            " WHERE config_id = %s",
            (config["config_id"],),
        )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: admin.post("/api/v1/scheduler/trigger").json(), range(8)))
    assert sum(answer["queued_count"] for answer in answers) == 1
    assert all(set(answer) == {"triggered_count", "queued_count", "skipped_count"} for answer in answers)
    runs = acme.get(f"{acme.url}/pipelines").json()["items"]
    assert [(run["config_id"], run["trigger_type"], run["state"]) for run in runs] == [
        (config["config_id"], "scheduled", "PENDING")
    ]
