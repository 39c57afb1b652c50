"""What comes due in billing at once is done in turns: schedules do not wait for all of it."""

import threading
from collections.abc import Iterator

import pytest

from adapters.bootstrap import Service, build
from adapters.deadlines import Deadlines
from adapters.settings import Settings
from tests.application.payer import Payer
from tests.application.world import World

PAYERS = 5


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    """Customers who did not pay for a month, and of whom nothing was told since."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as made:
        made.wait(days=-30)
        stripe = Payer(made)
        for n in range(PAYERS):
            failed = stripe.subscription(f"evt_{n}", status="past_due")
            stripe.tell(stripe.checkout(f"evt_c{n}", names=f"acme{n}"), failed, cus=f"cus_{n}")
        yield made


@pytest.fixture
def service(world, tmp_path) -> Iterator[Service]:
    made = build(Settings(data_dir=tmp_path, bigquery_emulator_host="http://127.0.0.1:1"), world.dsn)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("turn_s", "expected"),
    [(0, [(True, 2), (True, 4), (False, 5), (False, 5)]), (3600, [(False, 5)])],
    ids=["", "control: a turn without an end"],
)
def test_much_that_comes_due_at_once_is_done_turn_by_turn(world, service, turn_s, expected):
    deadlines = Deadlines(service, turn_s=turn_s, at_a_time=2)
    found = []
    for _ in expected:
        more = deadlines.meet(threading.Event())
        found.append((more, len(world.rows("customer_profiles", status="SUSPENDED"))))
    assert found == expected
