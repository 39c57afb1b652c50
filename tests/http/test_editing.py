"""Changes to a customer, its subscription and its schedules; If-Match keeps two editors apart."""

import threading
from concurrent.futures import ThreadPoolExecutor


def test_a_contact_is_changed(acme):
    before = acme.get(acme.url)
    after = acme.patch(acme.url, json={"company_name": "ACME Ltd."})
    assert (after.status_code, after.json()["company_name"]) == (200, "ACME Ltd.")
    assert after.json()["admin_email"] == before.json()["admin_email"]
    assert after.headers["ETag"] != before.headers["ETag"]
    assert acme.get(acme.url).headers["ETag"] == after.headers["ETag"]


def test_if_match(acme):
    seen = acme.get(acme.url).headers["ETag"]
    assert acme.patch(acme.url, json={"company_name": "A"}, headers={"If-Match": seen}).status_code == 200
    late = acme.patch(acme.url, json={"company_name": "B"}, headers={"If-Match": seen})
    assert late.status_code == 412
    assert late.json()["customer_id"] == acme.id
    now = acme.get(acme.url)
    assert now.json()["company_name"] == "A"
    for fitting in (f'"x", {now.headers["ETag"]}', "*"):
        assert acme.patch(acme.url, json={"company_name": "A"}, headers={"If-Match": fitting}).status_code == 200
    for other in (f"W/{now.headers['ETag']}", "x", "", '""', b"\xe9"):
        assert acme.patch(acme.url, json={"company_name": "B"}, headers={"If-Match": other}).status_code == 412


def test_of_sixteen_editors_one_wins(acme):
    seen, start = acme.get(acme.url).headers["ETag"], threading.Barrier(16)

    def one(number):
        start.wait()
        return acme.patch(acme.url, json={"company_name": f"Editor {number}"}, headers={"If-Match": seen}).status_code

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(one, range(16))) == [200] + [412] * 15


def test_the_plan_and_its_limits(acme, admin):
    url = f"/api/v1/admin/customers/{acme.id}"
    seen = acme.get(acme.url).headers["ETag"]
    assert admin.put(f"{url}/plan", json={"plan": "SCALE"}).status_code == 422
    changed = admin.put(f"{url}/plan", json={"plan": "SCALE", "reason": "More."}, headers={"If-Match": seen})
    assert changed.json()["subscription_plan"] == "SCALE"
    assert changed.json()["subscription"]["max_pipelines_per_day"] == 100
    stale = admin.patch(f"{url}/limits", json={"max_providers": 1, "reason": "x"}, headers={"If-Match": seen})
    assert stale.status_code == 412
    fresh = {"If-Match": changed.headers["ETag"]}
    limited = admin.patch(f"{url}/limits", json={"max_providers": 1, "reason": "x"}, headers=fresh).json()
    assert limited["subscription"]["max_providers"] == 1
    assert limited["subscription"]["max_pipelines_per_day"] == 100
    back = admin.patch(f"{url}/limits", json={"max_providers": None, "reason": "x"}).json()
    assert back["subscription"]["max_providers"] == 10
    for wrong in ({"max_providers": -1}, {"max_providers": 1_000_001}, {"max_providers": "x"}, {"other": 1}):
        assert admin.patch(f"{url}/limits", json={**wrong, "reason": "x"}).status_code == 422


def test_runs_do_not_change_the_tag(acme):
    seen = acme.get(acme.url).headers["ETag"]
    acme.run()
    assert acme.get(acme.url).headers["ETag"] == seen


def test_usage_is_reset_and_recounted(acme, admin):
    url = f"/api/v1/admin/customers/{acme.id}/usage"
    acme.run()
    month = admin.post(f"{url}/reset", json={"daily": False, "monthly": True, "reason": "test"}).json()
    assert (month["pipelines_run_today"], month["pipelines_run_month"]) == (1, 0)
    day = admin.post(f"{url}/reset", json={"reason": "test"}).json()
    assert (day["pipelines_run_today"], day["pipelines_run_month"]) == (0, 0)
    assert admin.post(f"{url}/recount", json={"reason": "test"}).json()["concurrent_pipelines_running"] == 0
    assert admin.post(f"{url}/recount", json={}).status_code == 422


def test_a_schedule_is_changed_and_removed(acme):
    url = f"/api/v1/scheduler/customer/{acme.id}/pipelines"
    body = {"provider": "gcp", "domain": "cost", "pipeline_template": "COST_BILLING", "schedule_cron": "0 2 * * *"}
    made = acme.post(url, json={**body, "timezone": "America/New_York"}).json()
    assert (made["provider"], made["domain"], made["pipeline_template"]) == ("GCP", "COST", "cost_billing")
    assert [slot["local"][11:19] for slot in made["next_slots"]] == ["02:00:00"] * 5
    resting = acme.patch(f"{url}/{made['config_id']}", json={"is_active": False}).json()
    assert (resting["is_active"], resting["next_run_time"], resting["next_slots"]) == (False, None, [])
    moved = acme.patch(f"{url}/{made['config_id']}", json={"is_active": True, "schedule_cron": "@hourly"}).json()
    assert moved["schedule_cron"] == "@hourly"
    assert moved["timezone"] == "America/New_York"
    assert acme.patch(f"{url}/{made['config_id']}", json={"timezone": "Nowhere"}).status_code == 422
    assert acme.delete(f"{url}/{made['config_id']}").status_code == 204
    assert acme.patch(f"{url}/{made['config_id']}", json={"is_active": True}).status_code == 404
    assert acme.get(url).json()["items"] == []


def test_a_credential_never_comes_back(acme):
    body = {
        "provider": "GCP",
        "credential_type": "SERVICE_ACCOUNT",
        "credential_name": "GCP Billing Reader",
        "credentials": {
            "type": "service_account",
            "project_id": "acme-gcp-project",
            "private_key_id": "...",
            "private_key": "hunter2-canary",
            "client_email": "...",
        },
        "project_id": "acme-gcp-project",
    }
    made = acme.post(f"{acme.url}/credentials", json=body)
    assert made.status_code == 200
    assert "credentials" not in made.json()
    for answer in (made, acme.get(f"{acme.url}/credentials"), acme.get(acme.url)):
        assert "hunter2" not in answer.text
