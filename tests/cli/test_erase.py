"""`convergence erase` and `convergence export --readable`, as an operator types them."""

import json

import pytest

from tests.application.world import migrated
from tests.cli.one_process import type_in_turn
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
    told = type_in_turn(tmp_path / "var", acme.dsn, *(["erase", *arguments] for arguments in refused.values()))
    assert [(t.status, t.err.strip()) for t in told] == [(2, said) for said in refused]
    assert "Erased" not in acme.kinds()


def test_out_with_it_and_how_far_that_is(acme, tmp_path):
    known, erased, status = type_in_turn(
        tmp_path / "var",
        acme.dsn,
        ["export", str(tmp_path / "out"), "--customer", "acme", "--readable", "--json"],
        ["erase", "acme", "--reason", "asked to", "--confirm", "acme", "--wait", "0"],
        ["erase", "acme", "--status", "--json"],
    )
    assert json.loads(known.out)["lines"]["customer_profiles.jsonl"] == 1
    assert "ACME Corporation" in (tmp_path / "out" / "customer_profiles.jsonl").read_text()
    assert erased.status == 0, erased.err
    assert erased.out.startswith("acme was erased at ")
    assert acme.kinds().count("Erased") == 1
    found = json.loads(status.out)
    assert found["complete"] is False
    assert found["steps"]["data_keys"]
