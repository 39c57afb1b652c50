"""What the tests of notifications do to a world: following its log, adding endpoints, delivering."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from adapters.bootstrap import Service
from adapters.notifications import deliveries
from adapters.notifications.addresses import any_address
from adapters.notifications.courier import Courier
from adapters.notifications.deliverer import Deliverer
from adapters.notifications.outbox import Outbox
from adapters.notifications.webhooks import Poster, Webhooks
from adapters.postgres.checkpoints import PostgresLog
from application.webhooks import AddWebhookEndpoint, add_webhook_endpoint
from domain.notification import Kind
from domain.projection import NOTIFICATIONS
from projections.follow import catch_up
from tests.application.world import World


def follow(world: World, page: int = 2_000) -> int:
    """Catch up with the outbox, as its follower does; how many events that were."""
    outbox = Outbox(world.datastore, lambda: world.at)
    log = PostgresLog(world.store.recorder, world.mapper)
    return catch_up(NOTIFICATIONS, log, outbox.handle, outbox, page=page)


def kinds(world: World) -> list[str]:
    """The kinds of all notifications, oldest first."""
    with world.datastore.reading() as cursor:
        rows = cursor.execute("SELECT kind FROM notifications ORDER BY created_at, kind").fetchall()
    return [row["kind"] for row in rows]


def states(world: World, receiver: str | None = None) -> list[tuple[str, str, int]]:
    """Kind, state and attempts of each delivery."""
    with world.datastore.reading() as cursor:
        rows = cursor.execute(
            "SELECT kind, state, attempts FROM notification_deliveries JOIN notifications USING (notification_id)"
            " WHERE %(r)s::text IS NULL OR receiver = %(r)s ORDER BY kind, receiver",
            {"r": receiver},
        ).fetchall()
    return [(row["kind"], row["state"], row["attempts"]) for row in rows]


def endpoint(world: World, url: str, *kinds: Kind, customer_id: str = "acme") -> tuple[str, str]:
    """An endpoint of a customer; its id and its secret."""
    wanted = {"kinds": kinds} if kinds else {}
    command = AddWebhookEndpoint(**world.stamp(), customer_id=customer_id, url=url, **wanted)
    secret = add_webhook_endpoint(command, world.platform, world.vault)
    assert secret is not None
    return command.endpoint_id, secret.get_secret_value()


def failing_run(world: World, customer_id: str = "acme") -> str:
    """A run whose worker dies again and again, until it is given up."""
    run_id = world.request(customer_id)
    while world.run(run_id)["state"] != "FAILED":
        world.execute("UPDATE pipeline_execution_queue SET not_before = NULL")
        world.claim()
        world.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 second'")
        world.take_over()
    return run_id


def hooks(service: Service, **more: Any) -> Webhooks:
    """A courier that posts to this machine."""
    return Webhooks(service, Poster(allow=any_address, plain=True, **more))


def deliver(service: Service, courier: Courier) -> list[Any]:
    """Make every delivery that is due, one after another, without waiting; what each came to."""
    deliverer = Deliverer(service.datastore, courier, threading.Event(), now=lambda: datetime.now(UTC))
    done = []
    while (claimed := deliveries.claim(service.datastore, mailed=courier.mailed)) is not None:
        outcome = deliverer._attempt(claimed)
        deliverer._settle(claimed, *outcome)
        done.append(outcome)
    return done


@contextmanager
def delivering(
    service: Service, *couriers: Courier, lease_s: float = 60, wait_s: float = 0.05
) -> Iterator[Callable[[], None]]:
    """Deliverers in threads of their own, for as long as the block lasts; gives what wakes them."""
    stop = threading.Event()
    threads = [
        Deliverer(
            service.datastore,
            courier,
            stop,
            lease=timedelta(seconds=lease_s),
            wait=lambda _: timedelta(seconds=wait_s),
        )
        for courier in couriers
    ]
    for thread in threads:
        thread.start()

    def wake() -> None:
        for thread in threads:
            thread.wake.set()

    try:
        yield wake
    finally:
        stop.set()
        wake()
        for thread in threads:
            thread.join()
