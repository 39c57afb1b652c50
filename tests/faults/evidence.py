"""A log with its seals and signed heads, and hands that are laid on it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg.rows import dict_row

from adapters.bootstrap import Service, build
from adapters.chain.check import check
from adapters.chain.findings import Checked, Kind
from adapters.chain.heads import HeadsFile
from adapters.chain.signing import signer
from adapters.postgres import seals
from adapters.postgres.event_log import EventRecorder
from adapters.postgres.maintenance import maintenance
from adapters.postgres.seals import Seal, Sealed, Stored
from adapters.settings import Settings
from application.chain import START, entry, link
from tests.http.running import NOWHERE

EACH = 20
"""Events under one seal."""
ROUNDS = 5


@contextmanager
def opened(dsn: str, directory: Path, **settings: Any) -> Iterator[Service]:
    """A service whose BigQuery is away, unless the settings name one."""
    service = build(Settings(**{"data_dir": directory, "bigquery_emulator_host": NOWHERE, **settings}), dsn)
    try:
        yield service
    finally:
        service.close()


def append(service: Service, events: int = EACH, *, recorder: EventRecorder | None = None) -> None:
    """Events that nobody can read: what seals them does not ask."""
    stream = uuid4()
    stored = [
        StoredEvent(stream, version, "run.unheard-of@7", b'{"n": %d}' % version) for version in range(1, events + 1)
    ]
    with service.datastore.transaction_cursor() as cursor:
        (recorder or service.store.recorder).append(cursor, stored, ["acme"] * events)


def skip_position(service: Service) -> None:
    """A transaction that drew a position and was rolled back: the log has a gap there."""
    with service.datastore.reading() as cursor:
        cursor.execute("SELECT nextval('stored_events_notification_id_seq')")


def seal(service: Service) -> Sealed:
    with maintenance(service.dsn, name="test") as connection:
        end = seals.last(connection)
        while sealed := seals.seal_next(connection, end):
            end = sealed
    return end


def sign(service: Service, end: Sealed) -> None:
    head = signer(service.keys, service.data_keys).sign(
        position=end.position, events=end.events, log_hash=end.hash, at=service.now()
    )
    HeadsFile(service.settings.heads_file).append([head])


def write_history(service: Service) -> None:
    """Five times: twenty events, their seal, a signed head, then a gap. Within each twenty there is another gap.

    They stand at 1 to 10 and 12 to 21, then 23 to 32 and 34 to 43, and so on: 22 positions further each time.
    """
    for _ in range(ROUNDS):
        append(service, EACH // 2)
        skip_position(service)
        append(service, EACH // 2)
        sign(service, seal(service))
        skip_position(service)


def checked(service: Service, **options: Any) -> Checked:
    return check(service, bigquery=False, **options)


def found(service: Service, **options: Any) -> set[tuple[Kind, int]]:
    """What a check finds, and where."""
    return {(finding.kind, finding.position) for finding in checked(service, **options).findings}


def as_owner(service: Service, *statements: str) -> None:
    with psycopg.connect(service.dsn) as connection:
        for statement in statements:
            connection.execute(statement)


def rewrite_seals(service: Service) -> None:
    """Make every seal anew over what stands there now, as somebody would who knows how."""
    with psycopg.connect(service.dsn, row_factory=dict_row) as owner:
        before, previous = START, 0
        for old in list(seals.seals_to(owner, 2**62)):
            events = [e for e in seals.events_to(owner, old.last_position) if e.position > previous]
            previous = old.last_position
            if not events:
                owner.execute("DELETE FROM log_seals WHERE last_position = %s", (old.last_position,))
                continue
            new = over(events, before)
            owner.execute(
                "UPDATE log_seals SET first_position = %s, last_position = %s, events = %s, digests = %s, hash = %s"
                " WHERE last_position = %s",
                (new.first_position, new.last_position, new.events, new.digests, new.hash, old.last_position),
            )
            before = new.hash


def over(events: Sequence[Stored], before: bytes) -> Seal:
    """The seal over these events."""
    digests = b""
    for event in events:
        digests += entry(event.position, event.digest())
        before = link(before, event.position, event.digest())
    return Seal(events[0].position, events[-1].position, len(events), digests, before)
