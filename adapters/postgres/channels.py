"""How processes wake each other: PostgreSQL's LISTEN and NOTIFY, in the transaction that gave the reason."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

from psycopg import Cursor

from adapters.postgres.json_rows import json_of
from application.mapper import Recorded
from application.topics import Event
from domain import customer_events, run_events, subscription_events
from domain.envelope import Envelope

LOG: Final = "convergence_log"
"""Events were appended: projectors go on."""

QUEUE: Final = "convergence_queue"
"""A run waits, a place came free, or a customer was suspended, whose waiting runs end: workers look."""

HANDED: Final = "convergence_handed"
"""A run was handed to a worker that had offered itself; the payload is the offer."""

SCHEDULES: Final = "convergence_schedules"
"""A next slot changed: schedulers look."""

ENDED: Final = "convergence_ended"
"""Runs ended; the payload names them, separated by commas."""

KEYS: Final = "convergence_keys"
"""What API keys prove has changed; the payload names the customers, separated by commas, or nobody for all."""

STOP: Final = "convergence_stop"
"""A running run was asked to stop."""

NOTIFICATIONS: Final = "convergence_notifications"
"""Something is to be told to a customer."""

DATA_KEYS: Final = "convergence_data_keys"
"""A customer's data keys were renewed or destroyed; the payload is its id, in lower case. Who has them forgets them."""

_WAITING: Final = (
    run_events.RunScheduled,
    run_events.RunRequeued,
    subscription_events.SlotReleased,
    subscription_events.PlanChanged,
    subscription_events.LimitsOverridden,
    subscription_events.Suspended,
    subscription_events.Reactivated,
)
# Not RunScheduled: it moves the next slot away, and who sleeps until the old one finds that in time.
_RESCHEDULED: Final = (
    customer_events.PipelineConfigured,
    customer_events.PipelineChanged,
    customer_events.Reactivated,
    customer_events.SchedulesResumed,
)
_ENDED: Final = (run_events.RunCompleted, run_events.RunFailed, run_events.RunCancelled, run_events.RunSkipped)
_REKEYED: Final = (
    customer_events.ApiKeyIssued,
    customer_events.ApiKeyRetired,
    customer_events.ApiKeyRevoked,
    customer_events.Suspended,
    customer_events.Reactivated,
    customer_events.Erased,
)
_CUSTOMERS_PER_MESSAGE: Final = 150  # of at most 50 characters and a comma
_IDS_PER_MESSAGE: Final = 200  # of 36 bytes and a comma: PostgreSQL takes 8,000 bytes


def announce(cursor: Cursor[Any], recorded: Sequence[Recorded]) -> frozenset[str]:
    """Tell whoever listens what these events mean for them, once the transaction commits.

    Returns the customers whose API keys prove something else from then on.
    """
    messages: dict[tuple[str, str], None] = {(LOG, ""): None}
    about: dict[type[Event], list[Envelope]] = {}
    for r in recorded:
        about.setdefault(type(r.event), []).append(r.envelope)

    def of(kinds: Iterable[type[Event]]) -> Iterator[Envelope]:
        return chain.from_iterable(about.get(kind, ()) for kind in kinds)

    # What was handed over as it came waits for nobody.
    claimed = {envelope.stream_id for envelope in of([run_events.RunClaimed])}
    if any(envelope.stream_id not in claimed for envelope in of(_WAITING)):
        messages[QUEUE, ""] = None
    if any(of(_RESCHEDULED)):
        messages[SCHEDULES, ""] = None
    for envelope in of([run_events.CancelRequested]):
        messages[STOP, str(envelope.stream_id)] = None
    rekeyed = {envelope.customer_id for envelope in of(_REKEYED)}
    ended = [str(envelope.stream_id) for envelope in of(_ENDED)]
    for start in range(0, len(ended), _IDS_PER_MESSAGE):
        messages[ENDED, ",".join(ended[start : start + _IDS_PER_MESSAGE])] = None
    customers = sorted(rekeyed)
    for start in range(0, len(customers), _CUSTOMERS_PER_MESSAGE):
        messages[KEYS, ",".join(customers[start : start + _CUSTOMERS_PER_MESSAGE])] = None
    cursor.execute(
        "SELECT pg_notify(c, p) FROM json_to_recordset(%s) AS m(c text, p text)",
        (json_of([{"c": channel, "p": payload} for channel, payload in messages]),),
        prepare=True,
    )
    return frozenset(rekeyed)
