"""A migrated database for every test, and a server upon it."""

from collections.abc import Iterator

import httpx
import pytest

from tests.application.world import migrated
from tests.http.running import Quick, Running, running


@pytest.fixture(scope="session")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def api(database_url, tmp_path) -> Iterator[Running]:
    """A server whose BigQuery is away, and whose runs end when the test says."""
    with running(database_url, tmp_path, engine=Quick()) as server:
        yield server


@pytest.fixture
def acme(api) -> httpx.Client:
    """A client with the key of a PROFESSIONAL customer, `acme_corp`."""
    return api.onboard()


@pytest.fixture
def admin(api) -> httpx.Client:
    return api.admin()


@pytest.fixture
def anyone(api) -> httpx.Client:
    return api.client()
