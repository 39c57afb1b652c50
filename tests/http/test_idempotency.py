"""A request that names itself has one effect, and one answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from tests.http.running import ADMIN, application

ONBOARD = "/api/v1/customers/onboard"
CONFIG = {"provider": "GCP", "domain": "COST", "source_project_id": "acme-gcp-project", "source_dataset": "billing"}
SCHEDULE = {"provider": "GCP", "domain": "COST", "pipeline_template": "cost_billing", "schedule_cron": "0 2 * * *"}
CREDENTIAL = {
    "provider": "AWS",
    "credential_type": "ACCESS_KEY",
    "credential_name": "n",
    "credentials": {"secret": "hunter2"},
}


def posts(acme):
    return {
        f"{acme.url}/provider-configs": CONFIG,
        f"{acme.url}/credentials": CREDENTIAL,
        f"{acme.url}/team-members": {"email": "jo@acmecorp.com", "name": "Jo"},
        f"/api/v1/scheduler/customer/{acme.id}/pipelines": SCHEDULE,
    }


def named():
    return {"Idempotency-Key": uuid4().hex}


def items(acme, url):
    return acme.get(url).json()["items"]


def test_a_repeat_gets_the_same_answer(acme):
    for url, body in posts(acme).items():
        name = named()
        first, second = (acme.post(url, json=body, headers=name) for _ in range(2))
        assert first.status_code == second.status_code == 200
        assert first.content == second.content
        assert "Idempotency-Replayed" not in first.headers
        assert second.headers["Idempotency-Replayed"] == "true"
        assert second.headers["content-type"] == "application/json"
        assert len(items(acme, url)) == 1


def test_a_name_belongs_to_one_request_of_one_caller(acme, api):
    url, name = f"{acme.url}/provider-configs", named()
    assert acme.post(url, json=CONFIG, headers=name).status_code == 200
    assert acme.post(url, json=CONFIG | {"source_dataset": "other"}, headers=name).status_code == 422
    assert acme.post(f"{acme.url}/team-members", json=CONFIG, headers=name).status_code == 422
    other = api.onboard()
    assert other.post(f"{other.url}/provider-configs", json=CONFIG, headers=name).status_code == 200


def test_sixteen_at_once_have_one_effect(acme):
    url, name, start = f"{acme.url}/provider-configs", named(), threading.Barrier(16)

    def one(_):
        start.wait()
        return acme.post(url, json=CONFIG, headers=name)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(16)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 409)
    assert len(items(acme, url)) == 1


def forget_answers(api):
    """What a crash between the effect and its answer leaves behind, two minutes later."""
    with api.service.datastore.reading() as cursor:
        cursor.execute(
            "UPDATE idempotent_requests SET status = NULL, headers = NULL, body = NULL,"
            " created_at = created_at - interval '121 seconds'"
        )


def test_a_crash_before_the_answer_is_harmless(api, acme):
    made = {}
    for url, body in posts(acme).items():
        name = named()
        made[url] = name, body, acme.post(url, json=body, headers=name).json()
    forget_answers(api)
    for url, (name, body, first) in made.items():
        assert acme.post(url, json=body, headers=name).json() == first
        assert len(items(acme, url)) == 1


def test_a_request_in_hand_is_not_begun_again(api, acme):
    url, name = f"{acme.url}/provider-configs", named()
    acme.post(url, json=CONFIG, headers=name)
    with api.service.datastore.reading() as cursor:
        cursor.execute("UPDATE idempotent_requests SET status = NULL WHERE key = %s", (name["Idempotency-Key"],))
    assert acme.post(url, json=CONFIG, headers=name).status_code == 409


def test_a_name_is_free_again_after_a_day(api, acme):
    url, name = f"{acme.url}/team-members", named()
    acme.post(url, json={"email": "jo@acmecorp.com", "name": "Jo"}, headers=name)
    with api.service.datastore.reading() as cursor:
        cursor.execute("UPDATE idempotent_requests SET created_at = created_at - interval '24 hours 1 second'")
    assert acme.post(url, json={"email": "al@acmecorp.com", "name": "Al"}, headers=name).json()["name"] == "Al"
    assert len(items(acme, url)) == 2


def test_runs(acme):
    name = named()
    first, second = acme.run(headers=name), acme.run(headers=name)
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert first.headers["Location"] == second.headers["Location"]
    assert len(items(acme, f"{acme.url}/pipelines")) == 1
    assert acme.get(f"{acme.url}/usage").json()["pipelines_run_today"] == 1


def test_runs_after_a_crash(api, acme):
    name = named()
    first = acme.run(headers=name)
    forget_answers(api)
    assert acme.run(headers=name).json()["run_id"] == first.json()["run_id"]
    assert acme.get(f"{acme.url}/usage").json()["pipelines_run_today"] == 1


def test_an_issued_key_is_never_replayed(api, acme):
    name = named()
    first = acme.post(f"{acme.url}/api-keys", headers=name).json()
    second = acme.post(f"{acme.url}/api-keys", headers=name)
    assert first["api_key"]
    assert second.status_code == 200
    assert second.json() == first | {"api_key": None, "message": second.json()["message"]}
    forget_answers(api)
    third = acme.post(f"{acme.url}/api-keys", headers=name)
    assert third.status_code == 200
    assert third.json() == second.json()
    assert len([key for key in items(acme, f"{acme.url}/api-keys") if key["is_active"]]) == 2


def key_of(api, acme, *scopes):
    answer = acme.post(f"{acme.url}/api-keys", json={"name": " ".join(scopes), "scopes": scopes})
    return api.client({"X-API-Key": answer.json()["api_key"]})


def test_an_answer_is_given_again_only_to_a_key_that_could_have_asked(api, acme):
    readers, configurers = key_of(api, acme, "runs:read"), key_of(api, acme, "config:write")
    url, name = f"{acme.url}/provider-configs", named()
    first = acme.post(url, json=CONFIG, headers=name)
    assert readers.post(url, json=CONFIG, headers=name).status_code == 403
    assert readers.post(url, json=CONFIG | {"source_dataset": "other"}, headers=name).status_code == 403
    again = configurers.post(url, json=CONFIG, headers=name)
    assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true"), "the control: it is kept"
    onboarding, name = application(acme.id), named()
    assert acme.post(ONBOARD, json=onboarding, headers=name).status_code == 200
    for limited in (readers, configurers):
        assert limited.post(ONBOARD, json=onboarding, headers=name).status_code == 403
    assert acme.post(ONBOARD, json=onboarding, headers=name).headers["Idempotency-Replayed"] == "true"


def test_a_suspended_customer_gets_no_answer_again(acme, admin):
    url, name = f"{acme.url}/provider-configs", named()
    assert acme.post(url, json=CONFIG, headers=name).status_code == 200
    assert admin.post(f"/api/v1/admin/customers/{acme.id}/suspend", json={"reason": "test"}).status_code == 200
    assert acme.post(url, json=CONFIG, headers=name).status_code == 403
    assert admin.post(f"/api/v1/admin/customers/{acme.id}/reactivate", json={"reason": "test"}).status_code == 200
    assert acme.post(url, json=CONFIG, headers=name).headers["Idempotency-Replayed"] == "true"


def test_an_onboarding_is_never_replayed_with_its_key(api):
    api.app.state.api.warehouse_flag.lower()
    client, name, body = api.client(), named(), application(f"new_{uuid4().hex[:8]}")
    first, second = (client.post(ONBOARD, json=body, headers=name).json() for _ in range(2))
    assert first["api_key"]
    assert second["api_key"] is None
    assert first["api_key"] not in str(second)


def test_refusals_that_can_pass_are_not_kept(acme, admin):
    limits = f"/api/v1/admin/customers/{acme.id}/limits"
    admin.patch(limits, json={"max_pipelines_per_day": 0, "max_team_members": 0, "reason": "test"})
    run, person = named(), named()
    jo = {"email": "jo@acmecorp.com", "name": "Jo"}
    assert acme.run(headers=run).status_code == 429
    assert acme.post(f"{acme.url}/team-members", json=jo, headers=person).status_code == 403
    admin.patch(limits, json={"max_pipelines_per_day": 5, "max_team_members": 5, "reason": "test"})
    assert acme.run(headers=run).status_code == 202
    assert acme.post(f"{acme.url}/team-members", json=jo, headers=person).status_code == 200


def test_a_wrong_body_leaves_the_name_free(acme):
    url, name = f"{acme.url}/provider-configs", named()
    assert acme.post(url, json={}, headers=name).status_code == 422
    assert acme.post(url, json=CONFIG, headers=name).status_code == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, b"\xe9"])
def test_names_that_are_no_names(acme, key):
    answer = acme.post(f"{acme.url}/provider-configs", json=CONFIG, headers={"Idempotency-Key": key})
    assert answer.status_code == 400


def test_a_name_without_a_valid_caller(anyone, acme):
    name = named()
    for headers in ({}, {"X-API-Key": "x"}):
        answer = anyone.post(f"{acme.url}/provider-configs", json=CONFIG, headers=headers | name)
        assert answer.status_code == 401
    assert anyone.post("/api/v1/scheduler/trigger", headers=ADMIN | name).status_code == 200
