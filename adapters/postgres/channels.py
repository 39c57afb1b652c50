"""How processes wake each other: PostgreSQL's LISTEN and NOTIFY, in the transaction that gave the reason."""

from collections.abc import Sequence
from typing import Any, Final

from psycopg import Cursor

from adapters.postgres.json_rows import json_of
from application.mapper import Recorded
from domain import customer_events, run_events, subscription_events

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

_WAITING = (
    run_events.RunScheduled
    | run_events.RunRequeued
    | subscription_events.SlotReleased
    | subscription_events.PlanChanged
    | subscription_events.LimitsOverridden
    | subscription_events.Suspended
    | subscription_events.Reactivated
)
# Not RunScheduled: it moves the next slot away, and who sleeps until the old one finds that in time.
_RESCHEDULED = (
    customer_events.PipelineConfigured
    | customer_events.PipelineChanged
    | customer_events.Reactivated
    | customer_events.SchedulesResumed
)
_ENDED = run_events.RunCompleted | run_events.RunFailed | run_events.RunCancelled | run_events.RunSkipped
_REKEYED = (
    customer_events.ApiKeyIssued
    | customer_events.ApiKeyRetired
    | customer_events.ApiKeyRevoked
    | customer_events.Suspended
    | customer_events.Reactivated
    | customer_events.Erased
)
_CUSTOMERS_PER_MESSAGE: Final = 150  # of at most 50 characters and a comma
_IDS_PER_MESSAGE: Final = 200  # of 36 bytes and a comma: PostgreSQL takes 8,000 bytes


def announce(cursor: Cursor[Any], recorded: Sequence[Recorded]) -> frozenset[str]:
    """Tell whoever listens what these events mean for them, once the transaction commits.

    Returns the customers whose API keys prove something else from then on.
    """
    messages: dict[tuple[str, str], None] = {(LOG, ""): None}
    ended: list[str] = []
    rekeyed: set[str] = set()
    # What was handed over as it came waits for nobody.
    claimed = {r.envelope.stream_id for r in recorded if isinstance(r.event, run_events.RunClaimed)}
    for r in recorded:
        event = r.event
        if isinstance(event, _WAITING) and r.envelope.stream_id not in claimed:
            messages[QUEUE, ""] = None
        if isinstance(event, _RESCHEDULED):
            messages[SCHEDULES, ""] = None
        if isinstance(event, _ENDED):
            ended.append(str(r.envelope.stream_id))
        if isinstance(event, run_events.CancelRequested):
            messages[STOP, str(r.envelope.stream_id)] = None
        if isinstance(event, _REKEYED):
            rekeyed.add(r.envelope.customer_id)
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
