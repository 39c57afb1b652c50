"""Processes are killed as they give commands: what was acknowledged is there, and nothing is half-done."""

import random
from collections.abc import Iterator

import psycopg
import pytest

from adapters.embedded.child import free_port
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.schema import migrate
from application.ports import Away
from tests.application.world import World, until
from tests.faults.acknowledging import clients, lost
from tests.faults.test_server_killed import kill
from tests.faults.whole import torn

AT_ONCE = 4


def killed_again_and_again(world: World, key_file, times: int) -> None:
    dice = random.Random(4711)  # noqa: S311 - a plan that can be repeated
    acknowledged = set()
    for _ in range(times // AT_ONCE):
        with clients(AT_ONCE, world, key_file) as given:
            given.listen(until=dice.randrange(AT_ONCE, 40))
            acknowledged |= given.kill()
        assert lost(world, acknowledged) == set()
    assert len(acknowledged) >= times
    assert torn(world) == []


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "key"


def test_what_was_acknowledged_outlives_its_process(database_url, key_file):
    with World(database_url, key_file) as world:
        killed_again_and_again(world, key_file, 32)


@pytest.mark.soak
def test_what_was_acknowledged_outlives_hundreds_of_processes(database_url, key_file):
    with World(database_url, key_file) as world:
        killed_again_and_again(world, key_file, 400)


@pytest.fixture
def hurried(tmp_path, key_file) -> Iterator[tuple[EmbeddedPostgres, World]]:
    """A server that acknowledges what is not on disk."""
    with EmbeddedPostgres(tmp_path / "postgres", free_port()) as server:
        with psycopg.connect(server.dsn, row_factory=psycopg.rows.dict_row) as connection:
            migrate(connection)
            connection.execute("ALTER DATABASE convergence SET synchronous_commit = off")
        with World(server.dsn, key_file) as world:
            yield server, world


def answers(world: World) -> bool:
    try:
        return bool(world.scalar("SELECT count(*) >= 0 FROM stored_events"))
    except Away:
        return False


def test_a_server_that_acknowledges_too_early_is_found_out(hurried, key_file):
    """The control: the same check, on commits that nobody waited for. What is there is whole all the same."""
    server, world = hurried
    missing = set()
    for _ in range(5):
        with clients(AT_ONCE, world, key_file) as given:
            given.listen(until=40)
            kill(server)
            acknowledged = given.kill()
        until(lambda: answers(world), seconds=60)
        missing |= lost(world, acknowledged)
        assert torn(world) == []
        if missing:
            break
    assert missing


@pytest.mark.parametrize(
    "wrong",
    [
        "DELETE FROM customer_profiles",
        "UPDATE customer_usage SET pipelines_run_today = pipelines_run_today + 1",
        "INSERT INTO customer_team_members (member_id, customer_id, position) VALUES ('x', 'acme', 1)",
        "DELETE FROM stored_events WHERE originator_version = 1 AND starts_with(topic, 'run.')",
    ],
)
def test_what_is_half_done_is_found(world, acme, wrong):
    """The control of the other check."""
    world.request()
    assert torn(world) == []
    world.tamper(wrong)
    assert torn(world) != []
