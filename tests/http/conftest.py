"""One server for the tests of a file, on a migrated database, with customers of their own for each test."""

from collections.abc import Iterator

import httpx
import pytest

from tests.application.world import migrated
from tests.http.running import Customer, Quick, Running, database, running


@pytest.fixture(scope="session")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture(scope="module")
def api(postgres_server, migrated_template, tmp_path_factory) -> Iterator[Running]:
    """A server whose BigQuery is away, and whose runs end when the test says."""
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path_factory.mktemp("api"), engine=Quick()) as server,
    ):
        yield server


@pytest.fixture
def acme(api) -> Customer:
    """A new PROFESSIONAL customer."""
    return api.onboard()


@pytest.fixture(scope="module")
def admin(api) -> httpx.Client:
    return api.admin()


@pytest.fixture(scope="module")
def anyone(api) -> httpx.Client:
    return api.client()
