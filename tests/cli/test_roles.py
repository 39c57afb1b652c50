"""The roles as processes of their own, on a database that was migrated by the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from adapters.embedded.child import free_port

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


@pytest.fixture
def environment(tmp_path, database_url) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "DATA_DIR": str(tmp_path / "var"),
        "DATABASE_URL": database_url,
        "PORT": str(free_port()),
        "BIGQUERY_EMULATOR_HOST": "127.0.0.1:1",  # away: a role starts without it
    }


@pytest.fixture
def migrated(environment) -> dict[str, str]:
    done = run(environment, "migrate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["applied"]
    return environment


def run(environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CONVERGENCE, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def started(migrated):
    """Starts a role, and returns once it says that it runs."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [CONVERGENCE, *arguments, "--json"],
            env=migrated,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        said = process.stdout.readline()
        assert said, process.stderr.read()
        assert json.loads(said)["ready"]
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_migrating_twice_applies_nothing(migrated):
    done = run(migrated, "migrate", "--json")
    assert json.loads(done.stdout) == {"applied": []}
    assert "current" in run(migrated, "migrate").stdout


@pytest.mark.parametrize("command", ["api", "scheduler", "worker", "projector"])
def test_a_role_refuses_a_database_that_is_not_migrated(environment, command):
    done = run(environment, command)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("run `convergence migrate` first.")


@pytest.mark.parametrize("command", ["api", "scheduler", "worker", "projector"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_role_stops_in_order(started, command, number):
    process = started(command)
    process.send_signal(number)
    _, log = process.communicate(timeout=25)
    assert process.returncode == 0, log


def test_the_api_answers(started, migrated):
    started("api")
    assert httpx.get(f"http://127.0.0.1:{migrated['PORT']}/livez").status_code == 200


def test_a_worker_has_the_name_it_was_given(started, migrated):
    process = started("worker", "--id", "worker-7", "--concurrency", "2")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=25)
    assert process.returncode == 0
    assert all(json.loads(line)["severity"] for line in log.splitlines())


def test_doctor_says_that_a_schema_is_not_current(environment, migrated):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("DELETE FROM schema_migrations")
    done = run(migrated, "doctor", "--json")
    assert done.returncode == 1
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert findings["schema"]["result"] == "fail"
    assert "convergence migrate" in findings["schema"]["remedy"]


def test_doctor_says_that_commits_do_not_last(environment, migrated):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
    done = run(migrated, "doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert findings["durability"]["result"] == "fail"
    assert "synchronous_commit" in findings["durability"]["detail"]
