"""`convergence encryption`: rotations at the command line, and what they tell."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.application.world import World, migrated

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def acme(database_url, tmp_path) -> Iterator[World]:
    """A customer whose keys are where the command looks for them."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as world:
        world.onboard()
        yield world


def told(world: World, tmp_path: Path, *command: str) -> tuple[int, str]:
    done = subprocess.run(
        [CONVERGENCE, "encryption", *command],
        env={"PATH": os.defpath, "DATABASE_URL": world.dsn, "DATA_DIR": str(tmp_path), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout or done.stderr


def test_rotations_and_what_they_leave_to_do(acme, tmp_path):
    assert json.loads(told(acme, tmp_path, "new-wrapping-key", "--json")[1])["keys"] == 2
    status, text = told(acme, tmp_path, "rewrap")
    assert status == 0
    assert "3 data keys wrapped anew." in text
    assert "No data key here needs local/credentials/" in text
    status, text = told(acme, tmp_path, "rotate", "--customer", "acme")
    assert (status, "3 new data keys, 0 destroyed, 1 secret sealed anew." in text) == (0, True)
    assert "2 retired keys to be destroyed: in an hour, run `convergence encryption rotate --resume`." in text
    [row] = json.loads(told(acme, tmp_path, "decryptions", "--customer", "acme", "--json")[1])
    assert (row["purpose"], row["reason"], row["actor"].startswith("admin/cli:")) == ("api-key", "reseal", True)


def test_ages_are_refused_where_no_keys_are_made(acme, tmp_path):
    status, text = told(acme, tmp_path, "rotate", "--resume", "--older-than", "3")
    assert (status, text) == (2, "--resume: makes no new keys, so there are none to choose by age.\n")
