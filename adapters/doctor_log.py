"""What the doctor looks at in the log: that this code can read every event, and that the service cannot change one."""

from collections.abc import Iterator
from typing import Final

from eventsourcing.persistence import StoredEvent
from psycopg import Connection
from psycopg.rows import DictRow

from adapters.finding import Finding, Result
from adapters.postgres import privileges
from adapters.progress import Tell, untold
from application.mapper import UnreadableEvent, check
from application.topics import TOPICS, UPCASTERS

NEWEST: Final = 20_000
"""How many events are decoded when not all of the log is: about a second's worth."""
_PAGE: Final = 5_000
_NAMED: Final = 3
_READABLE: Final = "events that can be read"
_UNCHANGEABLE: Final = "events that stay"
_PAGE_OF_EVENTS: Final = (
    "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
    " WHERE notification_id > %s ORDER BY notification_id LIMIT %s"
)


def examine_log(connection: Connection[DictRow], *, whole: bool = False, tell: Tell = untold) -> list[Finding]:
    """Look at the topics of all events, and decode the newest, or with `whole` every one. Nothing is written.

    The log may be that of another version of this code: that is when it is worth a look.
    """
    there = connection.execute("SELECT to_regclass('stored_events') IS NOT NULL AS there").fetchone()
    if not there or not there["there"]:
        return []
    return [_readable(connection, whole=whole, tell=tell), _unchangeable(connection)]


def _readable(connection: Connection[DictRow], *, whole: bool, tell: Tell) -> Finding:
    topics = connection.execute(
        "SELECT topic, count(*) AS events, min(notification_id) AS first FROM stored_events GROUP BY topic"
    ).fetchall()
    total = sum(row["events"] for row in topics)
    strange = [row for row in topics if row["topic"] not in TOPICS and row["topic"] not in UPCASTERS]
    problems: list[str] = []
    looked_at = 0
    unreadable = 0
    for position, problem in _decoded(connection, whole=whole, total=total, tell=tell):
        looked_at += 1
        if problem is not None:
            unreadable += 1
            problems += [f"position {position}: {problem}"] if len(problems) < _NAMED else []
    if strange or unreadable:
        known = [f"{row['events']} of unknown topic {row['topic']}, first at {row['first']}" for row in strange]
        detail = "; ".join([*known, *problems]) + f" ({unreadable} unreadable of {looked_at} decoded, {total} in all)"
        remedy = "They need the version that wrote them, or an upcaster: docs/evolution.md. Do not start this one."
        return Finding(_READABLE, Result.FAIL, detail, remedy)
    rest = "" if looked_at >= total else f", the newest {looked_at} decoded; --whole-log decodes all"
    return Finding(_READABLE, Result.OK, f"{total} events of {len(topics)} topics, all known{rest}")


def _decoded(
    connection: Connection[DictRow], *, whole: bool, total: int, tell: Tell
) -> Iterator[tuple[int, str | None]]:
    """Positions of events, and what is wrong with each that cannot be read."""
    row = connection.execute("SELECT coalesce(max(notification_id), 0) AS last FROM stored_events").fetchone()
    after = 0 if whole or row is None else max(row["last"] - NEWEST, 0)
    done = 0
    while page := connection.execute(_PAGE_OF_EVENTS, (after, _PAGE)).fetchall():
        for stored in page:
            yield stored["notification_id"], _problem(stored)
        after = page[-1]["notification_id"]
        done += len(page)
        if whole:
            tell("decoding the log", done, max(total, done))


def _problem(row: DictRow) -> str | None:
    try:
        check(StoredEvent(row["originator_id"], row["originator_version"], row["topic"], bytes(row["state"])))
    except UnreadableEvent as error:
        return str(error)
    return None


def _unchangeable(connection: Connection[DictRow]) -> Finding:
    with connection.transaction(force_rollback=True):
        privileges.take_role(connection)
        service_may = privileges.may_change_events(connection)
    if service_may:
        remedy = "Run `convergence migrate` with a login that may make roles: see docs/operating.md."
        return Finding(_UNCHANGEABLE, Result.WARN, "The service may alter and delete events.", remedy)
    if privileges.may_change_events(connection):
        return Finding(_UNCHANGEABLE, Result.OK, "the service may append and read; the login it starts from may more")
    return Finding(_UNCHANGEABLE, Result.OK, "the service may append and read")
