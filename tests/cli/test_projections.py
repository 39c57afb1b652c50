"""`convergence projections`: what it shows, its exit status, and passing over an event."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.postgres.checkpoints import PostgresCheckpoints
from projections.follow import Problem, ProblemKind
from tests.application.world import World, migrated

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))
SPOILT = "customer.unheard-of@9"


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def stopped(database_url, tmp_path) -> Iterator[World]:
    """A world whose first event cannot be read, and BigQuery stands there."""
    with World(database_url, tmp_path / "var" / "keys" / "wrapping.key") as world:
        world.at = datetime.now(UTC)
        world.onboard()
        world.tamper("UPDATE stored_events SET topic = %s WHERE notification_id = 1", SPOILT)
        problem = Problem(kind=ProblemKind.EVENT, text="stopped at position 1: it cannot be read.", position=1)
        PostgresCheckpoints(world.datastore).stand("bigquery", problem)
        yield world


def asked(world: World, tmp_path: Path, *command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [CONVERGENCE, *command],
        env={"PATH": os.defpath, "DATABASE_URL": world.dsn, "DATA_DIR": str(tmp_path / "var"), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_what_stands_is_shown_and_passed_over(stopped, tmp_path):
    status, out, _ = asked(stopped, tmp_path, "projections")
    assert status == 1
    assert "Projection bigquery: stopped at position 1: it cannot be read." in out
    assert "convergence projections skip bigquery --position 1" in out

    why = ("--reason", "Written by a broken release.")
    status, _, err = asked(stopped, tmp_path, "projections", "skip", "bigquery", "--position", "2", *why)
    assert (status, err.strip()) == (1, "Projection bigquery stands stopped at position 1, not at 2.")
    status, out, err = asked(stopped, tmp_path, "projections", "skip", "bigquery", "--position", "1", *why, "--json")
    assert status == 0, err
    [skip] = json.loads(out)["skipped"]
    assert (skip["projection"], skip["position"], skip["topic"]) == ("bigquery", 1, SPOILT)
    assert skip["skipped_by"].startswith("admin")
    assert stopped.row("projection_skips")["reason"] == "Written by a broken release."

    status, out, _ = asked(stopped, tmp_path, "projections")
    assert "bigquery passes over position 1 (customer.unheard-of@9): Written by a broken release." in " ".join(
        out.split()
    )


def test_the_status_and_the_doctor_tell_of_it(stopped, tmp_path):
    status, out, _ = asked(stopped, tmp_path, "status", "--json")
    found = json.loads(out)
    assert status == 1
    assert any(p["problem"].startswith("Projection bigquery: stopped at position 1") for p in found["problems"])
    [shown] = [p for p in found["projections"] if p["name"] == "bigquery"]
    assert (shown["stopped"], shown["problem_position"]) == (True, 1)
    status, out, _ = asked(stopped, tmp_path, "doctor", "--json")
    [finding] = [f for f in json.loads(out) if f["check"] == "projection bigquery"]
    assert (finding["result"], status) == ("fail", 1)
    assert "projections skip bigquery --position 1" in finding["remedy"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("snowflake", "--position", "1", "--reason", "x"), "PROJECTION: must be one of"),
        (("bigquery", "--position", "1", "--reason", " "), "--reason: must be one line"),
    ],
)
def test_wrong_arguments(stopped, tmp_path, arguments, sentence):
    status, _, err = asked(stopped, tmp_path, "projections", "skip", *arguments)
    assert status == 2
    assert sentence in err


def test_all_is_well(database_url, tmp_path):
    with World(database_url, tmp_path / "var" / "keys" / "wrapping.key") as world:
        status, out, err = asked(world, tmp_path, "projections", "--json")
    assert status == 0, err
    assert [item["name"] for item in json.loads(out)["items"]] == ["bigquery", "notifications", "postgres"]
