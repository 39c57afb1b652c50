"""Notifications over HTTP: endpoints, their secrets, and what customers and operators see of deliveries."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import pytest
from standardwebhooks import Webhook

from adapters.notifications import deliveries
from adapters.notifications.addresses import any_address
from adapters.notifications.deliverer import Deliverer
from adapters.notifications.outbox import Outbox
from adapters.notifications.webhooks import Poster, Webhooks
from adapters.postgres.channels import LOG
from adapters.postgres.channels import NOTIFICATIONS as NEWS
from adapters.postgres.listener import Listener
from adapters.projector import Follower
from domain.notification import DeliveryState
from domain.projection import NOTIFICATIONS
from tests.application.world import until
from tests.http.running import Quick, Running, database, running
from tests.notifications.receiver import receiving


@pytest.fixture(scope="module")
def api(postgres_server, migrated_template, tmp_path_factory) -> Iterator[Running]:
    """A server on a laptop, where endpoints may be anywhere."""
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(
            dsn, tmp_path_factory.mktemp("api"), engine=Quick(), webhook_private_addresses=True, open_onboarding=True
        ) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def receiver():
    with receiving() as made:
        yield made


@contextmanager
def telling(api: Running) -> Iterator[None]:
    """The outbox's follower and the deliverer of webhooks, woken by the database as in a projector."""
    stop = Event()
    outbox = Outbox(api.service.datastore, api.service.now)
    deliverer = Deliverer(api.service.datastore, Webhooks(api.service, Poster(allow=any_address, plain=True)), stop)
    follower = Follower(api.service, NOTIFICATIONS, outbox.handle, stop, checkpoints=outbox)
    listener = Listener(api.service.dsn, {LOG: lambda _: follower.wake.set(), NEWS: lambda _: deliverer.wake.set()})
    for thread in (listener, deliverer, follower):
        thread.start()
    try:
        yield
    finally:
        stop.set()
        follower.wake.set()
        deliverer.wake.set()
        listener.stop()
        deliverer.join()
        follower.join()


def added(acme, receiver, *kinds):
    body = {"url": receiver.url(), **({"kinds": list(kinds)} if kinds else {})}
    answer = acme.post(f"{acme.url}/webhook-endpoints", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_endpoint_is_tested_told_and_removed(api, acme, admin, receiver):
    with telling(api):
        made = added(acme, receiver, "quota.80", "quota.100")
        url = f"{acme.url}/webhook-endpoints/{made['endpoint_id']}"
        queued = acme.post(f"{url}/test")
        assert queued.status_code == 202
        until(lambda: queued.json()["notification_id"] in receiver.ids)
        admin.patch(f"/api/v1/admin/customers/{acme.id}/limits", json={"max_pipelines_per_day": 1, "reason": "test"})
        assert acme.run().status_code == 202
        until(lambda: len(acme.get(f"{acme.url}/notifications", params={"kind": "quota.100"}).json()["items"]) == 1)
        [told] = acme.get(f"{acme.url}/notifications", params={"kind": "quota.100"}).json()["items"]
        until(lambda: told["notification_id"] in receiver.ids)
    for _, headers, body in receiver.got:
        if headers["webhook-id"] in {told["notification_id"], queued.json()["notification_id"]}:
            content = Webhook(made["secret"]).verify(body, dict(headers))
            assert content["data"]["customer_id"] == acme.id
            assert "acmecorp.com" not in body.decode()
    assert [d["by"] for d in told["deliveries"]] == ["mail", "webhook"]
    assert acme.delete(url).status_code == 204
    assert acme.delete(url).status_code == 404
    assert acme.post(f"{url}/test").status_code == 404
    assert acme.get(f"{acme.url}/webhook-endpoints").json()["items"] == []


def test_a_secret_is_shown_once(api, acme, receiver):
    named = {"Idempotency-Key": acme.id}
    body = {"url": receiver.url()}
    first = acme.post(f"{acme.url}/webhook-endpoints", json=body, headers=named).json()
    second = acme.post(f"{acme.url}/webhook-endpoints", json=body, headers=named).json()
    assert first["secret"].startswith("whsec_")
    assert second == {**first, "secret": None, "message": second["message"]}
    with api.service.datastore.reading() as cursor:
        cursor.execute("DELETE FROM idempotent_requests")
    third = acme.post(f"{acme.url}/webhook-endpoints", json=body, headers=named).json()
    assert (third["secret"], third["endpoint_id"]) == (None, first["endpoint_id"])
    [shown] = acme.get(f"{acme.url}/webhook-endpoints").json()["items"]
    assert "secret" not in shown
    assert first["secret"] not in acme.get(f"{acme.url}/events").text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": "ftp://hooks.acmecorp.com/"},
        {"url": "https://user:@hooks.acmecorp.com/"},
        {"url": "https://hooks.acmecorp.com/#x"},
        {"url": "https://hooks.acmecorp.com:99999/"},
        {"url": "https:///x"},
        {"url": "https://[::1/"},
        {"url": "https://hooks.acmecorp.com/\\@10.0.0.1"},
        {"url": "https://hooks.acmecorp.com/" + "x" * 300},
        {"url": "https://hooks.acmecorp.com/", "kinds": []},
        {"url": "https://hooks.acmecorp.com/", "kinds": ["welcome"]},
        {"url": "https://hooks.acmecorp.com/", "kinds": ["test"]},
        {"url": "https://hooks.acmecorp.com/", "kinds": ["run.exploded"]},
    ],
)
def test_what_is_no_endpoint_is_refused(acme, body):
    assert acme.post(f"{acme.url}/webhook-endpoints", json=body).status_code == 422


def test_ten_endpoints_are_the_most(acme, receiver):
    for _ in range(10):
        added(acme, receiver)
    assert acme.post(f"{acme.url}/webhook-endpoints", json={"url": receiver.url()}).status_code == 403


def test_what_was_given_up_is_listed_and_replayed(api, acme, admin, receiver):
    made = added(acme, receiver)
    queued = acme.post(f"{acme.url}/webhook-endpoints/{made['endpoint_id']}/test").json()
    claimed = deliveries.claim(api.service.datastore, mailed=False)
    deliveries.settle(api.service.datastore, claimed, DeliveryState.DEAD, "The endpoint answered with status 500.")
    [dead] = admin.get("/api/v1/admin/notifications", params={"state": "DEAD", "customer_id": acme.id}).json()["items"]
    assert dead["notification_id"] == queued["notification_id"]
    [delivery] = dead["deliveries"]
    assert (delivery["state"], delivery["last_error"]) == ("DEAD", "The endpoint answered with status 500.")
    assert "convergence_notifications_dead 1.0" in admin.get("/metrics").text
    problems = [p["problem"] for p in admin.get("/api/v1/scheduler/status").json()["problems"]]
    assert "1 delivery of a notification was given up." in problems
    replay = f"/api/v1/admin/notifications/{dead['notification_id']}/replay"
    [delivery] = admin.post(replay).json()["deliveries"]
    assert (delivery["state"], delivery["attempts"]) == ("PENDING", 0)
    assert admin.post(replay).status_code == 409
    assert admin.post(replay.replace(dead["notification_id"], acme.id)).status_code == 422


def test_a_customer_sees_its_own_page_by_page(api, acme, receiver):
    other = api.onboard()
    ids = []
    for customer in (acme, other, acme, acme):
        made = added(customer, receiver)
        ids += [customer.post(f"{customer.url}/webhook-endpoints/{made['endpoint_id']}/test").json()]
    mine = {queued["notification_id"] for queued in (ids[0], *ids[2:])}
    first = acme.get(f"{acme.url}/notifications", params={"limit": 2, "kind": "test"}).json()
    second = acme.get(f"{acme.url}/notifications", params={"cursor": first["next_cursor"], "kind": "test"}).json()
    assert {item["notification_id"] for item in first["items"] + second["items"]} == mine
    assert second["next_cursor"] is None
    assert acme.get(f"{acme.url}/notifications", params={"cursor": "x"}).status_code == 422
