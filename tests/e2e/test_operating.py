"""An operator looks at a `convergence serve` from another terminal, with no setting but its data directory."""

import json
import shlex
import signal
import subprocess
from uuid import uuid4

import httpx

from tests.e2e.conftest import CONVERGENCE

ROLES = {"api": 1, "scheduler": 1, "worker": 1, "projector": 1}
ADMIN = {"X-Admin-Key": "admin_key_12345"}
DAYS = ("--from", "2025-11-01", "--to", "2025-11-10")


def test_every_part_is_seen_to_live_and_one_that_was_killed_to_be_gone(fresh):
    fresh.start()
    before = fresh.json("status")
    [process] = before["processes"]
    assert (before["alive"], before["problems"]) == (ROLES, [])
    assert process["pid"] == fresh.process.pid
    assert fresh.stop(signal.SIGTERM) == 0

    fresh.start()
    assert [process["pid"] for process in fresh.json("status")["processes"]] == [fresh.process.pid]
    assert fresh.run("runs").returncode == 0
    fresh.process.kill()
    fresh.process.wait(10)
    done = fresh.run("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "convergence serve" in done.stderr


def test_ten_days_on_a_plan_of_six_a_day(serve):
    """What finds no room is said with the command that goes on, which is pasted once there is room."""
    customer_id = f"small_{uuid4().hex[:8]}"
    key = post(
        serve,
        "customers/onboard",
        {},
        customer_id=customer_id,
        company_name="Small",
        admin_email="admin@small.example",
        subscription_plan="STARTER",
    )["api_key"]
    config_id = post(
        serve,
        f"scheduler/customer/{customer_id}/pipelines",
        {"X-API-Key": key},
        provider="GCP",
        domain="EXAMPLE",
        pipeline_template="dryrun",
        schedule_cron="0 2 * * *",
        timezone="America/New_York",
    )["config_id"]
    with subprocess.Popen(
        [CONVERGENCE, "runs", "--follow", "--json", "--customer", customer_id],
        env=serve.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        try:
            fill_in(serve, customer_id, config_id)
            filled_in = days_completed(watching, 10)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
        finally:
            watching.kill()
    assert filled_in == {f"2025-11-{day:02}" for day in range(1, 11)}
    assert serve.json("status")["problems"] == []


def fill_in(serve, customer_id: str, config_id: str) -> None:
    first = serve.run("backfill", customer_id, config_id, *DAYS, "--reason", "Late invoices.")
    assert first.returncode == 0, first.stderr
    assert "6 days queued" in first.stdout
    assert "4 days found no room" in first.stdout
    program, *go_on = shlex.split(first.stdout.split("go on with:")[1])
    assert program == "convergence"

    again = serve.run(*go_on)
    assert (again.returncode, again.stdout) == (1, "")
    assert "quota" in again.stderr
    limits = {"max_pipelines_per_day": 10, "reason": "A back-fill."}
    answer = httpx.patch(f"{serve.url}/api/v1/admin/customers/{customer_id}/limits", headers=ADMIN, json=limits)
    assert answer.status_code == 200, answer.text
    rest = serve.run(*go_on, "--follow")
    assert rest.returncode == 0, rest.stderr
    assert "10 completed" in rest.stdout


def days_completed(watching: "subprocess.Popen[str]", count: int) -> set[str]:
    """The days whose back-fill is seen to complete, once there are so many."""
    days: set[str] = set()
    while len(days) < count:
        change = json.loads(watching.stdout.readline())
        if change["trigger_type"] == "backfill" and change["state"] == "COMPLETED":
            days.add(change["run_date"])
    return days


def post(serve, path: str, headers: dict[str, str], **body: object) -> dict[str, str]:
    answer = httpx.post(f"{serve.url}/api/v1/{path}", headers=headers, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()
