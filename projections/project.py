"""From one event to the changes it makes to rows: pure, so that a replay makes the same rows."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from domain import billing_events, customer_events, run_events, subscription_events
from domain.envelope import Envelope
from domain.projection import EventSkipped
from projections import billing, customers, run_logs, runs, skips, subscriptions
from projections.rows import Change, RowChange

Rows = Callable[[Any, Envelope], Iterator[RowChange]]

_CENTRAL: Final[dict[type, Rows]] = {
    **{kind: customers.rows.dispatch(kind) for kind in customer_events.CustomerEvent.__args__},
    **{kind: subscriptions.rows.dispatch(kind) for kind in subscription_events.SubscriptionEvent.__args__},
    **{kind: runs.rows.dispatch(kind) for kind in run_events.RunEvent.__args__},
    **{kind: billing.rows.dispatch(kind) for kind in billing_events.BillingEvent.__args__},
    EventSkipped: skips.rows,
}
_CUSTOMER: Final[dict[type, Rows]] = {
    **{kind: run_logs.rows.dispatch(kind) for kind in run_events.RunEvent.__args__},
    customer_events.Erased: customers.own_rows,
}


def central_rows(event: object, at: Envelope) -> Iterator[RowChange]:
    """The rows of one event in the central tables: the same wherever in the log it stands."""
    return _CENTRAL[type(event)](event, at)


def changes_of(event: object, at: Envelope) -> Iterator[Change]:
    """All row changes of one event, at its position in the log."""
    for row in central_rows(event, at):
        yield Change(row, at.position, at.customer_id)
    if own := _CUSTOMER.get(type(event)):
        for row in own(event, at):
            yield Change(row, at.position, at.customer_id)
