"""`convergence notifications`: what is shown, and what was given up is tried again."""

import json

import pytest

from adapters.notifications import deliveries
from domain.notification import DeliveryState
from tests.application.world import World, migrated
from tests.cli.audit import Terminal
from tests.notifications.past import follow, states


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def told(database_url, tmp_path):
    """A world whose only mail was given up."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as world:
        world.onboard()
        follow(world)
        claimed = deliveries.claim(world.datastore, mailed=True)
        deliveries.settle(world.datastore, claimed, DeliveryState.DEAD, "The mail server did not take it.")
        yield world


def test_what_was_given_up_is_shown_and_tried_again(told, tmp_path):
    terminal = Terminal(told.dsn, tmp_path)
    [[row]] = terminal.lines("notifications", "list", "--state", "DEAD")
    assert (row["kind"], row["deliveries"][0]["last_error"]) == ("welcome", "The mail server did not take it.")
    assert "admin@acmecorp.com" not in json.dumps(row)
    again = terminal.run("notifications", "replay", row["notification_id"])
    assert (again.returncode, again.stdout) == (0, f"{row['notification_id']}: 1 receiver tried again.\n")
    assert states(told) == [("welcome", "PENDING", 0)]
    once_more = terminal.run("notifications", "replay", row["notification_id"])
    assert (once_more.returncode, "nothing to replay" in once_more.stdout) == (1, True)
