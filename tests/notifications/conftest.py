"""A customer in a world, the outbox behind it, and a real receiver of webhooks."""

from collections.abc import Iterator

import pytest

from adapters.bootstrap import Service, build
from adapters.settings import Settings
from tests.application.conftest import database_url, migrated_template, shared_database
from tests.application.world import World
from tests.notifications.receiver import Receiver, receiving

__all__ = ["database_url", "migrated_template", "shared_database"]

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    with World(database_url, tmp_path / "keys" / "wrapping.key") as made:
        made.onboard()
        yield made


@pytest.fixture
def service(world, tmp_path) -> Iterator[Service]:
    """The parts of a projector, on the world's database, whose mails are files."""
    settings = Settings(data_dir=tmp_path, bigquery_emulator_host=NOWHERE, webhook_private_addresses=True)
    made = build(settings, world.dsn)
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made
