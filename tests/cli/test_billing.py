"""`convergence billing`: who pays, how that stands, and what waits for an operator."""

import json

import pytest

from tests.application.payer import Payer
from tests.application.world import World, migrated
from tests.cli.preloaded import convergence


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


def test_what_it_shows(database_url, tmp_path):
    def billing(*arguments):
        prices = {"STRIPE_PRICES": '{"price_p": "PROFESSIONAL"}'}
        where = {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / "var")}
        return convergence("billing", *arguments, **where, **prices)

    with World(database_url, tmp_path / "var" / "keys" / "wrapping.key") as world:
        payer = Payer(world)
        payer.tell(payer.checkout(), payer.subscription("evt_1"), payer.subscription("evt_2", 1, price="price_new"))
    shown = json.loads(billing("acme", "--json").stdout)
    [account], [problem] = shown["accounts"], shown["problems"]
    assert (account["customer_id"], account["standing"], account["plan"]) == ("acme", "good", "PROFESSIONAL")
    assert (problem["problem"], problem["subject"]) == ("unknown-price", "price_new")
    told = billing()
    assert (told.returncode, told.stderr) == (0, "")
    assert "STRIPE_PRICES" in told.stdout
