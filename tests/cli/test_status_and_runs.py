"""`convergence status` and `convergence runs`, as an operator on call uses them."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from adapters.embedded.child import free_port
from application.ports import RunReport
from tests.application.world import World, migrated, until
from tests.databases import cut_off

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


@dataclass
class Terminal:
    """A terminal of somebody who knows the database's address and no key."""

    settings: dict[str, str]
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [CONVERGENCE, *arguments], env=self.settings, capture_output=True, text=True, timeout=60, check=False
        )

    def json(self, *arguments: str, status: int = 0):
        done = self.run(*arguments, "--json")
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [CONVERGENCE, *arguments], env=self.settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def terminal(database_url, tmp_path) -> Iterator[Terminal]:
    made = Terminal(
        {
            "PATH": os.defpath,
            "COLUMNS": "100",
            "DATABASE_URL": database_url,
            "DATA_DIR": str(tmp_path / "var"),
            "BIGQUERY_EMULATOR_HOST": "127.0.0.1:1",
            "PORT": str(free_port()),
        }
    )
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


@pytest.fixture
def acme(database_url, tmp_path) -> Iterator[World]:
    """ACME, on the database's clock."""
    with World(database_url, tmp_path / "key") as world:
        world.at = datetime.now(UTC)
        world.onboard()
        yield world


def ended(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


# status


def test_status_when_all_is_well(terminal, acme):
    done = terminal.run("status")
    assert done.returncode == 0, done.stderr
    assert "0 pending" in done.stdout
    assert "All is well." in done.stdout
    assert terminal.json("status")["problems"] == []


def test_a_worker_that_is_killed_is_seen_and_what_it_held_is_told(terminal, acme):
    """Alive after the start, dead a minute after the kill; and gone after a stop in order."""
    acme.request()
    acme.claim("w2")
    worker = terminal.start("worker", "--id", "w2", "--concurrency", "4", "--json")
    assert json.loads(worker.stdout.readline())["worker_id"] == "w2"
    until(lambda: terminal.json("status")["workers"][0]["concurrency"] == 4)
    before = terminal.json("status")
    assert (before["alive"]["worker"], before["workers"][0]["runs"], before["problems"]) == (1, 1, [])
    worker.kill()
    worker.wait(10)
    acme.execute("UPDATE processes SET seen_at = seen_at - interval '61 seconds'")
    done = terminal.run("status")
    assert done.returncode == 1
    assert "is dead and holds 1 run." in done.stdout
    assert "→ No worker lives to take them over. Start one: convergence worker." in done.stdout
    assert [worker["alive"] for worker in terminal.json("status", status=1)["workers"]] == [False]

    other = terminal.start("worker", "--id", "w3", "--json")
    other.stdout.readline()
    until(lambda: terminal.json("status", status=1)["alive"]["worker"] == 1)
    code, _, log = ended(other, signal.SIGTERM)
    assert code == 0, log
    assert acme.scalar("SELECT count(*) FROM processes WHERE worker_id = 'w3'") == 0


def test_status_of_runs_that_no_worker_starts(terminal, acme):
    acme.request()
    acme.execute("UPDATE scheduled_pipeline_runs SET created_at = now() - interval '90 seconds'")
    done = terminal.run("status")
    assert done.returncode == 1
    assert "A run that could start has waited 1 min 3" in done.stdout
    assert "For a worker." in done.stdout
    assert terminal.run("status", "--max-wait", "600").returncode == 0


def test_status_of_slots_that_nobody_triggers(terminal, acme):
    acme.pipeline()
    acme.execute("UPDATE customer_pipeline_configs SET next_run_time = now() - interval '5 minutes'")
    [problem] = terminal.json("status", status=1)["problems"]
    assert problem["remedy"] == "Start a scheduler: convergence scheduler."


def test_status_is_watched_until_ctrl_c(terminal, acme):
    watch = terminal.start("status", "--watch", "--json")
    looks = [json.loads(watch.stdout.readline()) for _ in range(2)]
    assert looks[0]["now"] < looks[1]["now"]
    code, _, err = ended(watch)
    assert (code, err) == (0, "")


def test_what_is_wrong_is_on_the_screen_of_a_small_terminal(terminal, acme):
    """The tables are longer than the screen."""
    acme.request()
    acme.execute("UPDATE scheduled_pipeline_runs SET created_at = now() - interval '90 seconds'")
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        termios.tcsetwinsize(its, (10, 100))
        settings = {name: value for name, value in terminal.settings.items() if name != "COLUMNS"}
        watch = subprocess.Popen(
            [CONVERGENCE, "status", "--watch"], env={**settings, "TERM": "xterm"}, stdin=its, stdout=its, stderr=its
        )
        terminal.processes.append(watch)
        os.close(its)
        seen = b""
        # The terminal leaves its other screen at the end, where everything is printed.
        while b"Database" not in seen:
            seen += screen.read(4096)
        assert "A run that could start has waited" in seen.decode(errors="replace")
        assert "Waiting customer" not in seen.decode(errors="replace")


def test_status_is_watched_while_the_database_goes_away(terminal, acme, database_url, postgres_server):
    watch = terminal.start("status", "--watch", "--json")
    assert json.loads(watch.stdout.readline())["problems"] == []
    name = urlsplit(database_url).path[1:]
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        cut_off(connection, name)
        until(lambda: json.loads(watch.stdout.readline())["problems"], seconds=60)
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    until(lambda: json.loads(watch.stdout.readline())["problems"] == [], seconds=60)
    assert ended(watch)[0] == 0


@pytest.mark.parametrize("command", ["status", "runs"])
def test_without_a_database_one_sentence_says_so(terminal, command):
    terminal.settings["DATABASE_URL"] = f"postgresql://app:hunter2@127.0.0.1:{free_port()}/app"
    done = terminal.run(command)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("The database does not answer")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


# runs


def test_runs_are_listed_newest_first(terminal, acme):
    first = acme.request()
    acme.wait(seconds=1)
    second = acme.request()
    acme.report(acme.claim("w1", run_id=first), "w1", report=RunReport(succeeded=False, error="No such table."))
    assert [run["run_id"] for run in terminal.json("runs")] == [second, first]
    assert [run["run_id"] for run in terminal.json("runs", "--state", "failed", "--since", "2h")] == [first]
    assert terminal.json("runs", "--customer", "nobody") == []
    assert terminal.json("runs", "--until", "2h") == []
    assert len(terminal.json("runs", "-n", "1")) == 1
    table = terminal.run("runs").stdout
    assert table.index(second) < table.index(first)
    assert "No such table." in table


@pytest.mark.parametrize(("option", "value"), [("--state", "LOST"), ("--since", "soon"), ("--until", "2025-13-01")])
def test_a_wrong_option_of_runs_is_said(terminal, option, value):
    done = terminal.run("runs", option, value)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{option}: is ")


def test_a_run_in_full(terminal, acme):
    run_id = acme.request()
    acme.report(acme.claim())
    shown = terminal.run("runs", run_id)
    assert shown.returncode == 0, shown.stderr
    assert "COMPLETED" in shown.stdout
    assert "Attempt 1 started on w1." in shown.stdout
    assert terminal.json("runs", run_id)["timeline"][-1]["event"] == "run.completed"
    missing = terminal.run("runs", "no-such-run")
    assert (missing.returncode, missing.stderr) == (1, "There is no run no-such-run: convergence runs lists them.\n")


def test_runs_are_followed_until_ctrl_c(terminal, acme):
    earlier = acme.request()
    other = acme.onboard("other")
    assert other
    follow = terminal.start("runs", "--follow", "--customer", "acme", "--json")
    assert json.loads(follow.stdout.readline())["run_id"] == earlier
    acme.request("other")
    later = acme.request()
    acme.report(acme.claim("w1", run_id=later), "w1")
    told = [json.loads(follow.stdout.readline()) for _ in range(3)]
    assert [(line["run_id"], line["state"]) for line in told] == [
        (later, "PENDING"),
        (later, "RUNNING"),
        (later, "COMPLETED"),
    ]
    code, rest, err = ended(follow)
    assert (code, rest, err) == (0, "", "")


def test_followed_runs_are_lines_for_people(terminal, acme):
    follow = terminal.start("runs", "--follow")
    run_id = acme.request()
    line = follow.stdout.readline()
    assert run_id in line
    assert "PENDING   acme gcp/example/dryrun" in line
    assert ended(follow)[0] == 0
