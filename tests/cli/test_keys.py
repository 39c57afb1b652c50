"""`convergence keys`: what it shows, issues and revokes, and what it says when it cannot."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.application.world import World, migrated
from tests.cli.preloaded import convergence


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    with World(database_url, tmp_path / "var" / "keys" / "wrapping.key") as made:
        made.at = datetime.now(UTC)
        made.onboard()
        yield made


def keys(world: World, tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    done = convergence("keys", *arguments, DATABASE_URL=world.dsn, DATA_DIR=str(tmp_path / "var"))
    return done.returncode, done.stdout, done.stderr


def test_a_key_is_issued_shown_once_and_revoked(world, tmp_path):
    status, out, err = keys(world, tmp_path, "issue", "acme", "--name", "CI", "--scope", "runs:write", "--json")
    assert status == 0, err
    issued = json.loads(out)
    assert issued["api_key"].startswith("acme_api_")
    status, key, err = keys(world, tmp_path, "issue", "acme", "--name", "CI", "--scope", "runs:write")
    assert (status, len(key.split())) == (0, 1), err
    assert f"The key before ({issued['api_key_id']}) works until" in err.replace("\n", " ")

    status, out, err = keys(world, tmp_path, "revoke", "acme", issued["api_key_id"], "--reason", "Laptop lost.")
    assert status == 0, err
    status, out, err = keys(world, tmp_path, "list", "acme", "--json")
    assert status == 0, err
    newest, revoked, first = json.loads(out)
    assert (newest["name"], newest["scopes"], newest["last4"]) == ("CI", ["runs:write"], key.strip()[-4:])
    assert (revoked["is_active"], revoked["revoked_reason"]) == (False, "Laptop lost.")
    assert (first["name"], first["scopes"], first["days_left"], first["last_used_at"]) == ("", None, 90, None)
    assert key.strip() not in out


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("list", "nobody"), 1, "No such customer."),
        (("issue", "acme", "--name", "x" * 201), 2, "--name: must be one line of at most 200 characters."),
    ],
    ids=["of nobody", "a long name"],
)
def test_what_cannot_be_done_is_said_in_a_sentence(world, tmp_path, arguments, status, sentence):
    returned, out, err = keys(world, tmp_path, *arguments)
    assert (returned, out) == (status, "")
    assert sentence in err
    assert "Traceback" not in err
