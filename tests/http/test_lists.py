"""Lists, page by page: nothing twice, nothing left out, also while rows are added."""

from datetime import UTC, datetime, timedelta

import pytest


def walk(client, url, limit, between=lambda: None, **parameters):
    """Every item, and the sizes of the pages."""
    items, sizes, cursor = [], [], None
    while True:
        asked = {"limit": limit, **parameters} | ({"cursor": cursor} if cursor else {})
        page = client.get(url, params=asked)
        assert page.status_code == 200, page.text
        assert set(page.json()) == {"items", "next_cursor"}
        items += page.json()["items"]
        sizes.append(len(page.json()["items"]))
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return items, sizes
        between()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 200])
def test_runs_page_by_page(acme, limit):
    made = [acme.run().json()["run_id"] for _ in range(7)]
    items, sizes = walk(acme, f"{acme.url}/pipelines", limit)
    assert [run["run_id"] for run in items] == made[::-1]
    assert all(size == limit for size in sizes[:-1])
    assert 1 <= sizes[-1] <= limit


def test_rows_that_are_added_meanwhile_do_not_shift_the_pages(acme):
    made = [acme.run().json()["run_id"] for _ in range(5)]
    items, _ = walk(acme, f"{acme.url}/pipelines", 2, between=acme.run)
    assert [run["run_id"] for run in items] == made[::-1]


def test_runs_are_filtered(acme):
    first = acme.run().json()
    acme.post(f"/api/v1/pipelines/runs/{first['run_id']}/cancel")
    second = acme.run("gcp/cost/cost_billing").json()

    def found(**parameters):
        return [run["run_id"] for run in walk(acme, f"{acme.url}/pipelines", 50, **parameters)[0]]

    assert found(state="CANCELLED") == [first["run_id"]]
    assert found(template="COST_BILLING") == [second["run_id"]]
    assert found(template="dryrun", state="PENDING") == []
    assert found(**{"from": second["created_at"]}) == [second["run_id"]]
    assert found(to=second["created_at"]) == [first["run_id"]]
    today = datetime.now(UTC).date()
    assert len(found(**{"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=2))})) == 2
    assert found(**{"from": str(today + timedelta(days=2))}) == []


def test_a_run_in_a_list(acme):
    acme.run()
    run = acme.get(f"{acme.url}/pipelines").json()["items"][0]
    columns = "run_id config_id customer_id provider domain pipeline_template trigger_type state scheduled_time"
    columns += " actual_start_time actual_end_time attempt worker_id error_message created_at updated_at"
    assert set(columns.split()) <= set(run)
    assert run["pipeline_id"] == "gcp-example-dryrun"


@pytest.mark.parametrize("noun", ["provider-configs", "team-members", "credentials"])
def test_nouns_page_by_page_without_what_was_removed(acme, noun):
    bodies = {
        "provider-configs": [
            {"provider": "GCP", "domain": f"COST{i}", "source_project_id": "acme-gcp", "source_dataset": "d"}
            for i in range(5)
        ],
        "team-members": [{"email": f"p{i}@acmecorp.com", "name": f"P {i}"} for i in range(5)],
        "credentials": [
            {"provider": "AWS", "credential_type": "ACCESS_KEY", "credential_name": f"n{i}", "credentials": {"k": "v"}}
            for i in range(5)
        ],
    }[noun]
    key = {"provider-configs": "config_id", "team-members": "member_id", "credentials": "credential_id"}[noun]
    url = f"{acme.url}/{noun}"
    made = [acme.post(url, json=body).json()[key] for body in bodies]
    assert acme.delete(f"{url}/{made[2]}").status_code == 204
    assert acme.delete(f"{url}/{made[2]}").status_code == 404
    items, _ = walk(acme, url, 2)
    assert [item[key] for item in items] == [made[4], made[3], made[1], made[0]]
    assert all(item["customer_id"] == acme.id for item in items)


def test_what_the_plan_allows(acme):
    for provider in ("GCP", "AWS", "AZURE", "OCI", "OPENAI", "ANTHROPIC"):
        body = {"provider": provider, "credential_type": "KEY", "credential_name": "n", "credentials": {"k": "v"}}
        assert acme.post(f"{acme.url}/credentials", json=body).status_code == 200
    people = [
        acme.post(f"{acme.url}/team-members", json={"email": f"p{i}@acmecorp.com", "name": "P"}) for i in range(7)
    ]
    assert [answer.status_code for answer in people] == [200] * 6 + [403]
    assert "6 team members" in people[-1].json()["detail"]


def test_the_plan_limits_providers(api):
    starter = api.onboard(plan="STARTER")
    answers = []
    for provider in ("GCP", "AWS", "AZURE", "OCI"):
        body = {"provider": provider, "credential_type": "KEY", "credential_name": "n", "credentials": {"k": "v"}}
        answers.append(starter.post(f"{starter.url}/credentials", json=body))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 403]
    assert "3 providers" in answers[-1].json()["detail"]


def test_customers_page_by_page(api, admin):
    made = [api.onboard().id for _ in range(5)]
    items, _ = walk(admin, "/api/v1/admin/customers", 2)
    assert [item["customer_id"] for item in items][:5] == made[::-1]
    admin.post(f"/api/v1/admin/customers/{made[0]}/suspend", json={"reason": "test"})
    suspended, _ = walk(admin, "/api/v1/admin/customers", 2, status="SUSPENDED")
    assert [item["customer_id"] for item in suspended] == [made[0]]


def test_templates_page_by_page(acme):
    items, sizes = walk(acme, "/api/v1/pipelines/templates", 1)
    assert [item["id"] for item in items] == ["gcp-cost-cost_billing", "gcp-example-dryrun"]
    assert sizes == [1, 1]


def test_usage_day_by_day(api, acme):
    for days in range(4):
        with api.clock.moved(days=days):
            acme.run()
    items, _ = walk(acme, f"{acme.url}/usage/history", 2)
    today = datetime.now(UTC).date()
    assert [item["usage_date"] for item in items] == [str(today + timedelta(days=d)) for d in (3, 2, 1, 0)]
    assert [item["pipelines_run_today"] for item in items] == [1, 1, 1, 1]
    with api.clock.moved(days=3):
        assert acme.get(f"{acme.url}/usage").json()["usage_date"] == str(today + timedelta(days=3))


def test_a_cursor_of_another_list(acme):
    for _ in range(2):
        acme.run()
    cursor = acme.get(f"{acme.url}/pipelines", params={"limit": 1}).json()["next_cursor"]
    assert acme.get(f"{acme.url}/usage/history", params={"cursor": cursor}).status_code == 422
    assert acme.get("/api/v1/pipelines/templates", params={"cursor": cursor}).status_code == 422
