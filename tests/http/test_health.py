"""Whether it lives, whether it can work, its figures, and its documentation."""

import re
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.databases import cut_off
from tests.http.running import Quick, database, running


def test_alive_and_ready(anyone):
    assert anyone.get("/livez").json() == {"status": "ok"}
    ready = anyone.get("/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["schema"]) == (200, "ready", "current")


@pytest.fixture
def alone(postgres_server, migrated_template, tmp_path):
    """A server whose database a test may spoil."""
    with database(postgres_server.dsn, migrated_template) as dsn, running(dsn, tmp_path, engine=Quick()) as api:
        yield api


def test_a_database_that_is_away(alone, postgres_server):
    acme, name = alone.onboard(), urlsplit(alone.service.dsn).path[1:]
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        cut_off(connection, name)
        client = alone.client()
        assert client.get("/livez").status_code == 200
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["problems"] == ["The database does not answer."]
        answer = acme.get(acme.url)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert name not in answer.text
        assert "convergence_database_up 0" in client.get("/metrics").text
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))
        for _ in range(20):
            if acme.get(acme.url).status_code == 200:
                break
        assert acme.get(acme.url).status_code == 200


def test_a_schema_of_another_version(alone):
    with alone.service.datastore.reading() as cursor:
        cursor.execute("ALTER TABLE customer_usage DROP COLUMN concurrent_limit")
    ready = alone.client().get("/readyz")
    assert ready.status_code == 503
    assert "convergence migrate" in ready.json()["problems"][0]


def test_a_projection_that_lags(alone):
    alone.onboard()
    alone.service.checkpoints.advance("bigquery", 0, 1)
    fresh = alone.client().get("/readyz").json()
    assert fresh["status"] == "ready"
    assert fresh["projections"][0]["behind"] == fresh["log_end"] - 1
    with alone.clock.moved(minutes=2):
        old = alone.client().get("/readyz")
    assert (old.status_code, old.json()["status"]) == (200, "degraded")
    assert old.json()["problems"][0].startswith("Projection bigquery: is ")
    assert old.json()["problems"][0].endswith("No process works on it.")
    text = alone.client().get("/metrics").text
    assert 'convergence_projection_lag_events{projection="bigquery"} 2.0' in text
    assert 'convergence_projection_lag_seconds{projection="bigquery"}' in text
    assert 'convergence_projection_lag_seconds{projection="postgres"} 0.0' in text


def test_figures_name_routes_and_no_customer(acme, anyone):
    acme.get(acme.url)
    anyone.get("/nowhere/at/all")
    anyone.request("TRACE", "/livez")
    text = anyone.get("/metrics").text
    assert 'convergence_http_requests_total{method="GET",route="/api/v1/customers/:customer_id",status="200"}' in text
    assert 'method="other"' in text
    assert "convergence_queue_depth " in text
    assert acme.id not in text
    assert "nowhere" not in text


KEYLESS = {"/api/v1/api-keys/leaks"}
"""Routes that anybody may use: the answer tells nothing."""


def test_every_operation_is_documented(anyone):
    document = anyone.get("/openapi.json").json()
    assert "/docs" not in document["paths"]
    assert not any(path.startswith("/reveal") for path in document["paths"])
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert operation["tags"], where
            if path.startswith("/api/v1"):
                assert operation.get("security") or path in KEYLESS, where
                proven = set() if path in KEYLESS else {"401"}
                assert {"422", "503"} | proven <= set(operation["responses"]), where
                assert "application/problem+json" in operation["responses"]["422"]["content"], where
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                assert schema.get("examples"), where
                # Stripe's events are bytes that were signed, whatever they are said to be.
                other_types = set() if path == "/webhooks/stripe" else {"415"}
                assert {"400", "413"} | other_types <= set(operation["responses"]), where
    names = set(document["components"]["schemas"])
    assert names.issuperset(re.findall(r'"#/components/schemas/([^"]+)"', anyone.get("/openapi.json").text))


def test_the_documentation_page(anyone):
    page = anyone.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text
