"""The published walk through the API, command by command, on a real BigQuery emulator with a worker beside it."""

from datetime import UTC, datetime

import httpx
import pytest
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from adapters.bigquery.client import NotThere, plain_errors, run
from adapters.process import Part, Shutdown
from adapters.projector import run_projector
from tests.http.running import ADMIN, database, running

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(postgres_server, migrated_template, bigquery_emulator, tmp_path_factory):
    """A server with a worker and a projector, as `serve` runs them."""
    directory = tmp_path_factory.mktemp("guide")
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(
            dsn, directory, bigquery_emulator_host=bigquery_emulator, customers_dataset_id="guide_customers"
        ) as server,
        server.worker(),
    ):
        projector = Part("projector", lambda stop: run_projector(server.service, stop))
        projector.start(Shutdown())
        yield server
        projector.stop()
        assert projector.join(60)


def onboard(api, customer_id, **fields):
    body = {
        "customer_id": customer_id,
        "company_name": "Test Corp",
        "admin_email": "test@example.com",
        "subscription_plan": "PROFESSIONAL",
        **fields,
    }
    return api.client().post("/api/v1/customers/onboard", json=body)


@pytest.fixture(scope="module")
def customer(api) -> httpx.Client:
    """The walk's customer, `test_customer`."""
    answer = onboard(api, "test_customer")
    assert answer.status_code == 200, answer.text
    return api.client({"X-API-Key": answer.json()["api_key"], **JSON})


def rows(api, sql, expected=bool):
    """What BigQuery holds, once the projector has written what is expected."""

    def look():
        try:
            with plain_errors():
                return [dict(row) for row in run(api.service.bigquery, sql).result()]
        except NotThere:  # the central dataset is made by the projector
            return []

    patiently = Retrying(
        retry=retry_if_result(lambda found: not expected(found)),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(60),
        retry_error_callback=lambda state: state.outcome.result(),
    )
    return patiently(look)


def test_1_onboarding(api):
    body = onboard(api, "acme_corp", company_name="ACME Corporation", admin_email="admin@acmecorp.com").json()
    assert body == {
        "customer_id": "acme_corp",
        "tenant_id": "acme_corp",
        "api_key": body["api_key"],
        "subscription_plan": "PROFESSIONAL",
        "dataset_created": True,
        "tables_created": ["x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"],
        "dryrun_status": "SUCCESS",
        "message": "Customer ACME Corporation onboarded successfully.",
    }
    found = rows(
        api,
        "SELECT customer_id, company_name, subscription_plan, status"
        " FROM `gac-prod-471220.guide_customers.customer_profiles` WHERE customer_id = 'acme_corp'",
    )
    assert found == [
        {
            "customer_id": "acme_corp",
            "company_name": "ACME Corporation",
            "subscription_plan": "PROFESSIONAL",
            "status": "ACTIVE",
        }
    ]


def test_1_onboarding_again_gives_a_new_key(api, customer):
    again = customer.post(
        "/api/v1/customers/onboard",
        json={"customer_id": "test_customer", "company_name": "Test Corp", "admin_email": "test@example.com"},
    ).json()
    assert again["dataset_created"] is True
    assert again["dryrun_status"] == "SUCCESS"
    assert api.client().get("/api/v1/customers/test_customer", headers={"X-API-Key": again["api_key"]}).is_success


def test_2_credentials(customer):
    answer = customer.post(
        "/api/v1/customers/test_customer/credentials",
        json={
            "provider": "GCP",
            "credential_type": "SERVICE_ACCOUNT",
            "credential_name": "GCP Billing",
            "credentials": {
                "type": "service_account",
                "project_id": "acme-gcp-project",
                "private_key_id": "...",
                "private_key": "...",
                "client_email": "...",
            },
            "project_id": "test-gcp-project",
        },
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["credential_id"]


def test_2_provider_configuration(customer):
    answer = customer.post(
        "/api/v1/customers/test_customer/provider-configs",
        json={
            "provider": "GCP",
            "domain": "COST",
            "source_project_id": "acme-gcp-project",
            "source_dataset": "billing_export",
            "notification_emails": ["ops@acmecorp.com"],
        },
    )
    assert answer.status_code == 200, answer.text


def test_3_schedule(customer):
    answer = customer.post(
        "/api/v1/scheduler/customer/test_customer/pipelines",
        json={
            "provider": "GCP",
            "domain": "COST",
            "pipeline_template": "cost_billing",
            "schedule_cron": "0 2 * * *",
            "timezone": "UTC",
            "is_active": True,
        },
    )
    assert answer.status_code == 200, answer.text
    slot = datetime.fromisoformat(answer.json()["next_run_time"])
    assert answer.json()["config_id"]
    assert (slot.hour, slot.minute) == (2, 0)
    assert slot > datetime.now(UTC)


def test_4_trigger(api):
    answer = api.client().post("/api/v1/scheduler/trigger", headers=ADMIN)
    assert answer.status_code == 200
    assert isinstance(answer.json()["triggered_count"], int)
    assert isinstance(answer.json()["queued_count"], int)


def test_5_process_queue(api):
    answer = api.client().post("/api/v1/scheduler/process-queue", headers=ADMIN)
    assert answer.status_code == 200
    assert answer.json()["processed"] in {0, 1}


def test_6_quota(api):
    key = onboard(api, "quota_customer").json()["api_key"]
    client = api.client({"X-API-Key": key, **JSON})
    limits = {"max_pipelines_per_day": 1, "reason": "test"}
    assert api.client().patch("/api/v1/admin/customers/quota_customer/limits", headers=ADMIN, json=limits).is_success
    path = "/api/v1/pipelines/run/quota_customer/gcp/example/dryrun"
    first, second = (client.post(path, json={"date": "2025-11-17", "trigger_by": "manual"}) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.json()["state"] == "COMPLETED"
    steps = {step["step_type"]: step["status"] for step in first.json()["steps"]}
    assert steps["bigquery_query"] == steps["data_quality"] == "COMPLETED"
    assert first.json()["dq_results"][0]["overall_status"] == "PASS"
    assert second.status_code == 429
    assert second.json()["detail"] == "Daily pipeline quota exceeded. Used 1/1 pipelines today."
    usage = client.get("/api/v1/customers/quota_customer/usage").json()
    assert (usage["pipelines_run_today"], usage["pipelines_succeeded_today"], usage["daily_remaining"]) == (1, 1, 0)
    found = rows(
        api,
        "SELECT pipeline_id, status, start_time FROM `gac-prod-471220.quota_customer.x_meta_pipeline_runs`"
        f" WHERE pipeline_logging_id = '{first.json()['run_id']}' ORDER BY start_time DESC LIMIT 1",
        lambda found: found and found[0]["status"] == "COMPLETED",
    )
    assert (found[0]["pipeline_id"], found[0]["status"]) == ("gcp-example-dryrun", "COMPLETED")


def test_history_and_usage(customer):
    customer.post(
        "/api/v1/pipelines/run/test_customer/gcp/example/dryrun", json={"date": "2025-11-17", "trigger_by": "scheduler"}
    )
    runs = customer.get("/api/v1/customers/test_customer/pipelines").json()["items"]
    assert {run["pipeline_template"] for run in runs} >= {"dryrun"}
    assert runs[0]["trigger_by"] == "scheduler"
    assert customer.get("/api/v1/customers/test_customer/usage").json()["daily_limit"] == 25
