"""Who may call what. The matrix is made from the OpenAPI document: a route that nobody decided about fails."""

import json
import re
from datetime import timedelta
from uuid import uuid4

import pytest

from adapters.worker import process_one
from tests.http.running import ADMIN, Quick, database, running

ID = "/api/v1/customers/{customer_id}"
CALLERS = {
    "open": {
        "GET /livez",
        "GET /metrics",
        "GET /readyz",
        "POST /api/v1/api-keys/leaks",
        "POST /api/v1/customers/onboard",
        "POST /webhooks/stripe",
    },
    "customer": {
        f"GET {ID}",
        f"PATCH {ID}",
        f"GET {ID}/api-keys",
        f"POST {ID}/api-keys",
        f"DELETE {ID}/api-keys/{{key_id}}",
        f"GET {ID}/credentials",
        f"POST {ID}/credentials",
        f"DELETE {ID}/credentials/{{credential_id}}",
        f"GET {ID}/provider-configs",
        f"POST {ID}/provider-configs",
        f"DELETE {ID}/provider-configs/{{config_id}}",
        f"GET {ID}/team-members",
        f"POST {ID}/team-members",
        f"DELETE {ID}/team-members/{{member_id}}",
        f"GET {ID}/webhook-endpoints",
        f"POST {ID}/webhook-endpoints",
        f"DELETE {ID}/webhook-endpoints/{{endpoint_id}}",
        f"POST {ID}/webhook-endpoints/{{endpoint_id}}/test",
        f"GET {ID}/notifications",
        f"GET {ID}/bigquery-readers",
        f"POST {ID}/bigquery-readers",
        f"DELETE {ID}/bigquery-readers/{{grant_id}}",
        f"GET {ID}/usage",
        f"GET {ID}/usage/history",
        f"GET {ID}/events",
        f"GET {ID}/pipelines",
        "GET /api/v1/scheduler/customer/{customer_id}/pipelines",
        "POST /api/v1/scheduler/customer/{customer_id}/pipelines",
        "PATCH /api/v1/scheduler/customer/{customer_id}/pipelines/{config_id}",
        "DELETE /api/v1/scheduler/customer/{customer_id}/pipelines/{config_id}",
        "POST /api/v1/scheduler/customer/{customer_id}/pipelines/{config_id}/backfill",
        "GET /api/v1/scheduler/customer/{customer_id}/backfills/{backfill_id}",
        "POST /api/v1/scheduler/customer/{customer_id}/pause",
        "POST /api/v1/scheduler/customer/{customer_id}/resume",
        "POST /api/v1/pipelines/run/{customer_id}/{provider}/{domain}/{template}",
    },
    "known": {
        "GET /api/v1/pipelines/templates",
        "GET /api/v1/pipelines/runs/{run_id}",
        "POST /api/v1/pipelines/runs/{run_id}/cancel",
        "POST /api/v1/pipelines/runs/{run_id}/retry",
    },
    "admin": {
        "POST /api/v1/scheduler/trigger",
        "POST /api/v1/scheduler/process-queue",
        "GET /api/v1/scheduler/status",
        "GET /api/v1/admin/customers",
        "POST /api/v1/admin/customers/{customer_id}/suspend",
        "POST /api/v1/admin/customers/{customer_id}/reactivate",
        "PUT /api/v1/admin/customers/{customer_id}/plan",
        "PATCH /api/v1/admin/customers/{customer_id}/limits",
        "POST /api/v1/admin/customers/{customer_id}/usage/reset",
        "POST /api/v1/admin/customers/{customer_id}/usage/recount",
        "POST /api/v1/admin/customers/{customer_id}/erase",
        "GET /api/v1/admin/customers/{customer_id}/erasure",
        "GET /api/v1/admin/customers/{customer_id}/decryptions",
        "GET /api/v1/admin/notifications",
        "POST /api/v1/admin/notifications/{notification_id}/replay",
        "GET /api/v1/admin/customers/{customer_id}/billing",
        "GET /api/v1/admin/billing/problems",
        "GET /api/v1/admin/events",
        "GET /api/v1/admin/streams/{stream_id}",
        "GET /api/v1/admin/projections",
        "POST /api/v1/admin/projections/{projection}/skip",
        "POST /api/v1/admin/projections/rebuild",
        "GET /api/v1/admin/projections/verify",
    },
}
BAD_KEYS = [
    None,
    "",
    "acme",
    "acme_corp_api_xK9mPqWz7LnR4vYt",
    "x" * 8_000,
    "{id}_api_AAAAAAAAAAAAAAAA",
    "{id}",
    b"\xe9\xff_api_",
    "'; DROP TABLE customer_api_keys; --",
]


def operations(kind):
    return sorted(tuple(route.split(" ", 1)) for route in CALLERS[kind])


def address(path, customer_id, other="x"):
    filled = path.replace("{customer_id}", customer_id).replace("{stream_id}", customer_id)
    filled = filled.replace("{run_id}", str(uuid4()))
    filled = filled.replace("{provider}/{domain}/{template}", "gcp/example/dryrun")
    return re.sub(r"\{[a-z_]+\}", other, filled)


def call(client, method, path, **options):
    body = {} if method in {"POST", "PUT", "PATCH"} else None
    headers = {"Prefer": "respond-async", **options.pop("headers", {})}
    return client.request(method, path, json=body, headers=headers, **options)


def test_every_route_has_a_caller(anyone):
    document = anyone.get("/openapi.json").json()
    routes = {f"{m.upper()} {path}" for path, item in document["paths"].items() for m in item}
    assert routes == set().union(*CALLERS.values())


@pytest.mark.parametrize("operation", operations("customer"), ids=" ".join)
def test_a_customers_route(api, acme, anyone, admin, operation):
    method, path = operation
    other = api.onboard()
    assert call(anyone, method, address(path, acme.id)).status_code == 401
    own = call(acme, method, address(path, acme.id))
    assert own.status_code in {200, 202, 204, 404, 422}, own.text
    foreign = [call(acme, method, address(path, i)) for i in (other.id, "nobody_at_all", acme.id.upper(), "a%00b", "é")]
    assert {answer.status_code for answer in foreign} == {403}
    assert len({answer.content for answer in foreign}) == 1
    operator = call(admin, method, address(path, acme.id))
    assert operator.status_code in {200, 202, 204, 404, 409, 422}, operator.text
    missing = [call(admin, method, address(path, i)) for i in ("nobody_at_all", "a%00b", "é", "a")]
    assert {answer.status_code for answer in missing} == {404}


@pytest.mark.parametrize("operation", operations("known"), ids=" ".join)
def test_a_route_for_any_key(api, acme, anyone, admin, operation):
    method, path = operation
    run_id = api.onboard().run().json()["run_id"]
    assert call(anyone, method, address(path, acme.id)).status_code == 401
    if "{run_id}" not in path:
        assert call(acme, method, path).status_code == 200
        assert call(admin, method, path).status_code == 200
        return
    addresses = [path.replace("{run_id}", i) for i in (run_id, str(uuid4()), "x", "a%00b", run_id.upper())]
    foreign = [call(acme, method, a) for a in addresses]
    assert {answer.status_code for answer in foreign} == {404}
    assert len({answer.content for answer in foreign}) == 1
    assert call(admin, method, addresses[0]).status_code in {200, 202, 409}


@pytest.mark.parametrize(("method", "path"), operations("admin"))
def test_an_operators_route(acme, anyone, admin, method, path):
    refused = [
        call(anyone, method, address(path, acme.id)),
        call(acme, method, address(path, acme.id)),
        call(acme, method, address(path, "nobody_at_all")),
        call(anyone, method, address(path, acme.id), headers={"X-Admin-Key": "admin_key_1234"}),
        call(anyone, method, address(path, acme.id), headers={"X-Admin-Key": b"\xff\xfe"}),
        call(anyone, method, address(path, acme.id), headers={"X-Admin-Key": acme.key}),
    ]
    assert {answer.status_code for answer in refused} == {401}
    assert len({answer.content for answer in refused}) == 1
    assert call(admin, method, address(path, acme.id)).status_code in {200, 422}
    if "{customer_id}" in path:
        assert call(admin, method, address(path, "nobody_at_all")).status_code == 404


@pytest.mark.parametrize(("method", "path"), operations("open"))
def test_an_open_route(anyone, method, path):
    # Stripe's signature stands in for a key: without the secret to check it there is no answer yet.
    assert call(anyone, method, path).status_code in ({503} if path == "/webhooks/stripe" else {200, 422})


def test_every_bad_key_gets_the_same_answer(acme, anyone):
    answers = []
    for key in BAD_KEYS:
        text = key.replace("{id}", acme.id) if isinstance(key, str) else key
        answers.append(anyone.get(acme.url, headers={} if text is None else {"X-API-Key": text}))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {'ApiKey realm="convergence"'}


def test_a_revoked_key_is_dead(acme, anyone):
    issued = acme.post(f"{acme.url}/api-keys").json()
    second = {"X-API-Key": issued["api_key"]}
    assert anyone.get(acme.url, headers=second).status_code == 200
    assert acme.delete(f"{acme.url}/api-keys/{issued['api_key_id']}").status_code == 204
    assert anyone.get(acme.url, headers=second).status_code == 401
    assert acme.delete(f"{acme.url}/api-keys/{issued['api_key_id']}").status_code == 404


def test_a_key_ends_after_ninety_days_to_the_second(api, acme):
    expires = timedelta(days=90)
    with api.clock.moved(seconds=expires.total_seconds() - 30):
        warnings = acme.get(acme.url).json()["warnings"]
    assert [w["days_left"] for w in warnings] == [1]
    assert acme.key[-4:] in warnings[0]["message"]
    with api.clock.moved(days=90):
        assert acme.get(acme.url).status_code == 401


def test_a_warning_comes_on_day_76(api, acme):
    with api.clock.moved(days=75, hours=23):
        assert acme.get(acme.url).json()["warnings"] == []
    with api.clock.moved(days=76):
        assert acme.get(acme.url).json()["warnings"][0]["days_left"] == 14


def test_a_replaced_key_works_for_another_day(api, acme):
    new = acme.post(f"{acme.url}/api-keys").json()["api_key"]
    with api.clock.moved(hours=23, minutes=59):
        assert acme.get(acme.url).json()["warnings"] == []
    with api.clock.moved(hours=24):
        assert acme.get(acme.url).status_code == 401
        assert acme.get(acme.url, headers={"X-API-Key": new}).status_code == 200


def test_a_suspended_customer(acme, admin, api):
    run_id = acme.run().json()["run_id"]
    assert admin.post(f"/api/v1/admin{acme.url[7:]}/suspend", json={"reason": "Unpaid."}).status_code == 200
    for path in (acme.url, f"/api/v1/pipelines/runs/{run_id}", "/api/v1/pipelines/templates"):
        answer = acme.get(path)
        assert (answer.status_code, answer.json()["detail"]) == (403, "Account suspended")
        assert answer.json()["customer_id"] == acme.id
    active = api.onboard()
    suspended, usual = acme.get("/api/v1/customers/other_one"), active.get("/api/v1/customers/other_one")
    assert (suspended.status_code, suspended.content) == (403, usual.content)
    admin.post(f"/api/v1/admin{acme.url[7:]}/reactivate", json={"reason": "Paid."})
    assert acme.get(acme.url).json()["status"] == "ACTIVE"


def test_both_admin_keys_work_during_a_change(postgres_server, migrated_template, tmp_path):
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick(), admin_api_key="the-old-one", admin_api_key_next="the-new-one") as api,
    ):
        client = api.client()
        answers = {k: client.get("/api/v1/scheduler/status", headers={"X-Admin-Key": k}).status_code for k in KEYS}
    assert answers == {"the-old-one": 200, "the-new-one": 200, "admin_key_12345": 401, "the-old-on": 401}


KEYS = ("the-old-one", "the-new-one", "admin_key_12345", "the-old-on")


def test_who_did_it_is_recorded(api, acme):
    run_id = acme.run(headers={"X-Request-ID": "req-42"}).json()["run_id"]
    process_one(api.service, "w", run_id)
    answer = acme.get(f"/api/v1/pipelines/runs/{run_id}")
    timeline = answer.json()["timeline"]
    assert [m["event"] for m in timeline] == ["run.scheduled", "run.claimed", "run.step-finished", "run.completed"]
    [key] = acme.get(f"{acme.url}/api-keys").json()["items"]
    asked_by = f"customer:{acme.id}/{key['api_key_id']}"
    assert [m["by"] for m in timeline] == [asked_by, "worker:w", "worker:w", "worker:w"]
    with api.service.datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT state FROM stored_events WHERE originator_id = %s ORDER BY originator_version LIMIT 1", (run_id,)
        ).fetchone()
    assert json.loads(bytes(row["state"]))["request_id"] == "req-42"


def test_request_ids_are_checked_and_returned(anyone):
    assert anyone.get("/livez", headers={"X-Request-ID": "a-good_one.1"}).headers["X-Request-ID"] == "a-good_one.1"
    for bad in ("x" * 101, "a b", "<script>", b"\xe9"):
        assert anyone.get("/livez", headers={"X-Request-ID": bad}).headers["X-Request-ID"] != bad


def test_both_headers_and_the_admin_key_is_wrong(acme):
    assert acme.get(acme.url, headers={"X-Admin-Key": "no"}).status_code == 401
    assert acme.get("/api/v1/scheduler/status", headers=ADMIN).status_code == 200
