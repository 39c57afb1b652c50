"""Nobody waits for another customer's endpoints: not for slow ones, nor for those that have heaped up much."""

import json
import re
import threading
from datetime import timedelta
from uuid import uuid4

import pytest

from adapters.notifications.addresses import any_address
from adapters.notifications.deliverer import Deliverer
from adapters.notifications.deliveries import _CLAIM_MAIL, _CLAIM_WEBHOOK
from adapters.notifications.webhooks import Poster, Webhooks
from domain.notification import Kind
from tests.application.world import until
from tests.notifications.past import delivering, endpoint, follow, hooks
from tests.notifications.receiver import receiving


def backlog(world, url, *quick: str) -> None:
    """Four endpoints of acme at `url`, for which something is due, and after that one of beta at each of `quick`."""
    for _ in range(4):
        endpoint(world, url, Kind.SUSPENDED)
    world.suspend()
    world.onboard("beta")
    for other in quick:
        endpoint(world, other, Kind.SUSPENDED, customer_id="beta")
    world.suspend("beta")
    follow(world)
    world.execute("UPDATE notification_deliveries SET due_at = due_at - interval '1 hour' WHERE customer_id = 'acme'")


class Few(Webhooks):
    at_once = 4
    each = 2


class Unfair(Few):
    """The control: one customer may have every thread."""

    each = 4


def test_the_slow_endpoints_of_one_customer_leave_threads_to_others(world, service, receiver):
    with receiving() as slow:
        slow.go.clear()
        backlog(world, slow.url(), receiver.url())
        with delivering(service, Unfair(service, Poster(allow=any_address, plain=True))):
            until(lambda: slow.at_once == 4)
            assert receiver.got == []
            slow.go.set()
        world.execute("UPDATE notification_deliveries SET state = 'PENDING', due_at = clock_timestamp()")
        receiver.got.clear()
        slow.go.clear()
        with delivering(service, Few(service, Poster(allow=any_address, plain=True))):
            until(lambda: len(receiver.got) == 1)
            assert slow.at_once <= 2
            slow.go.set()


@pytest.mark.parametrize(("rest", "next_one"), [(1000, "beta"), (0, "acme")])
def test_an_endpoint_that_failed_rests_while_others_are_served(world, service, receiver, rest, next_one):
    """Without a rest, which is the control, the one that has failed and has most to get comes first again."""
    backlog(world, receiver.url(), receiver.url())
    receiver.answers = [(500, {})]
    deliverer = Deliverer(service.datastore, hooks(service), threading.Event(), rest=rest, wait=lambda _: timedelta())
    for _ in range(4):
        claimed = deliverer._next()
        deliverer._in_hand.append(claimed)
        deliverer._deliver(claimed)
    world.execute("UPDATE notification_deliveries SET due_at = due_at - interval '2 hours' WHERE customer_id = 'acme'")
    assert deliverer._next().customer_id == next_one


def rows_read_in_vain(world, query: bytes) -> int:
    values = {"claim": uuid4(), "lease": timedelta(), "mail": "mail", "busy": ["many", "mail"], "full": []}
    with world.datastore.reading() as cursor:
        [row] = cursor.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + query, values).fetchall()
    return sum(map(int, re.findall(r'"Rows Removed by Filter": (\d+)', json.dumps(row))))


def test_what_one_endpoint_has_heaped_up_is_not_read_to_find_another_ones(world):
    world.suspend()
    follow(world)
    world.tamper(
        "WITH heap AS (INSERT INTO notifications (notification_id, dedupe_key, customer_id, kind, occurred_at)"
        " SELECT gen_random_uuid(), i::text, 'acme', 'run.failed', now() FROM generate_series(1, 5000) i"
        " RETURNING notification_id) INSERT INTO notification_deliveries (notification_id, receiver, customer_id)"
        " SELECT notification_id, 'many', 'acme' FROM heap"
    )
    world.tamper(
        "INSERT INTO notification_deliveries (notification_id, receiver, customer_id)"
        " SELECT notification_id, 'one', 'acme' FROM notifications WHERE kind = 'customer.suspended'"
    )
    world.tamper("ANALYZE notifications, notification_deliveries")
    assert rows_read_in_vain(world, _CLAIM_WEBHOOK) < 10
    in_order_of_time = _CLAIM_MAIL.replace(b"receiver = %(mail)s", b"receiver <> ALL(%(busy)s)")
    assert rows_read_in_vain(world, in_order_of_time) >= 5000
