"""Deliveries: at least once, never twice at the same time, later and later, and given up at last."""

import multiprocessing
import os
import signal
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from adapters.bootstrap import build
from adapters.notifications import deliveries
from adapters.notifications.deliverer import jittered
from adapters.notifications.deliveries import claim, replay, settle
from adapters.notifications.letters import Letters
from adapters.notifications.webhooks import Poster, Webhooks, retry_after
from adapters.settings import Settings
from domain.notification import ATTEMPTS, DeliveryState, Kind, wait_after
from domain.refusals import Conflict, NotFound
from tests.application.world import until
from tests.notifications.conftest import NOWHERE
from tests.notifications.past import deliver, delivering, endpoint, failing_run, follow, hooks, states
from tests.notifications.receiver import receiving


def due(world) -> None:
    world.execute("UPDATE notification_deliveries SET due_at = clock_timestamp() WHERE state = 'PENDING'")


def test_a_webhook_is_signed_and_names_nobody(world, service, receiver):
    endpoint_id, secret = endpoint(world, receiver.url(), Kind.RUN_FAILED)
    run_id = failing_run(world)
    follow(world)
    deliver(service, hooks(service))
    [(path, headers, body)] = receiver.got
    told = Webhook(secret).verify(body, dict(headers))
    assert path == "/hooks"
    assert told["type"] == "run.failed"
    assert told["data"] == {"customer_id": "acme", "run_id": run_id}
    assert datetime.fromisoformat(told["timestamp"]).tzinfo is not None
    assert states(world, endpoint_id) == [("run.failed", "DELIVERED", 1)]
    for wrong, altered in ((endpoint(world, receiver.url())[1], body), (secret, body.replace(b"acme", b"beta"))):
        with pytest.raises(WebhookVerificationError):
            Webhook(wrong).verify(altered, dict(headers))


def test_what_fails_is_tried_again_under_the_same_id_until_it_arrives(world, service, receiver):
    endpoint_id, _ = endpoint(world, receiver.url(), Kind.SUSPENDED)
    receiver.answers = [(500, {}), (302, {"Location": "/elsewhere"}), (204, {})]
    world.suspend()
    follow(world)
    with delivering(service, hooks(service)):
        until(lambda: states(world, endpoint_id) == [("customer.suspended", "DELIVERED", 3)])
    assert len(receiver.got) == 3
    assert len(set(receiver.ids)) == 1
    assert len({body for *_, body in receiver.got}) == 1


def test_what_fails_for_days_is_given_up_and_can_be_replayed(world, service, receiver):
    endpoint_id, _ = endpoint(world, receiver.url(), Kind.SUSPENDED)
    receiver.answers = [(503, {"Retry-After": "3600"})]
    world.suspend()
    follow(world)
    [(state, text, wait)] = deliver(service, hooks(service))
    assert (state, text) == (DeliveryState.PENDING, "The endpoint answered with status 503.")
    assert wait == timedelta(hours=1)
    world.execute("UPDATE notification_deliveries SET attempts = %s", ATTEMPTS - 1)
    due(world)
    assert [state for state, *_ in deliver(service, hooks(service))] == [DeliveryState.DEAD]
    assert states(world, endpoint_id) == [("customer.suspended", "DEAD", ATTEMPTS)]
    due(world)
    assert deliver(service, hooks(service)) == []
    notification_id = world.scalar("SELECT notification_id FROM notifications WHERE kind = 'customer.suspended'")
    assert replay(world.datastore, notification_id) == 1
    with pytest.raises(Conflict):
        replay(world.datastore, notification_id)
    with pytest.raises(NotFound):
        replay(world.datastore, uuid4())
    receiver.answers = [(200, {})]
    deliver(service, hooks(service))
    assert states(world, endpoint_id) == [("customer.suspended", "DELIVERED", 1)]
    assert len(set(receiver.ids)) == 1


def test_waits_grow_to_half_a_day_and_end_after_about_three():
    waits = [wait_after(n) for n in range(1, ATTEMPTS)]
    assert waits[:3] == [timedelta(seconds=10), timedelta(seconds=40), timedelta(seconds=160)]
    assert waits == sorted(waits)
    assert max(waits) == timedelta(hours=12)
    assert timedelta(days=2.5) < sum(waits, timedelta()) < timedelta(days=3.5)
    assert all(wait_after(n) <= jittered(n) <= wait_after(n) * 1.2 for n in range(1, 40))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("120", timedelta(minutes=2)),
        ("9" * 400, timedelta(seconds=10**8)),
        ("Tue, 17 Nov 2025 12:01:00 GMT", timedelta(minutes=1)),
        ("Tue, 17 Nov 2025 11:00:00 GMT", timedelta()),
        ("soon", None),
        ("-5", None),
        ("Tue, 17 Nov 2025 11:00:00 +99999999999999999999", None),
        ("1 Jan 99999999999999999999 00:00:00 GMT", None),
        ("", None),
    ],
)
def test_when_a_receiver_asks_to_come_back(value, expected):
    assert retry_after(value, datetime(2025, 11, 17, 12, tzinfo=UTC)) == expected


def test_an_endpoint_that_is_gone_is_removed(world, service, receiver):
    endpoint_id, _ = endpoint(world, receiver.url())
    receiver.answers = [(410, {})]
    world.suspend()
    world.reactivate()
    follow(world)
    deliver(service, hooks(service))
    assert [state for _, state, _ in states(world, endpoint_id)] == ["DROPPED", "DROPPED"]
    assert len(receiver.got) == 1
    assert world.kinds()[-1] == "WebhookEndpointRemoved"
    assert world.row("customer_webhook_endpoints", endpoint_id=endpoint_id)["is_active"] is False


def test_of_several_deliverers_none_has_what_another_one_has(world, service, receiver):
    for _ in range(4):
        endpoint(world, receiver.url(), Kind.SUSPENDED, Kind.REACTIVATED)
    for _ in range(5):
        world.suspend()
        world.reactivate()
    follow(world)
    with delivering(service, *(hooks(service) for _ in range(3))):
        until(lambda: [state for _, state, _ in states(world)].count("DELIVERED") == 40)
    assert len(receiver.got) == 40
    assert sorted(receiver.ids.count(i) for i in set(receiver.ids)) == [4] * 10


def test_without_the_claim_they_would_make_the_same_ones(world):
    """The control: looks without claiming."""
    world.suspend()
    follow(world)
    first, second = (claim(world.datastore, mailed=True, lease=timedelta(seconds=-1)) for _ in range(2))
    assert first is not None
    assert (first.notification_id, first.receiver) == (second.notification_id, second.receiver)
    assert not settle(world.datastore, first, DeliveryState.DELIVERED)  # its claim has passed to the second


def test_a_slow_endpoint_holds_up_its_own_deliveries_only(world, service, receiver):
    with receiving() as slow:
        slow.go.clear()
        slow_id, _ = endpoint(world, slow.url(), Kind.SUSPENDED)
        quick_id, _ = endpoint(world, receiver.url(), Kind.SUSPENDED)
        for _ in range(20):
            world.suspend()
            world.reactivate()
        follow(world)
        with delivering(service, hooks(service)):
            until(lambda: len(receiver.got) == 20)
            assert slow.most_at_once <= 1
            slow.go.set()
            until(lambda: len(slow.got) == 20)
        assert slow.most_at_once == 1
        assert {state for _, state, _ in states(world, quick_id) + states(world, slow_id)} == {"DELIVERED"}


def killed_before_marking(dsn, data_dir, url, proxy) -> None:
    """A process that posts, past the proxy that its environment names, and is killed before it can say so."""
    os.environ.update(HTTP_PROXY=proxy, ALL_PROXY=proxy, NO_PROXY="", no_proxy="")
    httpx.post(url)  # the control: goes to the proxy
    service = build(Settings(data_dir=data_dir, bigquery_emulator_host=NOWHERE, webhook_private_addresses=True), dsn)
    claimed = deliveries.claim(service.datastore, mailed=False, lease=timedelta(milliseconds=200))
    assert claimed is not None
    Webhooks(service).deliver(claimed)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_before_it_could_say_so_leads_to_a_repeat_with_the_same_id(
    world, service, receiver, tmp_path
):
    endpoint_id, secret = endpoint(world, receiver.url(), Kind.SUSPENDED)
    world.suspend()
    follow(world)
    with receiving("127.0.0.2") as proxy:
        arguments = (world.dsn, tmp_path, receiver.url(), proxy.url("127.0.0.2"))
        process = multiprocessing.get_context("spawn").Process(target=killed_before_marking, args=arguments)
        process.start()
        process.join(60)
        assert (len(proxy.got), len(receiver.got)) == (1, 1)
    assert process.exitcode == -signal.SIGKILL
    assert states(world, endpoint_id) == [("customer.suspended", "PENDING", 1)]
    with delivering(service, hooks(service)):
        until(lambda: states(world, endpoint_id) == [("customer.suspended", "DELIVERED", 2)])
    first, second = receiver.got
    assert first[1]["webhook-id"] == second[1]["webhook-id"]
    for _, headers, body in receiver.got:
        Webhook(secret).verify(body, dict(headers))


def test_what_is_removed_or_destroyed_is_not_posted_to(world, service, receiver):
    endpoint_id, _ = endpoint(world, receiver.url(), Kind.SUSPENDED)
    world.suspend()
    follow(world)
    service.vault.destroy("acme")
    [(state, text, _)] = deliver(service, hooks(service))
    assert (state, text) == (DeliveryState.DROPPED, "The endpoint was removed.")
    assert receiver.got == []
    assert states(world, endpoint_id)[0][1] == "DROPPED"


def test_a_private_address_is_given_up_at_once(world, service, receiver):
    endpoint_id, _ = endpoint(world, "https://hooks.acmecorp.example/x", Kind.SUSPENDED)
    world.suspend()
    follow(world)
    poster = Poster(resolve=lambda _host, _port: ["169.254.169.254"])
    [(state, text, _)] = deliver(service, Webhooks(service, poster))
    assert (state, text) == (DeliveryState.DEAD, "The endpoint's host has an address that is not public.")
    assert states(world, endpoint_id)[0][1] == "DEAD"


def test_mails_do_not_wait_for_a_house_that_cannot_be_kept(world, service):
    world.suspend()
    follow(world)
    world.tamper("ALTER TABLE customer_api_keys RENAME COLUMN last4 TO elsewhere")
    try:
        with delivering(service, Letters(service)):
            until(lambda: {state for _, state, _ in states(world)} == {"DELIVERED"})
    finally:
        world.tamper("ALTER TABLE customer_api_keys RENAME COLUMN elsewhere TO last4")


def test_deliverers_go_on_when_the_database_comes_back(world, service, receiver):
    endpoint(world, receiver.url(), Kind.SUSPENDED)
    with delivering(service, hooks(service), Letters(service), lease_s=1) as wake:
        world.suspend()
        follow(world)
        world.tamper(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND application_name LIKE 'convergence service%%'"
        )
        wake()
        until(lambda: receiver.got)
