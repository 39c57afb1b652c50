"""`convergence export` and `convergence import`, as an operator types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.embedded.child import free_port
from tests.application.world import migrated
from tests.faults.archives import files, flip_a_byte, is_unused, key_of, lived_in
from tests.projections.test_replay import database

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def acme(database_url, tmp_path):
    with lived_in(database_url, tmp_path / "var") as world:
        world.onboard()
        world.claim(run_id=world.request())
        yield world


def type_in(tmp_path: Path, dsn: str | None, *arguments: str) -> "subprocess.CompletedProcess[str]":
    settings = {"PATH": os.defpath, "COLUMNS": "100", "DATA_DIR": str(tmp_path / "var"), "PORT": str(free_port())}
    if dsn:
        settings["DATABASE_URL"] = dsn
    return subprocess.run(
        [CONVERGENCE, *arguments], env=settings, capture_output=True, text=True, timeout=60, check=False
    )


def sentence(done: "subprocess.CompletedProcess[str]", status: int = 1) -> str:
    """The last thing it said."""
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_out_and_in_again(acme, postgres_server, migrated_template, tmp_path):
    archive = str(tmp_path / "archive")
    done = type_in(tmp_path, acme.dsn, "export", archive)
    events = len(acme.events())
    assert done.stdout.startswith(f"{events} events up to position {events} in 2 files, {events} of them new. The hash")
    assert str(key_of(tmp_path / "var")) in done.stderr
    checked = type_in(tmp_path, None, "export", "--check", archive)
    assert f"{events} events up to position {events}, sealed up to 0: as they were written." in checked.stdout
    assert checked.stdout.split()[-1] == done.stdout.split()[-1]
    with database(postgres_server, migrated_template) as empty:
        imported = type_in(tmp_path, empty, "import", archive)
        assert f"{events} events up to position {events}, and " in imported.stdout
        assert "1 run had a worker when the log ended: to be taken over." in imported.stdout
        assert sentence(type_in(tmp_path, empty, "import", archive)).startswith("The store is not empty, stored_events")


def test_what_is_wrong_is_said_in_a_sentence(acme, postgres_server, migrated_template, tmp_path):
    archive = tmp_path / "archive"
    assert "holds no export" in sentence(type_in(tmp_path, None, "export", "--check", str(tmp_path)))
    assert "is no directory" in sentence(type_in(tmp_path, None, "export", "--check", str(archive)))
    assert "There is no database" in sentence(type_in(tmp_path, None, "export", str(archive)))
    assert "There is no customer who" in sentence(
        type_in(tmp_path, acme.dsn, "export", str(archive), "--customer", "who")
    )
    assert "--customer: --check" in sentence(
        type_in(tmp_path, None, "export", str(archive), "--check", "--customer", "acme"), 2
    )
    assert not archive.exists()
    shown = json.loads(type_in(tmp_path, acme.dsn, "export", str(archive), "--customer", "acme", "--json").stdout)
    assert (shown["customer_id"], shown["events"]) == ("acme", len(acme.events()))
    [segment] = files(archive, "events")
    flip_a_byte(segment)
    with database(postgres_server, migrated_template) as empty:
        for done in (
            type_in(tmp_path, None, "export", "--check", str(archive)),
            type_in(tmp_path, empty, "import", str(archive)),
        ):
            assert f"{segment} is damaged or was changed: its SHA-256" in sentence(done)
        assert is_unused(empty)


def test_a_disk_that_is_full_ends_it_with_a_sentence_and_it_goes_on_later(acme, tmp_path):
    archive = tmp_path / "archive"
    for _ in range(20):
        acme.request()
    full = subprocess.run(
        ["sh", "-c", 'ulimit -f 6 && exec "$@"', "sh", CONVERGENCE, "export", str(archive)],
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path / "var"), "DATABASE_URL": acme.dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "cannot be written: File too large. Run the export again" in sentence(full)
    assert not list(archive.glob("*.partial"))
    assert type_in(tmp_path, acme.dsn, "export", str(archive)).returncode == 0
    assert type_in(tmp_path, None, "export", "--check", str(archive)).returncode == 0


@pytest.mark.parametrize(("command", "says"), [("export", "wrapping key"), ("import", "What is not in a log")])
def test_the_help_says_what_is_not_in_it(tmp_path, command, says):
    done = type_in(tmp_path, None, command, "--help")
    assert done.returncode == 0
    assert says in " ".join(done.stdout.replace("│", " ").split())
    assert f"Example: convergence {command}" in done.stdout or "Example: cp" in done.stdout
