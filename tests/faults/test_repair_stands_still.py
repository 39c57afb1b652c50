"""A repair that stands still in the middle, as a stopped process does, while it holds the log."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from adapters.postgres.beside import TEMPORARY, Beside
from adapters.postgres.comparison import Comparison
from adapters.postgres.maintenance import maintenance
from application.ports import Away
from projections.tables import CUSTOMER_PROFILES
from tests.application.world import World, migrated

ACME = [("acme",)]


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    with World(database_url, tmp_path / "key") as world:
        world.onboard()
        yield world


def repair(world: World, stand_still: Callable[[], object]) -> None:
    """Delete a row that ought to be there, by the tables beside it; then do nothing before it is kept."""
    with maintenance(world.dsn, name="repair") as connection:
        beside = Beside(connection, TEMPORARY, [CUSTOMER_PROFILES])
        beside.create()
        comparison = Comparison(connection, beside)
        with comparison.held(CUSTOMER_PROFILES, ACME):
            assert comparison.remove(CUSTOMER_PROFILES, ACME) == 1
            stand_still()


def test_commands_go_on_and_nothing_of_it_is_kept(world):
    began = time.monotonic()
    with ThreadPoolExecutor(1) as aside, pytest.raises((Away, psycopg.Error)):
        repair(world, lambda: aside.submit(world.request).result(30))
    assert 2 < time.monotonic() - began < 9, "a command waits for ten seconds before it gives up"
    assert world.rows("scheduled_pipeline_runs")
    assert world.row("customer_profiles", customer_id="acme")
