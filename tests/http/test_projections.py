"""Projections over HTTP: how far they are, where they stand stopped, and passing over an event."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from adapters.projector import Follower
from domain.projection import NOTIFICATIONS, WAREHOUSE
from tests.application.world import until
from tests.http.running import Quick, Running, database, running

PROJECTIONS = "/api/v1/admin/projections"
SKIP = f"{PROJECTIONS}/bigquery/skip"
SPOILT = "customer.unheard-of@9"


@pytest.fixture
def alone(postgres_server, migrated_template, tmp_path) -> Iterator[Running]:
    """A server whose database a test may spoil."""
    with database(postgres_server.dsn, migrated_template) as dsn, running(dsn, tmp_path, engine=Quick()) as api:
        yield api


@contextmanager
def followed(api: Running, *names: str) -> Iterator[None]:
    """Projections that need no BigQuery."""
    stop = threading.Event()
    followers = [Follower(api.service, name, lambda events: None, stop) for name in names]
    for follower in followers:
        follower.start()
    try:
        yield
    finally:
        stop.set()
        for follower in followers:
            follower.join()


def spoil(api: Running, customer_id: str) -> int:
    """Make the customer's first event unreadable; its position."""
    with psycopg.connect(api.service.dsn) as owner:
        [(place,)] = owner.execute(
            "UPDATE stored_events SET topic = %s WHERE notification_id ="
            " (SELECT min(notification_id) FROM stored_events WHERE customer_id = %s) RETURNING notification_id",
            (SPOILT, customer_id),
        ).fetchall()
    return place


def shown(admin, name: str = WAREHOUSE) -> dict:
    answer = admin.get(PROJECTIONS)
    assert answer.status_code == 200, answer.text
    return next(item for item in answer.json()["items"] if item["name"] == name)


def figure(api: Running, name: str, projection: str = WAREHOUSE) -> float:
    text = api.client().get("/metrics").text
    found = re.search(rf'^convergence_projection_{name}{{projection="{projection}"}} (\S+)$', text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_a_projection_that_keeps_up(alone):
    admin = alone.admin()
    alone.onboard()
    with followed(alone, WAREHOUSE, NOTIFICATIONS):
        until(lambda: shown(admin)["behind"] == 0 and shown(admin, NOTIFICATIONS)["behind"] == 0)
        now = shown(admin)
        assert (now["alive"], now["stopped"], now["problem"], now["behind_seconds"]) == (True, False, None, 0.0)
        assert now["position"] == now["log_end"] == admin.get(PROJECTIONS).json()["log_end"]
        assert alone.client().get("/readyz").json()["status"] == "ready"
        assert figure(alone, "alive") == 1
    until(lambda: not shown(admin)["alive"])
    assert shown(admin, "postgres")["behind"] == 0


def test_a_poison_event_is_seen_everywhere_and_passed_over(alone):
    admin = alone.admin()
    before, bad = alone.onboard(), alone.onboard()
    place = spoil(alone, bad.id)
    other = alone.onboard()
    with followed(alone, WAREHOUSE, NOTIFICATIONS):
        until(lambda: shown(admin)["stopped"] and shown(admin, NOTIFICATIONS)["stopped"])
        now = shown(admin)
        assert (now["position"], now["problem_position"], now["problem_topic"]) == (place - 1, place, SPOILT)
        assert f"stopped at position {place}: Event 1 of stream" in now["problem"]

        ready = alone.client().get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert f"Projection bigquery: stopped at position {place}." in ready.json()["problems"]
        assert (figure(alone, "stopped"), figure(alone, "stopped", "postgres")) == (1, 0)
        assert figure(alone, "lag_events") == now["log_end"] - place + 1
        assert figure(alone, "lag_seconds") > 0
        [problem] = [
            p
            for p in admin.get("/api/v1/scheduler/status").json()["problems"]
            if p["problem"].startswith("Projection bigquery")
        ]
        assert f"convergence projections skip bigquery --position {place}" in problem["remedy"]

        for customer in (before, other):
            assert customer.get(customer.url).status_code == 200
            assert customer.run().status_code == 202

        wrong = admin.post(SKIP, json={"position": place + 1, "reason": "A guess."})
        assert (wrong.status_code, wrong.json()["detail"]) == (
            409,
            f"Projection bigquery stands stopped at position {place}, not at {place + 1}.",
        )
        skipped = admin.post(SKIP, json={"position": place, "reason": "Written by a broken release."})
        assert skipped.status_code == 200, skipped.text
        [passed_over] = skipped.json()["skipped"]
        assert (passed_over["position"], passed_over["topic"]) == (place, SPOILT)
        assert passed_over["skipped_by"].startswith("admin")
        trail = admin.get("/api/v1/admin/events", params={"type": "projection."})
        assert [event["type"] for event in trail.json()["items"]] == ["projection.event-skipped@1"], trail.text
        until(lambda: shown(admin)["behind"] == 0)
        assert shown(admin, NOTIFICATIONS)["stopped"]
        assert (figure(alone, "stopped"), figure(alone, "skipped_events")) == (0, 1)


def test_only_what_can_be_skipped(alone):
    admin = alone.admin()
    alone.onboard()
    answers = {
        "nowhere": admin.post(SKIP, json={"position": 1, "reason": "A guess."}),
        "no such projection": admin.post(f"{PROJECTIONS}/snowflake/skip", json={"position": 1, "reason": "x"}),
        "no reason": admin.post(SKIP, json={"position": 1}),
        "no position": admin.post(SKIP, json={"position": 0, "reason": "x"}),
        "too far": admin.post(SKIP, json={"position": 2**63, "reason": "x"}),
    }
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "nowhere": 409,
        "no such projection": 422,
        "no reason": 422,
        "no position": 422,
        "too far": 400,
    }
    assert admin.get(PROJECTIONS).json()["skipped"] == []


def test_a_command_of_a_customer_that_cannot_be_read(alone, caplog):
    bad, other = alone.onboard(), alone.onboard()
    spoil(alone, bad.id)
    assert bad.post(f"{bad.url}/api-keys").is_success, "who remembers a customer does not read its story again"
    alone.service.forget("")  # as a process that starts
    for _ in range(2):
        refused = bad.post(f"{bad.url}/api-keys")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
        assert refused.json()["type"] == "urn:convergence:problem:unreadable-event"
        assert "cannot be read" in refused.json()["detail"]
        assert SPOILT not in refused.text
    errors = [r.getMessage() for r in caplog.records if r.name == "application.damage"]
    assert len(errors) == 1
    assert SPOILT in errors[0]
    assert bad.get(bad.url).status_code == 200
    assert other.post(f"{other.url}/api-keys").status_code in {200, 201}


def test_rows_cannot_be_compared_with_what_cannot_be_read(alone):
    bad, other = alone.onboard(), alone.onboard()
    place = spoil(alone, bad.id)
    refused = alone.admin().get(f"{PROJECTIONS}/verify", params={"target": "postgres"})
    assert (refused.status_code, f"Position {place}: " in refused.json()["detail"]) == (409, True)
    compared = alone.admin().get(f"{PROJECTIONS}/verify", params={"target": "postgres", "customer_id": other.id})
    assert (compared.status_code, compared.json()["found"]) == (200, 0)


def test_nobody_else_may(acme, anyone):
    for client in (acme, anyone):
        assert client.get(PROJECTIONS).status_code == 401
        assert client.post(SKIP, json={"position": 1, "reason": "x"}).status_code == 401


def test_in_public_no_backend_is_quoted(alone):
    """A backend's own words name datasets, and those are customers."""
    from projections.follow import Problem, ProblemKind  # noqa: PLC0415

    acme = alone.onboard()
    words = f"waits: BigQuery is away: dataset {acme.id}"
    alone.service.checkpoints.stand(WAREHOUSE, Problem(kind=ProblemKind.AWAY, text=words))
    assert acme.id in shown(alone.admin())["problem"]
    ready = alone.client().get("/readyz")
    assert "Projection bigquery: waits for a backend that does not answer." in ready.json()["problems"]
    assert acme.id not in ready.text
