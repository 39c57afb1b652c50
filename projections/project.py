"""From one event to the changes it makes to rows: pure, so that a replay makes the same rows."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from domain import customer, pipeline_run, subscription
from domain.envelope import Envelope
from projections import customers, runs, subscriptions
from projections.rows import Change, RowChange

Rows = Callable[[Any, Envelope], Iterator[RowChange]]

_ROWS: Final[dict[type, Rows]] = {
    **dict.fromkeys(customer.CustomerEvent.__args__, customers.rows),
    **dict.fromkeys(subscription.SubscriptionEvent.__args__, subscriptions.rows),
    **dict.fromkeys(pipeline_run.RunEvent.__args__, runs.rows),
}


def changes_of(event: object, at: Envelope) -> Iterator[Change]:
    """The row changes of one event, at its position in the log."""
    for row in _ROWS[type(event)](event, at):
        yield Change(row, at.position, at.customer_id)
