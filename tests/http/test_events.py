"""The audit trail: everything that happened to a customer, and nothing of anybody else's."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from adapters.provisioner import _origin
from adapters.scheduler import _step
from tests.application.world import until
from tests.http.running import ADMIN, Quick, database, running

LOG = "/api/v1/admin/events"


def test_it_says_who_did_what(acme, admin):
    answer = admin.patch(
        f"/api/v1/admin/customers/{acme.id}/limits",
        headers={"X-Request-ID": "audit-1"},
        json={"max_pipelines_per_day": 3, "reason": "trial"},
    )
    assert answer.status_code == 200, answer.text
    newest, *_, opened, key, onboarded = acme.get(f"{acme.url}/events").json()["items"]
    assert (newest["type"], newest["actor"], newest["request_id"]) == (
        "subscription.limits-overridden@1",
        "admin",
        "audit-1",
    )
    assert newest["data"]["reason"] == "trial"
    assert onboarded["type"] == "customer.onboarded@1"
    assert onboarded["data"]["company_name"] == "ACME Corporation"
    assert key["type"] == "customer.api-key-issued@2"
    assert opened["type"] == "subscription.opened@1"


def test_it_holds_runs_and_no_secrets(acme, api):
    key = acme.key
    run_id = acme.run().json()["run_id"]
    acme.post(
        f"{acme.url}/credentials",
        json={
            "provider": "AWS",
            "credential_type": "ACCESS_KEY",
            "credential_name": "reader",
            "credentials": {"secret": "canary-7d1c"},
        },
    ).raise_for_status()
    answer = acme.get(f"{acme.url}/events")
    events = answer.json()["items"]
    assert run_id in {e["stream_id"] for e in events if e["type"].startswith("run.scheduled@")}
    added = next(e for e in events if e["type"] == "customer.credential-added@1")
    assert added["data"].keys() >= {"credential_id", "provider"}
    for event in events:
        assert not event["data"].keys() & {"key_hash", "sealed_key", "sealed"}
    assert "canary" not in answer.text
    assert key not in answer.text


def test_pages_do_not_overlap_and_leave_nothing_out(acme, api):
    other = api.onboard()
    whole = acme.get(f"{acme.url}/events").json()["items"]
    seen, cursor = [], None
    while True:
        page = acme.get(f"{acme.url}/events", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == whole
    assert not {e["position"] for e in seen} & {e["position"] for e in other.get(f"{other.url}/events").json()["items"]}
    assert acme.get(f"{acme.url}/events", params={"cursor": "WyIxOyJd"}).status_code == 422


# who it was


def actors(client, **asked):
    answer = client.get(LOG, params={"limit": 200, **asked})
    assert answer.status_code == 200, answer.text
    return [event["actor"] for event in answer.json()["items"]]


def test_the_key_that_was_used_is_named(acme, admin, anyone):
    """And nothing of the key itself."""
    issued = acme.post(f"{acme.url}/api-keys").json()
    other = {"X-API-Key": issued["api_key"], "X-Request-ID": f"r-{uuid4()}"}
    anyone.patch(acme.url, headers=other, json={"company_name": "New Name"}).raise_for_status()
    by = f"customer:{acme.id}/{issued['api_key_id']}"
    assert actors(admin, correlation_id=other["X-Request-ID"]) == [by]
    assert actors(admin, actor=by) == [by]
    first = actors(admin, actor=f"customer:{acme.id}")[-1]
    assert first.startswith(f"customer:{acme.id}/")
    assert first != by
    assert issued["api_key"] not in admin.get(LOG, params={"customer_id": acme.id}).text


def test_a_request_is_the_same_whichever_key_of_its_customer_sends_it(acme, api, anyone):
    """A key is replaced while a request is being tried again. The control: another customer's is another request."""
    name = {"Idempotency-Key": str(uuid4())}
    second = {"X-API-Key": acme.post(f"{acme.url}/api-keys").json()["api_key"]}
    body = {"email": "a@example.com", "name": "A", "role": "VIEWER"}
    made = acme.post(f"{acme.url}/team-members", headers=name, json=body)
    again = anyone.post(f"{acme.url}/team-members", headers=name | second, json=body)
    assert made.status_code in {200, 201}, made.text
    assert (again.status_code, again.json()) == (made.status_code, made.json())
    assert again.headers["Idempotency-Replayed"] == "true"
    other = api.onboard()
    theirs = other.post(f"{other.url}/team-members", headers=name, json=body)
    assert "Idempotency-Replayed" not in theirs.headers


def test_which_admin_key_it_was_operators_see_and_customers_do_not(postgres_server, migrated_template, tmp_path):
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick(), admin_api_key="the-old-one", admin_api_key_next="the-new-one") as api,
    ):
        acme = api.onboard()
        for number, key in enumerate(("the-old-one", "the-new-one"), 1):
            api.client({"X-Admin-Key": key}).patch(
                f"/api/v1/admin/customers/{acme.id}/limits", json={"max_pipelines_per_day": number, "reason": "r"}
            ).raise_for_status()
        operator = api.client({"X-Admin-Key": "the-new-one"})
        assert actors(operator, type="subscription.limits") == ["admin/next", "admin"]
        own = acme.get(f"{acme.url}/events", params={"type": "subscription.limits"}).json()["items"]
        assert [event["actor"] for event in own] == ["admin", "admin"]
        assert acme.get(f"{acme.url}/events", params={"actor": "admin/next"}).json()["items"] == []
        assert len(acme.get(f"{acme.url}/events", params={"actor": "admin"}).json()["items"]) == 2
        seen = operator.get(f"{acme.url}/events", params={"actor": "admin/next"}).json()["items"]
        assert [event["actor"] for event in seen] == ["admin/next"]


def test_processes_of_the_service_are_named(api, acme, admin):
    """The scheduler, the worker, and the service when it finishes what onboarding began."""
    acme.post(
        f"/api/v1/scheduler/customer/{acme.id}/pipelines",
        json={"provider": "GCP", "domain": "COST", "pipeline_template": "cost_billing", "schedule_cron": "* * * * *"},
    ).raise_for_status()
    with api.service.datastore.reading() as cursor:
        cursor.execute("UPDATE customer_pipeline_configs SET next_run_time = now() WHERE customer_id = %s", (acme.id,))
    _step(api.service)
    with api.worker():
        until(lambda: actors(admin, customer_id=acme.id, type="run.completed"))
    assert actors(admin, customer_id=acme.id, type="run.scheduled") == ["scheduler:tests"]
    assert set(actors(admin, customer_id=acme.id, type="run.c")) == {"worker:tests"}
    [scheduled] = admin.get(LOG, params={"customer_id": acme.id, "type": "run.scheduled"}).json()["items"]
    together = admin.get(LOG, params={"correlation_id": scheduled["command_id"], "type": "run."}).json()["items"]
    assert {event["type"].partition("@")[0] for event in together} >= {"run.scheduled", "run.claimed", "run.completed"}
    onboarded = admin.get(LOG, params={"customer_id": acme.id, "type": "customer.onboarded"}).json()["items"][0]
    carried = _origin(api.service, acme.id)
    assert (carried.actor, carried.correlation_id) == ("service:tests", onboarded["correlation_id"])


def test_a_run_that_a_request_has_executed_says_so(acme, admin):
    run_id = acme.run(headers={"X-Request-ID": f"asked-{acme.id}"}).json()["run_id"]
    headers = {"X-Request-ID": f"processed-{acme.id}"}
    while admin.post("/api/v1/scheduler/process-queue", headers=headers).json().get("run_id") != run_id:
        pass
    told = admin.get(LOG, params={"stream_id": run_id, "order": "asc"}).json()["items"]
    assert {event["correlation_id"] for event in told} == {f"asked-{acme.id}"}
    assert [event["request_id"] for event in told] == [f"asked-{acme.id}", *[f"processed-{acme.id}"] * (len(told) - 1)]
    assert told[1]["causation_id"] == told[0]["command_id"]


# the three questions


def test_who_suspended_this_customer(acme, admin):
    admin.post(f"/api/v1/admin/customers/{acme.id}/suspend", json={"reason": "Unpaid since October."})
    [event] = admin.get(LOG, params={"customer_id": acme.id, "type": "customer.suspended"}).json()["items"]
    assert (event["actor"], event["data"]["reason"]) == ("admin", "Unpaid since October.")
    assert datetime.now(UTC) - datetime.fromisoformat(event["at"]) < timedelta(minutes=5)


def test_why_this_run_was_refused(acme, admin):
    admin.patch(f"/api/v1/admin/customers/{acme.id}/limits", json={"max_pipelines_per_day": 0, "reason": "r"})
    refused = acme.run(headers={"X-Request-ID": f"refused-{acme.id}"})
    assert refused.status_code == 429
    [event] = acme.get(f"{acme.url}/events", params={"correlation_id": f"refused-{acme.id}"}).json()["items"]
    assert event["type"] == "subscription.run-refused@1"
    assert {"limit": "daily", "used": 0, "allowed": 0}.items() <= event["data"].items()


# what is asked for


def test_filters_narrow_each_other_down(acme, admin):
    before = datetime.now(UTC)
    run_id = acme.run().json()["run_id"]
    asked = {"customer_id": acme.id, "actor": f"customer:{acme.id}", "type": "run.", "from": before.isoformat()}
    [event] = admin.get(LOG, params=asked).json()["items"]
    assert (event["stream_id"], event["customer_id"]) == (run_id, acme.id)
    assert admin.get(LOG, params=asked | {"to": before.isoformat()}).json()["items"] == []
    assert admin.get(LOG, params=asked | {"type": "customer."}).json()["items"] == []
    assert admin.get(LOG, params={"customer_id": "nobody_at_all"}).json()["items"] == []
    assert admin.get(LOG, params={"stream_id": str(uuid4())}).json()["items"] == []


def test_a_customer_finds_nothing_of_anybody_else(acme, api):
    other = api.onboard()
    run_id = other.run(headers={"X-Request-ID": f"theirs-{other.id}"}).json()["run_id"]
    for asked in ({"stream_id": run_id}, {"correlation_id": f"theirs-{other.id}"}, {"actor": f"customer:{other.id}"}):
        foreign = acme.get(f"{acme.url}/events", params=asked)
        nothing = acme.get(f"{acme.url}/events", params={name: str(uuid4()) for name in asked})
        assert (foreign.json()["items"], foreign.json()["next_cursor"]) == ([], None)
        assert foreign.json() == nothing.json()
        assert other.get(f"{other.url}/events", params=asked).json()["items"]


def test_pages_go_on_in_both_directions(acme, admin):
    whole = admin.get(LOG, params={"customer_id": acme.id}).json()["items"]
    for order, expected in (("desc", whole), ("asc", whole[::-1])):
        seen, asked = [], {"customer_id": acme.id, "limit": 1, "order": order}
        while True:
            page = admin.get(LOG, params=asked).json()
            seen += page["items"]
            if page["next_cursor"] is None:
                break
            asked["cursor"] = page["next_cursor"]
        assert seen == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"customer_id": "a b"},
        {"customer_id": "acme_corp\n"},
        {"stream_id": "x"},
        {"type": 'run."'},
        {"actor": "\u00e9"},
        {"actor": "::"},
        {"actor": "a\\"},
        {"correlation_id": "x" * 201},
        {"from": "yesterday"},
        {"order": "sideways"},
        {"limit": 201},
        {"cursor": "WyIxIiwiMiJd"},
        {"cursor": "WyItMSJd"},
    ],
)
def test_what_cannot_be_asked(admin, asked):
    assert admin.get(LOG, params=asked).status_code == 422


def test_signs_with_a_meaning_in_patterns_have_none_here(acme, admin):
    for sign in (".*", "%", "_", "[a-z]", "(", "$", "customer:acme|admin", "+"):
        for name in ("type", "actor", "correlation_id"):
            answer = admin.get(LOG, params={name: sign, "customer_id": acme.id})
            assert (answer.status_code, answer.json()["items"]) == (200, []), (name, sign)


def test_an_event_that_cannot_be_read_hides_no_other(alone):
    acme = alone.onboard()
    with psycopg.connect(alone.service.dsn) as owner:
        owner.execute("UPDATE stored_events SET topic = 'customer.unheard-of@9' WHERE notification_id = 2")
    whole = acme.get(f"{acme.url}/events").json()["items"]
    assert [event["position"] for event in whole if event["unreadable"]] == [2]
    assert "no such topic is known" in whole[-2]["unreadable"]
    assert whole[-1]["type"] == "customer.onboarded@1"


@pytest.fixture
def alone(postgres_server, migrated_template, tmp_path):
    """A server of one's own."""
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick()) as server,
    ):
        yield server


def test_the_admin_key_is_needed(anyone, acme):
    assert anyone.get(LOG).status_code == 401
    assert acme.get(LOG).status_code == 401
    assert anyone.get(LOG, headers=ADMIN).status_code == 200
