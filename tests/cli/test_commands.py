"""The command line without a server: help, exit statuses, and one sentence for what an operator can mend."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.embedded.child import free_port

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))
COMMANDS = (
    "serve",
    "api",
    "scheduler",
    "worker",
    "projector",
    "status",
    "runs",
    "events",
    "replay",
    "migrate",
    "query",
    "doctor",
    "demo",
)


def convergence(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CONVERGENCE, *arguments],
        env={"PATH": os.defpath, "COLUMNS": "100", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on standard error of a command that ended with that status."""
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def place(tmp_path) -> dict[str, str]:
    """Settings of a place where nothing runs."""
    return {
        "DATA_DIR": str(tmp_path / "var"),
        "PORT": str(free_port()),
        "BIGQUERY_EMULATOR_PORT": str(free_port()),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = convergence(command, "--help")
    assert done.returncode == 0
    assert f"convergence {command}" in done.stdout.split("Example:")[1]
    assert "--json" in done.stdout


def test_help_names_every_command():
    done = convergence("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_help_loads_no_heavy_module():
    code = (
        "import sys; sys.argv = ['convergence', 'query', '--help']\n"
        "from adapters.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'google', 'fastapi', 'uvicorn', 'psycopg', 'duckdb', 'eventsourcing'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("command", ["serve", "api", "worker", "migrate", "query", "demo"])
def test_a_wrong_setting_is_named_and_not_shown(command, place):
    arguments = [command, "SELECT 1"] if command == "query" else [command]
    said = sentence(convergence(*arguments, **{**place, "PORT": "never-a-port"}), 2)
    assert said.startswith("Wrong setting: PORT")
    assert "never-a-port" not in said


def test_a_wrong_option_of_a_worker_is_named_like_its_setting(place):
    assert "WORKER_CONCURRENCY" in sentence(convergence("worker", "--concurrency", "0", **place), 2)


def test_production_is_refused_with_a_laptops_settings(place):
    said = sentence(convergence("api", ENVIRONMENT="production", **place), 2)
    assert "ADMIN_API_KEY" in said
    assert "DATABASE_URL" in said


@pytest.mark.parametrize("command", ["api", "scheduler", "worker", "projector", "migrate"])
def test_without_a_database_a_role_says_where_to_get_one(command, place):
    assert "convergence serve" in sentence(convergence(command, **place), 1)


def test_a_wrong_address_of_the_database_is_not_quoted(place):
    said = sentence(convergence("migrate", DATABASE_URL="postgresql//app:hunter2@nowhere", **place), 1)
    assert "DATABASE_URL" in said
    assert "hunter2" not in said


def test_an_api_whose_port_is_taken_says_so(place):
    with socket.create_server(("127.0.0.1", int(place["PORT"]))):
        said = sentence(convergence("api", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", **place), 1)
    assert said == f"Port {place['PORT']} is in use by another program: set PORT to a free one."


def test_an_address_that_is_not_ours_is_said(place):
    assert "HOST" in sentence(
        convergence("api", HOST="192.0.2.1", DATABASE_URL="postgresql://x@127.0.0.1:1/x", **place), 1
    )


def test_a_query_without_a_bigquery_says_what_to_start(place):
    assert "convergence serve" in sentence(convergence("query", "SELECT 1", **place), 1)


def test_legacy_sql_is_refused(place):
    assert "GoogleSQL" in sentence(convergence("query", "--use_legacy_sql=true", "SELECT 1", **place), 2)


def test_doctor_of_a_place_where_nothing_runs_warns(place):
    done = convergence("doctor", "--json", **place)
    assert done.returncode == 0, done.stdout
    results = {finding["check"]: finding["result"] for finding in json.loads(done.stdout)}
    assert results["PostgreSQL"] == "warn"
    assert results["settings"] == "ok"
    assert not Path(place["DATA_DIR"]).exists()


def test_doctor_fails_for_a_wrong_setting(place):
    done = convergence("doctor", "--json", **{**place, "PORT": "0"})
    assert done.returncode == 1
    [finding] = json.loads(done.stdout)
    assert finding["result"] == "fail"
    assert "PORT" in finding["detail"]


def test_doctor_fails_for_a_database_that_is_away_and_hides_its_password(place):
    url = f"postgresql://app:hunter2@127.0.0.1:{free_port()}/app"
    done = convergence("doctor", "--json", DATABASE_URL=url, **place)
    assert done.returncode == 1
    results = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert results["PostgreSQL"]["result"] == "fail"
    assert "hunter2" not in done.stdout + done.stderr


def test_doctor_fails_for_the_librarys_database_functions(place):
    done = convergence("doctor", "--json", POSTGRES_ENABLE_DB_FUNCTIONS="y", **place)
    assert done.returncode == 1
    assert {"event log settings"} == {f["check"] for f in json.loads(done.stdout) if f["result"] == "fail"}


def test_doctor_fails_for_a_directory_that_cannot_be_used(place, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = convergence("doctor", **{**place, "DATA_DIR": str(file / "var")})
    assert done.returncode == 1
    assert "DATA_DIR" in done.stdout


def test_doctor_says_that_a_mail_server_is_away(place):
    done = convergence("doctor", "--json", SMTP_URL=f"smtp://127.0.0.1:{free_port()}", **place)
    results = {finding["check"]: finding["result"] for finding in json.loads(done.stdout)}
    assert results["mail"] == "fail"
    assert done.returncode == 1


def test_a_data_directory_that_is_a_file_is_said(place, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = convergence("serve", **{**place, "DATA_DIR": str(file)})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "DATA_DIR" in done.stderr.splitlines()[-1]
