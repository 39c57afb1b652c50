"""Erasing a customer over HTTP: meant, at once, and without a trace of whose the id was."""

from uuid import uuid4

import pytest

from tests.faults.commands import CREDENTIAL, WEBHOOK
from tests.http.running import application


def erase(admin, acme, name=None, **body):
    given = {"confirm": acme.id, "reason": "Asked to.", **body}
    headers = {"Idempotency-Key": name} if name else {}
    return admin.post(f"/api/v1/admin/customers/{acme.id}/erase", json=given, headers=headers)


@pytest.mark.parametrize("confirm", ["", "acme", "{id} ", "{ID}"])
def test_it_has_to_be_meant(admin, acme, confirm):
    given = confirm.format(id=acme.id, ID=acme.id.upper())
    answer = erase(admin, acme, confirm=given)
    assert answer.status_code == 422
    assert acme.get(acme.url).status_code == 200


def test_what_is_left_of_it(admin, anyone, acme, api):
    before = admin.get(f"/api/v1/admin/customers/{acme.id}/erasure").json()
    assert (before["erased_at"], before["complete"]) == (None, False)
    answer = erase(admin, acme)
    assert answer.status_code == 200, answer.text
    view = answer.json()
    assert view["customer_id"] == acme.id
    assert view["steps"]["data_keys"] is not None
    assert view["complete"] is False  # there is no projector
    assert admin.get(f"/api/v1/admin/customers/{acme.id}/erasure").json()["erased_at"] == view["erased_at"]

    assert acme.get(acme.url).status_code == 401
    assert acme.run().status_code == 401
    assert admin.get(acme.url).status_code == 404
    assert admin.post(f"/api/v1/admin/customers/{acme.id}/suspend", json={"reason": "x"}).status_code == 404
    events = admin.get("/api/v1/admin/events", params={"customer_id": acme.id}).json()["items"]
    assert events[0]["type"] == "customer.erased@1"
    assert "ACME Corporation" not in str(events)

    taken = api.onboard()
    stranger = [anyone.post("/api/v1/customers/onboard", json=application(c.id)) for c in (acme, taken)]
    operator = admin.post("/api/v1/customers/onboard", json=application(acme.id))
    assert {a.status_code for a in (*stranger, operator)} == {409}
    assert len({a.json()["detail"] for a in (*stranger, operator)}) == 1
    assert acme.post("/api/v1/customers/onboard", json=application(acme.id)).status_code == 401


def test_asked_again_it_says_the_same(admin, acme):
    name = uuid4().hex
    first = erase(admin, acme, name)
    again, other = erase(admin, acme, name), erase(admin, acme, uuid4().hex)
    assert first.json()["erased_at"] == again.json()["erased_at"] == other.json()["erased_at"]
    events = admin.get("/api/v1/admin/events", params={"customer_id": acme.id}).json()["items"]
    assert [event["type"] for event in events].count("customer.erased@1") == 1


def test_a_request_that_meets_an_erasure_on_its_way_is_told_to_come_back(api, acme):
    """The keys are gone, and the request was let in before."""
    api.service.vault.destroy(acme.id)
    for part, body in (("credentials", CREDENTIAL), ("webhook-endpoints", WEBHOOK)):
        answer = acme.post(f"{acme.url}/{part}", json=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
