"""A migrated database for every test, and the core upon it."""

from collections.abc import Iterator

import pytest

from tests.application.world import World, migrated


@pytest.fixture(scope="session")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    """The use cases on a database of their own."""
    with World(database_url, tmp_path / "key") as made:
        yield made


@pytest.fixture
def acme(world) -> World:
    """A world with one PROFESSIONAL customer, `acme`."""
    world.onboard()
    return world
