"""The demo, end to end: on a server of its own, and on one that runs."""

import json
import re

CHAPTERS = 10


def steps(story) -> list[str]:
    return [f"{step['name']}: {step['detail']}" for step in story["steps"] if not step["ok"]]


def test_on_a_server_that_runs(serve):
    done = serve.run("demo", "--json", "--days", "3")
    story = json.loads(done.stdout)
    assert steps(story) == []
    assert done.returncode == 0
    assert story["url"] == serve.url
    assert len(story["steps"]) == CHAPTERS
    assert len(story["tables"]["Runs"]) == 3
    assert all(run["status"] == "COMPLETED" and run["rows_processed"] > 0 for run in story["tables"]["Runs"])
    assert story["tables"]["Usage"][0]["pipelines_run_today"] == 3
    assert len(story["tables"]["Cost per service"]) > 1
    # What it made can be looked at afterwards.
    sql = f"SELECT COUNT(*) AS charges FROM `{story['project']}.{story['customer_id']}.gcp_silver_cost`"
    charges = sum(service["charges"] for service in story["tables"]["Cost per service"])
    assert serve.json("query", sql)[0]["charges"] >= charges > 0


def test_on_a_server_of_its_own(fresh):
    done = fresh.run("demo", "--days", "2", GCP_PROJECT_ID="", DATABASE_URL="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Cost per service" in done.stdout
    assert "quota exceeded" in done.stdout
    assert not fresh.data_dir.exists()
    assert not re.search(r"_api_[A-Za-z0-9]{16}", done.stdout + done.stderr)


def test_a_server_with_another_admin_key_fails_the_demo(serve):
    done = serve.run("demo", "--json", "--days", "1", ADMIN_API_KEY="not the server's")
    assert done.returncode == 1
    story = json.loads(done.stdout)
    assert story["ok"] is False
    assert len(steps(story)) == 1
    assert "401 instead of 200" in steps(story)[0]


def test_a_server_that_is_not_there_is_said(fresh):
    done = fresh.run("demo", "--url", fresh.url, BIGQUERY_EMULATOR_HOST=f"127.0.0.1:{fresh.emulator_port}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert fresh.url in done.stderr.splitlines()[-1]
