"""The log, searched: by customer, stream, type, actor, correlation and time, with a bound on what one search reads.

There is no index for most of these. A search reads a bounded stretch of the log, of a customer's events or of one
stream, and says how far it came.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from eventsourcing.persistence import Notification
from psycopg.sql import SQL, Composable

from adapters.postgres.event_log import Datastore, Reads
from adapters.postgres.reads import history
from adapters.postgres.reads.stored import COLUMNS, notifications
from application.mapper import envelope_of, told_as
from application.topics import UPCASTERS
from domain.envelope import Envelope

SCANNED: Final = 20_000
"""How many events one search reads at most."""
_PAGE: Final = 1_000
# Compared and ordered by both columns: only the index of customers' events has them in that order. By position alone
# the whole log may be walked for a customer that has few events in it.
_OF_CUSTOMER: Final = SQL("(customer_id, notification_id) >= (%s, %s) AND (customer_id, notification_id) < (%s, %s)")
_OF_STREAM: Final = SQL(
    "(originator_id, originator_version) >= (%s, %s) AND (originator_id, originator_version) < (%s, %s)"
)
_FOLLOWING: Final = (
    COLUMNS + " WHERE (customer_id, notification_id) > (%(customer)s, %(after)s)"
    " AND (customer_id, notification_id) <= (%(customer)s, 9223372036854775807)"
    " ORDER BY customer_id, notification_id LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events: of a customer, of a stream, of types that begin so, by an actor, of one correlation, of a span.

    `actor` is a whole one or its first parts: `admin` finds `admin/next` too. `since` is included, `until` is not.
    """

    customer_id: str | None = None
    stream_id: UUID | None = None
    type: str | None = None
    actor: str | None = None
    correlation_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def everything(self) -> bool:
        """Whether all events of the customer, of the stream or of the log are wanted."""
        return all(w is None for w in (self.type, self.actor, self.correlation_id, self.since, self.until))

    def of_type(self, topic: str) -> bool:
        """Whether events of that name are wanted."""
        return topic.startswith(self.type or "")

    def holds(self, stored: Notification, envelope: Envelope | None, shown_actor: Callable[[str], str]) -> bool:
        """Whether the event is wanted. One whose envelope cannot be read is where its time alone would decide."""
        if not any(map(self.of_type, told_as(stored))):
            return False
        if envelope is None:
            return self.actor is None and self.correlation_id is None
        return (
            _is_or_begins(shown_actor(envelope.by.actor), self.actor)
            and self.correlation_id in {None, envelope.by.correlation_id}
            and (self.since is None or envelope.at >= self.since)
            and (self.until is None or envelope.at < self.until)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found. With a `next` position there may be more: go on there. `searched_to` is included."""

    events: Sequence[Notification]
    next: int | None
    searched_to: int


@dataclass(frozen=True, slots=True)
class _Axis:
    """Along which index the search goes, and between which of its values: `low` is included, `high` is not."""

    where: SQL
    order: tuple[SQL, ...]
    owner: tuple[Any, ...]
    low: int
    high: int

    @property
    def value(self) -> SQL:
        """What the bounds are values of."""
        return self.order[-1]

    @property
    def parameters(self) -> tuple[Any, ...]:
        """Those of `where`."""
        return *self.owner, self.low, *self.owner, self.high


def _same(actor: str) -> str:
    return actor


def search(
    datastore: Datastore,
    wanted: Wanted,
    *,
    reads: Reads | None = None,
    after: int | None = None,
    limit: int,
    oldest_first: bool = False,
    scanned: int = SCANNED,
    shown_actor: Callable[[str], str] = _same,
) -> Found:
    """At most `limit` wanted events beyond the position `after`, the newest first unless said otherwise.

    `shown_actor` is how actors are told to the one who asks, and so what he can ask for. Events are read through
    `reads` where it is given: of the whole log only instants are looked at then, to find where a span of time lies.
    """
    rows: Reads = reads or datastore
    low, high = history.span(datastore, wanted.since, wanted.until)
    if after is not None:
        low, high = (max(low, after + 1), high) if oldest_first else (low, min(high, after))
    last = max(high - 1, 0) if oldest_first else low
    axis = _axis(rows, wanted, low, high)
    edge = None if wanted.everything else _edge(rows, axis, scanned, oldest_first=oldest_first)
    if edge is not None:
        value, last = edge
        axis = replace(axis, high=value + 1) if oldest_first else replace(axis, low=value)
    found: list[Notification] = []
    for stored in _candidates(rows, wanted, axis, limit + 1, oldest_first=oldest_first):
        if wanted.holds(stored, envelope_of(stored), shown_actor):
            found.append(stored)
            if len(found) > limit:
                return Found(found[:limit], found[limit - 1].id, found[limit - 1].id)
    return Found(found, None if edge is None else last, last)


def following(datastore: Datastore, customer_id: str, *, after: int, limit: int) -> list[Notification]:
    """At most `limit` stored events of the customer, its subscription and its runs, after a position of the log."""
    with datastore.reading() as cursor:
        wanted = {"customer": customer_id, "after": after, "limit": limit}
        found = cursor.execute(_FOLLOWING, wanted, prepare=True).fetchall()
    return notifications(found)


def _axis(reads: Reads, wanted: Wanted, low: int, high: int) -> _Axis:
    position = SQL("notification_id")
    if wanted.stream_id is not None:
        if wanted.customer_id is not None and history.owner(reads, wanted.stream_id) != wanted.customer_id:
            # Answered as one that never was: how far a search comes in it would tell that it is there.
            return _Axis(_OF_STREAM, (SQL("originator_id"), SQL("originator_version")), (wanted.stream_id,), 1, 1)
        low = history.version(reads, wanted.stream_id, low - 1) + 1
        high = history.version(reads, wanted.stream_id, high - 1) + 1
        return _Axis(_OF_STREAM, (SQL("originator_id"), SQL("originator_version")), (wanted.stream_id,), low, high)
    if wanted.customer_id is not None:
        return _Axis(_OF_CUSTOMER, (SQL("customer_id"), position), (wanted.customer_id,), low, high)
    return _Axis(SQL("notification_id >= %s AND notification_id < %s"), (position,), (), low, high)


def _edge(reads: Reads, axis: _Axis, scanned: int, *, oldest_first: bool) -> tuple[int, int] | None:
    """Where a search that reads so many events ends: the value on its axis, and the position; None if all are read."""
    select: LiteralString = "SELECT {0} AS value, notification_id AS position FROM stored_events"
    query = _query(select, axis, SQL("true"), oldest_first=oldest_first)
    with reads.reading() as cursor:
        row = cursor.execute(
            query + SQL(" OFFSET %s LIMIT 1"), (*axis.parameters, scanned - 1), prepare=True
        ).fetchone()
    return None if row is None else (row["value"], row["position"])


def _candidates(
    reads: Reads, wanted: Wanted, axis: _Axis, enough: int, *, oldest_first: bool
) -> Iterator[Notification]:
    """All that may be wanted on that part of the axis; the database leaves out most of what is not."""
    conditions, parameters = _conditions(wanted)
    page = min(enough, _PAGE)
    while axis.low < axis.high:
        query = _query(COLUMNS, axis, conditions, oldest_first=oldest_first) + SQL(" LIMIT %s")
        with reads.reading() as cursor:
            rows = cursor.execute(query, (*axis.parameters, *parameters, page), prepare=True, binary=True).fetchall()
        found = notifications(rows)
        yield from found
        if len(found) < page:
            return
        value = found[-1].id if wanted.stream_id is None else found[-1].originator_version
        axis = replace(axis, low=value + 1) if oldest_first else replace(axis, high=value)
        page = _PAGE


def _query(select: LiteralString, axis: _Axis, conditions: Composable, *, oldest_first: bool) -> Composable:
    direction = SQL("ASC" if oldest_first else "DESC")
    order = SQL(", ").join(SQL("{} {}").format(column, direction) for column in axis.order)
    text = SQL(select + " WHERE {1} AND {2} ORDER BY {3}")
    return text.format(axis.value, axis.where, conditions, order)


def _conditions(wanted: Wanted) -> tuple[Composable, list[Any]]:
    """What the database can tell of events without failing at one that somebody spoilt: it looks at the bytes."""
    conditions: list[Composable] = [SQL("true")]
    parameters: list[Any] = []
    if wanted.stream_id is not None and wanted.customer_id is not None:
        conditions.append(SQL("customer_id = %s"))
        parameters.append(wanted.customer_id)
    if wanted.type is not None:
        # What an old event is told as now, its data decide.
        conditions.append(SQL("(starts_with(topic, %s) OR topic = ANY(%s))"))
        parameters += [wanted.type, list(UPCASTERS)]
    for name, value, end in (("actor", wanted.actor, '["/:]'), ("correlation_id", wanted.correlation_id, '"')):
        if value is not None:
            # The first of the two is several times as fast, and leaves little for the second.
            conditions.append(SQL("position(%s IN state) > 0 AND encode(state, 'escape') ~ %s"))
            parameters += [value.encode(), rf'"{name}"\s*:\s*"{re.escape(value)}{end}']
    return SQL(" AND ").join(conditions), parameters


def _is_or_begins(actor: str, wanted: str | None) -> bool:
    return wanted is None or actor == wanted or actor.startswith((f"{wanted}:", f"{wanted}/"))
