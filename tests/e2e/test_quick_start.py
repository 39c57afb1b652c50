"""The quick start, on a real server process: HTTP from outside, SQL through the command line."""

import os
import re
from uuid import uuid4

import httpx
import psutil
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

PROJECT = "gac-prod-471220"
ADMIN = {"X-Admin-Key": "admin_key_12345"}
IDLE_MB = 700
READY_S = 10


@pytest.fixture(scope="module")
def customer(serve) -> dict[str, str]:
    """A customer that was onboarded as the guide says; its id and key."""
    customer_id = f"demo_{uuid4().hex[:8]}"
    answer = httpx.post(
        f"{serve.url}/api/v1/customers/onboard",
        json={
            "customer_id": customer_id,
            "company_name": "Demo Corp",
            "admin_email": "test@demo.com",
            "subscription_plan": "PROFESSIONAL",
        },
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def eventually(look):
    """What `look` returns once it raises no AssertionError any more: BigQuery follows the log a moment behind."""
    retrying = Retrying(
        retry=retry_if_exception_type(AssertionError), wait=wait_fixed(0.2), stop=stop_after_delay(30), reraise=True
    )
    return retrying(look)


def run_dryrun(serve, customer) -> httpx.Response:
    return httpx.post(
        f"{serve.url}/api/v1/pipelines/run/{customer['customer_id']}/gcp/example/dryrun",
        headers={"X-API-Key": customer["api_key"]},
        json={"date": "2025-11-17", "trigger_by": "manual"},
        timeout=30,
    )


def test_onboarding_answers_as_the_guide_says(customer):
    assert re.fullmatch(rf"{customer['customer_id']}_api_[A-Za-z0-9]{{16}}", customer["api_key"])
    assert customer["tenant_id"] == customer["customer_id"]
    assert customer["subscription_plan"] == "PROFESSIONAL"
    assert customer["dataset_created"] is True
    assert customer["tables_created"] == ["x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"]
    assert customer["dryrun_status"] == "SUCCESS"


def test_a_run_shows_up_in_bigquery(serve, customer):
    answer = run_dryrun(serve, customer)
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["run_id"]
    sql = f"""SELECT pipeline_id, status, start_time, pipeline_logging_id
   FROM `{PROJECT}.{customer["customer_id"]}.x_meta_pipeline_runs`
   ORDER BY start_time DESC LIMIT 1"""

    # Asked at once: the command lets BigQuery catch up first.
    [row] = serve.json("query", "--use_legacy_sql=false", "--wait", "60", sql)
    assert row["pipeline_logging_id"] == run_id
    assert row["status"] == "COMPLETED"
    assert row["pipeline_id"] == "gcp-example-dryrun"


def test_the_profile_is_one_active_row(serve, customer):
    sql = f"""SELECT customer_id, company_name, subscription_plan, status
   FROM `{PROJECT}.customers_metadata.customer_profiles`
   WHERE customer_id = '{customer["customer_id"]}'"""

    def look():
        assert serve.json("query", sql) == [
            {
                "customer_id": customer["customer_id"],
                "company_name": "Demo Corp",
                "subscription_plan": "PROFESSIONAL",
                "status": "ACTIVE",
            }
        ]

    eventually(look)


def test_an_update_says_how_many_rows_and_that_it_does_not_last(serve, customer):
    eventually(lambda: _profile_is_there(serve, customer))
    done = serve.run(
        "query",
        "--use_legacy_sql=false",
        f"""UPDATE `{PROJECT}.customers_metadata.customer_subscriptions`
   SET max_pipelines_per_day = 1
   WHERE customer_id = (
     SELECT customer_id FROM `{PROJECT}.customers_metadata.customer_profiles`
     WHERE tenant_dataset_id = '{customer["customer_id"]}'
   )""",
    )
    assert done.returncode == 0, done.stderr
    assert "1 row affected" in done.stdout
    assert "/limits" in done.stderr
    # The service decides by the log: the copy in BigQuery has no say.
    assert run_dryrun(serve, customer).status_code == 200


def _profile_is_there(serve, customer):
    table = "customers_metadata.customer_subscriptions"
    sql = f"SELECT 1 AS one FROM {table} WHERE customer_id = '{customer['customer_id']}'"
    assert serve.json("query", sql) == [{"one": 1}]


def test_the_quota_refuses_with_429(serve, customer):
    usage = httpx.get(
        f"{serve.url}/api/v1/customers/{customer['customer_id']}/usage", headers={"X-API-Key": customer["api_key"]}
    ).json()
    lowered = httpx.patch(
        f"{serve.url}/api/v1/admin/customers/{customer['customer_id']}/limits",
        headers=ADMIN,
        json={"max_pipelines_per_day": usage["pipelines_run_today"] + 1, "reason": "testing"},
    )
    assert lowered.status_code == 200, lowered.text
    assert run_dryrun(serve, customer).status_code == 200
    refused = run_dryrun(serve, customer)
    assert refused.status_code == 429
    assert refused.json()["detail"].startswith("Daily pipeline quota exceeded.")


def test_doctor_finds_a_running_server_well(serve, customer):
    findings = serve.json("doctor")
    assert {f["check"] for f in findings} > {"settings", "PostgreSQL", "schema", "BigQuery", "wrapping keys", "API"}
    assert [f for f in findings if f["result"] == "fail"] == []


def test_other_commands_find_the_running_server(serve):
    assert serve.json("migrate") == {"applied": []}


def test_the_address_file_is_the_owners_alone(serve):
    assert (serve.data_dir / "serve.json").stat().st_mode & 0o077 == 0


def test_no_secret_is_in_the_log(serve, customer):
    log = serve.log.read_text()
    assert customer["api_key"] not in log
    assert "require_auth" not in log


def test_it_is_ready_soon(serve):
    """In the time it takes on a machine with nothing else to do; in its share of one that is busy."""
    busy = max(1.0, max(os.getloadavg()) / (os.cpu_count() or 1))
    assert serve.ready_after_s < READY_S * busy


def test_it_is_small(serve):
    """Proportional set size: memory shared between processes counts once."""
    total = sum(process.memory_full_info().pss for process in serve.family) / 2**20
    names = {process.pid: " ".join(process.cmdline())[:80] for process in serve.family}
    assert total < IDLE_MB, names
    assert all(psutil.pid_exists(pid) for pid in names)
