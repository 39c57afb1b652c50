"""`convergence erase` and `convergence export --readable`, as an operator types them."""

import json

import pytest

from tests.application.world import migrated
from tests.cli.test_export import sentence, type_in
from tests.faults.archives import lived_in


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def acme(database_url, tmp_path):
    with lived_in(database_url, tmp_path / "var") as world:
        world.onboard()
        yield world


def test_nobody_is_erased_by_a_slip(acme, tmp_path):
    refused = {
        "--confirm acme: is needed where nobody can be asked.": ["acme", "--reason", "x"],
        "That is not its id: nothing was erased.": ["acme", "--reason", "x", "--confirm", "ACME"],
    }
    for said, arguments in refused.items():
        assert sentence(type_in(tmp_path, acme.dsn, "erase", *arguments), 2) == said
    assert "Erased" not in acme.kinds()


def test_out_with_it_and_how_far_that_is(acme, tmp_path):
    known = type_in(tmp_path, acme.dsn, "export", str(tmp_path / "out"), "--customer", "acme", "--readable", "--json")
    assert json.loads(known.stdout)["lines"]["customer_profiles.jsonl"] == 1
    assert "ACME Corporation" in (tmp_path / "out" / "customer_profiles.jsonl").read_text()
    command = ["erase", "acme", "--reason", "asked to", "--confirm", "acme", "--wait", "0"]
    erased = type_in(tmp_path, acme.dsn, *command)
    assert erased.returncode == 0, erased.stderr
    assert erased.stdout.startswith("acme was erased at ")
    assert acme.kinds().count("Erased") == 1
    status = json.loads(type_in(tmp_path, acme.dsn, "erase", "acme", "--status", "--json").stdout)
    assert status["complete"] is False
    assert status["steps"]["data_keys"]
