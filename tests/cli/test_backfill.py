"""`convergence backfill`: what it says, what it returns, and that it stays until the runs have ended."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from application.ports import RunReport
from tests.application.world import World, migrated, until

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def daily(database_url, tmp_path) -> Iterator[World]:
    """ACME with a daily pipeline, on the database's clock; its keys are where the command looks for them."""
    with World(database_url, tmp_path / "var" / "keys" / "wrapping.key") as world:
        world.at = datetime.now(UTC)
        world.onboard()
        world.pipeline(config_id="daily")
        yield world


def started(world: World, tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    last = datetime.now(UTC).date() - timedelta(days=1)
    days = ("--from", str(last - timedelta(days=2)), "--to", str(last))
    given = arguments if "--from" in arguments else (*days, *arguments)
    return asked(world, tmp_path, "backfill", "acme", "daily", *given)


def asked(world: World, tmp_path: Path, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [CONVERGENCE, *command],
        env={"PATH": os.defpath, "DATABASE_URL": world.dsn, "DATA_DIR": str(tmp_path / "var"), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def work(world: World, **outcome) -> None:
    """Do what a worker does, until three runs have ended."""

    def done() -> bool:
        world.report(world.claim(), **outcome)
        return sum(n for state, n in world.states().items() if state in {"COMPLETED", "FAILED"}) == 3

    until(done, seconds=60)


def test_queues_and_says_what(daily, tmp_path):
    status, out, err = ended(started(daily, tmp_path, "--reason", "Late invoices."))
    assert status == 0, err
    assert "3 days queued" in out
    assert daily.states(trigger_type="backfill") == {"PENDING": 3}
    assert {row["trigger_by"] for row in daily.rows("scheduled_pipeline_runs")} == {"admin: Late invoices."}


def test_follows_to_the_end(daily, tmp_path):
    process = started(daily, tmp_path, "--follow", "--json")
    until(lambda: daily.states() == {"PENDING": 3}, seconds=60)
    assert process.poll() is None
    work(daily)
    status, out, err = ended(process)
    assert status == 0, err
    said = json.loads(out)
    assert (said["queued"], said["refused"], said["states"]) == (3, 0, {"COMPLETED": 3})


def test_failed_runs_are_a_failure(daily, tmp_path):
    process = started(daily, tmp_path, "--follow")
    until(daily.states, seconds=60)
    work(daily, report=RunReport(succeeded=False, error="bad SQL"))
    status, out, err = ended(process)
    assert status == 1, err
    assert "3 failed" in out
    assert "3/3" in err


def test_goes_on_with_an_earlier_one(daily, tmp_path):
    daily.limits(max_pipelines_per_day=2)
    status, out, err = ended(started(daily, tmp_path))
    assert status == 0, err
    assert "2 days queued" in out
    assert "1 day found no room" in out
    _, *hint = out.split("go on with:")[1].split()
    daily.limits(max_pipelines_per_day=5)
    status, out, err = ended(asked(daily, tmp_path, *hint, "--json"))
    assert status == 0, err
    assert json.loads(out)["backfill_id"] == hint[-1]
    assert daily.states() == {"PENDING": 3}


def test_nothing_that_fits_is_a_failure(daily, tmp_path):
    daily.limits(max_pipelines_per_day=0)
    status, _, err = ended(started(daily, tmp_path))
    assert (status, err.strip()) == (1, "Daily pipeline quota exceeded. Used 0/0 pipelines today.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "2025-11-02", "--to", "2025-11-01"), "first day"),
        (("--from", "2025-11-01", "--to", "2999-11-01"), "366 days"),
        (("--id", "x"), "--id"),
        (("--reason", "two\nlines"), "--reason"),
    ],
)
def test_what_is_wrong_is_said(daily, tmp_path, arguments, said):
    status, _, err = ended(started(daily, tmp_path, *arguments))
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_help_has_an_example():
    done = subprocess.run([CONVERGENCE, "backfill", "--help"], capture_output=True, text=True, check=True)
    assert "convergence backfill" in done.stdout.split("Example:")[1]
