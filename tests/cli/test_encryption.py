"""`convergence encryption`: rotations at the command line, and what they tell."""

import json
from collections.abc import Iterator

import pytest

from tests.application.world import World, migrated
from tests.cli.one_process import type_in_turn


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def acme(database_url, tmp_path) -> Iterator[World]:
    """A customer whose keys are where the command looks for them."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as world:
        world.onboard()
        yield world


def test_rotations_and_what_they_leave_to_do(acme, tmp_path):
    added, rewrapped, rotated, opened = type_in_turn(
        tmp_path,
        acme.dsn,
        ["encryption", "new-wrapping-key", "--json"],
        ["encryption", "rewrap"],
        ["encryption", "rotate", "--customer", "acme"],
        ["encryption", "decryptions", "--customer", "acme", "--json"],
    )
    assert json.loads(added.out)["keys"] == 2
    assert rewrapped.status == 0
    assert "3 data keys wrapped anew." in rewrapped.out
    assert "No data key here needs local/credentials/" in rewrapped.out
    assert (rotated.status, "3 new data keys, 0 destroyed, 1 secret sealed anew." in rotated.out) == (0, True)
    assert "2 retired keys to be destroyed: in an hour, run `convergence encryption rotate --resume`." in rotated.out
    [row] = json.loads(opened.out)
    assert (row["purpose"], row["reason"], row["actor"].startswith("admin/cli:")) == ("api-key", "reseal", True)


def test_ages_are_refused_where_no_keys_are_made(acme, tmp_path):
    [told] = type_in_turn(tmp_path, acme.dsn, ["encryption", "rotate", "--resume", "--older-than", "3"])
    assert (told.status, told.err) == (2, "--resume: makes no new keys, so there are none to choose by age.\n")
