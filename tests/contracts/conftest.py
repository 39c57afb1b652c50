"""Each suite of the warehouse runs at an emulator and, where there is a project, at Google."""

import os
from collections.abc import Iterator

import google.auth
import pytest
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import bigquery

from adapters.bigquery.warehouse import BigQueryWarehouse
from tests.contracts.warehouse_place import LOCATION, Place


@pytest.fixture(scope="module", params=["emulator", pytest.param("google", marks=pytest.mark.gcp)])
def place(request) -> Iterator[Place]:
    if request.param == "emulator":
        yield Place("contract-suite", request.getfixturevalue("bigquery_emulator"))
        return
    project = os.environ.get("GCP_PROJECT_ID")
    try:
        google.auth.default()
    except DefaultCredentialsError:
        project = None
    if not project:
        pytest.skip("no project")
    place = Place(project, None)
    yield place
    client = place.client()
    for dataset in (place.central, *place.customers):
        client.delete_dataset(dataset, delete_contents=True, not_found_ok=True, timeout=30)
    client.close()


@pytest.fixture(scope="module")
def warehouse(place) -> Iterator[BigQueryWarehouse]:
    warehouse = BigQueryWarehouse(place.client(), place.project, place.central, LOCATION)
    warehouse.ensure_central()
    yield warehouse
    warehouse.close()


@pytest.fixture
def client(place) -> Iterator[bigquery.Client]:
    client = place.client()
    yield client
    client.close()
