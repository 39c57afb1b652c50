"""Exporting the log into an archive: again and again into the same one, which then gets what is new."""

import fcntl
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, LiteralString

import msgspec
from psycopg import Connection
from psycopg.rows import DictRow

from adapters.archive.manifest import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    EventLine,
    File,
    KeyLine,
    Manifest,
    SealLine,
    Segment,
    read_manifest,
)
from adapters.archive.reading import check_files, lines_of, locked
from adapters.archive.writing import NewFile, replace, sync
from adapters.postgres import schema
from adapters.postgres.maintenance import maintenance
from adapters.process import Unable
from adapters.progress import Tell, untold
from application.chain import link

SEGMENT_EVENTS: Final = 20_000
_PAGE: Final = 2_000
_OURS: Final = re.compile(
    r"(?P<archived>(events|seals|data-keys|heads)-\d{6}\.jsonl\.gz)(\.partial)?|(manifest|unfinished)\.json\.partial"
)

_COLUMNS: Final = "SELECT notification_id, originator_id, originator_version, topic, state, customer_id"
_STRETCH: Final = "notification_id > %(after)s AND notification_id <= %(end)s"
_EVENTS: Final = f"{_COLUMNS} FROM stored_events WHERE {_STRETCH} ORDER BY notification_id LIMIT %(limit)s"
_EVENTS_OF: Final = (
    f"{_COLUMNS} FROM stored_events WHERE customer_id = %(customer)s AND {_STRETCH}"
    " ORDER BY notification_id LIMIT %(limit)s"
)
_END: Final = "SELECT max(notification_id) AS value FROM stored_events"
_END_OF: Final = f"{_END} WHERE customer_id = %(customer)s"
_COUNT: Final = (
    "SELECT count(*) AS value FROM stored_events WHERE notification_id > %(after)s AND notification_id <= %(end)s"
)
_COUNT_OF: Final = f"{_COUNT} AND customer_id = %(customer)s"
_KEYS: Final = (
    "SELECT customer_id, purpose, wrapped, created_at, name, version, retired_at, seals_personal FROM data_keys"
    " WHERE %(customer)s::text IS NULL OR customer_id = lower(%(customer)s)"
    " ORDER BY customer_id, purpose, created_at"
)
_SEALS: Final = (
    "SELECT last_position, first_position, events, digests, hash, sealed_at FROM log_seals"
    " WHERE last_position > %(after)s AND last_position <= %(end)s ORDER BY last_position"
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What the archive holds now; `added` is how many events this export brought."""

    directory: str
    customer_id: str | None
    events: int
    added: int
    last_position: int
    hash: str
    files: int


def export(
    dsn: str,
    directory: Path,
    *,
    customer_id: str | None = None,
    heads: Path | None = None,
    tell: Tell = untold,
    segment_events: int = SEGMENT_EVENTS,
) -> Exported:
    """Write the log up to where it ends now, or one customer's part of it, with what it takes to read it elsewhere.

    What an earlier export left in the directory is checked and kept; after an interruption the last whole segment
    counts. A finished export stays whole until the next one has ended. `heads` is the file of signed heads, if there
    is one. Raises `Unable` when the directory holds something else, or another log, or another process works on it,
    and `Away` when the database is.
    """
    with maintenance(dsn, name="export") as connection:
        end = _end(connection, customer_id)
        _prepare(directory)
        with locked(directory, fcntl.LOCK_EX):
            export = _Export(connection, directory, customer_id, end)
            before = export.manifest.events
            export.check(tell)
            export.write_events(tell, segment_events)
            export.finish(heads if customer_id is None else None)
    m = export.manifest
    return Exported(
        directory=str(directory),
        customer_id=customer_id,
        events=m.events,
        added=m.events - before,
        last_position=m.last_position,
        hash=m.hash.hex(),
        files=len(m.files),
    )


def _value(connection: Connection[DictRow], query: LiteralString, wanted: Mapping[str, Any]) -> int:
    row = connection.execute(query, wanted).fetchone()
    return (row["value"] if row else None) or 0


def _end(connection: Connection[DictRow], customer_id: str | None) -> int:
    if customer_id is None:
        return _value(connection, _END, {})
    end = _value(connection, _END_OF, {"customer": customer_id})
    if not end:
        raise Unable(f"There is no customer {customer_id}.")
    return end


def _prepare(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = {path.name for path in directory.iterdir()}
    manifests = there & {MANIFEST, UNFINISHED}
    for name in sorted(there - manifests):
        ours = _OURS.fullmatch(name)
        if ours is None:
            raise Unable(f"{directory} holds {name}, which is of no export: choose a directory of its own.")
        if not manifests and ours["archived"] == name:
            raise Unable(f"{directory} holds an export whose {MANIFEST} is gone: choose another directory.")
    directory.chmod(0o700)


class _Export:
    """One export: `manifest` grows from what the directory held to what it is to hold."""

    def __init__(self, connection: Connection[DictRow], directory: Path, customer_id: str | None, end: int) -> None:
        self._connection = connection
        self._directory = directory
        finished, unfinished = (read_manifest(directory / name) for name in (MANIFEST, UNFINISHED))
        # One that a finished export left behind, when it was killed at the very end, tells of less than that one.
        on_top = unfinished is not None and (finished is None or unfinished.revision == finished.revision)
        found = unfinished if on_top else finished
        if found is None:
            found = Manifest(created_at=datetime.now(UTC), customer_id=customer_id)
            replace(directory / UNFINISHED, [found.encoded()])
        if found.customer_id != customer_id:
            whose = "the whole log" if found.customer_id is None else f"the customer {found.customer_id}"
            raise Unable(f"{directory} holds an export of {whose}: choose another directory for this one.")
        self.manifest = found
        self._wanted = {"customer": customer_id, "after": found.last_position, "end": end}

    def check(self, tell: Tell) -> None:
        """Raises `Unable` unless everything in the directory is as it was written, and of this log."""
        check_files(self._directory, self.manifest, tell)
        if not self.manifest.segments:
            return
        segment = self.manifest.segments[-1]
        *_, last = lines_of(self._directory, segment, EventLine)
        wanted = {"after": last.position - 1, "end": last.position, "limit": 1}
        found = self._connection.execute(_EVENTS, wanted).fetchone()
        if found is None or _line(found) != last:
            raise Unable(
                f"{self._directory / segment.file} ends with an event that this log does not have: choose another "
                "directory for this log."
            )

    def write_events(self, tell: Tell, segment_events: int) -> None:
        """Write what is new, segment by segment; each is there for good before the next begins."""
        total = _value(self._connection, _COUNT if self.manifest.customer_id is None else _COUNT_OF, self._wanted)
        done = 0
        pages = self._pages(min(_PAGE, segment_events))
        page = next(pages, [])
        while page:
            hash_, topics = self.manifest.hash, dict(self.manifest.topics)
            first = last = page[0].position
            with NewFile(self._directory, f"events-{len(self.manifest.segments) + 1:06}.jsonl.gz") as new:
                while page and new.lines < segment_events:
                    for line in page:
                        hash_ = link(hash_, line.position, line.digest)
                        topics[line.topic] = topics.get(line.topic, 0) + 1
                    new.write(page)
                    last = page[-1].position
                    done += len(page)
                    tell("Events", done, total)
                    page = next(pages, [])
            segment = Segment(
                file=new.name,
                sha256=new.sha256,
                lines=new.lines,
                first_position=first,
                last_position=last,
                hash=hash_.hex(),
            )
            self._keep(UNFINISHED, segments=(*self.manifest.segments, segment), topics=topics)

    def _pages(self, limit: int) -> Iterator[list[EventLine]]:
        query = _EVENTS if self.manifest.customer_id is None else _EVENTS_OF
        wanted = {**self._wanted, "limit": limit}
        while rows := self._connection.execute(query, wanted, prepare=True, binary=True).fetchall():
            wanted["after"] = rows[-1]["notification_id"]
            yield [_line(row) for row in rows]

    def finish(self, heads: Path | None) -> None:
        """Write what belongs to the events, which is read after them, and say that all of it is there."""
        revision = self.manifest.revision + 1
        seals = self.manifest.seals
        if self.manifest.customer_id is None:
            new = self._rows(f"seals-{len(seals) + 1:06}.jsonl.gz", _SEALS, SealLine, after=self._sealed_to())
            seals = (*seals, new) if new.lines else seals
        self._keep(
            MANIFEST,
            format=FORMAT,
            finished_at=datetime.now(UTC),
            schema=schema.migrations()[-1],
            revision=revision,
            seals=seals,
            data_keys=self._rows(f"data-keys-{revision:06}.jsonl.gz", _KEYS, KeyLine),
            heads=self._heads(heads, revision),
        )
        (self._directory / UNFINISHED).unlink(missing_ok=True)
        listed = {file.file for file in self.manifest.files}
        for path in self._directory.iterdir():
            # Earlier data keys too: one that was destroyed since is not to live on here.
            if _OURS.fullmatch(path.name) and path.name not in listed:
                path.unlink()
        sync(self._directory)

    def _sealed_to(self) -> int:
        if not self.manifest.seals:
            return 0
        *_, last = lines_of(self._directory, self.manifest.seals[-1], SealLine)
        return last.last_position

    def _rows(self, name: str, query: LiteralString, line: Callable[..., object], **more: int) -> File:
        wanted = {**self._wanted, "end": self.manifest.last_position, **more}
        with (
            NewFile(self._directory, name) as new,
            self._connection.transaction(),
            self._connection.cursor("export") as cursor,
        ):
            cursor.execute(query, wanted)
            while rows := cursor.fetchmany(_PAGE):
                new.write(line(**row) for row in rows)
        return new.file

    def _heads(self, path: Path | None, revision: int) -> File | None:
        if path is None or not path.exists():
            return None
        with NewFile(self._directory, f"heads-{revision:06}.jsonl.gz") as new, path.open("rb") as heads:
            # Heads that were signed while this export went on are of events that it does not have.
            known = (line for line in heads if 0 < _position(line) <= self.manifest.last_position)
            new.write(msgspec.Raw(line.rstrip()) for line in known)
        return new.file

    def _keep(self, name: str, **changes: Any) -> None:  # noqa: ANN401 - fields of the manifest
        self.manifest = msgspec.structs.replace(self.manifest, **changes)
        replace(self._directory / name, [self.manifest.encoded()])


class _Head(msgspec.Struct):
    position: int


def _position(head: bytes) -> int:
    """That of a signed head; 0 for a line that a crash tore."""
    try:
        return msgspec.json.decode(head, type=_Head).position
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0


def _line(row: DictRow) -> EventLine:
    state = bytes(row["state"])
    try:
        text, raw = state.decode(), None
    except UnicodeDecodeError:
        text, raw = None, state
    return EventLine(
        position=row["notification_id"],
        stream_id=row["originator_id"],
        version=row["originator_version"],
        topic=row["topic"],
        customer_id=row["customer_id"],
        state=text,
        state_base64=raw,
    )
