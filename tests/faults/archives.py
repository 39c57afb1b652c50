"""Logs on their way into files and out again: what both sides hold, and everything that can befall the files."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from adapters.archive.manifest import MANIFEST
from adapters.archive.reading import Checked, opened
from adapters.importing import Imported, restore
from adapters.postgres import seals
from adapters.postgres.maintenance import maintenance
from adapters.settings import Settings
from tests.application.world import World

Rows = list[tuple[Any, ...]]
KEPT = ("stored_events", "data_keys", "log_seals")


def settings_of(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir)


def key_of(data_dir: Path) -> Path:
    return data_dir / "keys" / "wrapping.key"


@contextmanager
def lived_in(dsn: str, data_dir: Path) -> Iterator[World]:
    """The core on a database, with the wrapping key of a data directory."""
    key_of(data_dir).parent.mkdir(parents=True, exist_ok=True)
    with World(dsn, key_of(data_dir)) as world:
        yield world


def kept(dsn: str) -> dict[str, Rows]:
    """What a log is, byte for byte, and how far its positions have come."""
    with psycopg.connect(dsn) as connection:
        found = {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 4").fetchall() for name in KEPT}
        found["position"] = connection.execute("SELECT last_value FROM stored_events_notification_id_seq").fetchall()
    return found


def is_unused(dsn: str) -> bool:
    """Whether nothing at all is in the store."""
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
    with psycopg.connect(dsn) as connection:
        names = [name for (name,) in connection.execute(tables)]
        return not any(connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in names)


def seal(dsn: str) -> None:
    """Seal the log up to its end."""
    with maintenance(dsn, name="seal") as connection:
        done = seals.last(connection)
        while further := seals.seal_next(connection, done):
            done = further


def check(directory: Path) -> Checked:
    with opened(directory) as archive:
        return archive.check()


def bring(dsn: str, directory: Path, data_dir: Path) -> Imported:
    with opened(directory) as archive:
        return restore(dsn, archive, settings_of(data_dir))


# --- damage -------------------------------------------------------------------------------------------------------


def copied(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def files(directory: Path, kind: str) -> list[Path]:
    return sorted(directory.glob(f"{kind}-*.jsonl.gz"))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a file as somebody would who sees to it that all checksums are right."""
    lines = change(gzip.decompress(path.read_bytes()).splitlines(keepends=True))
    path.write_bytes(gzip.compress(b"".join(lines)))
    relist(path.parent)


def swap_two(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


def swap_two_at_each_others_place(lines: list[bytes]) -> list[bytes]:
    first, second = json.loads(lines[0]), json.loads(lines[1])
    first["position"], second["position"] = second["position"], first["position"]
    return [json.dumps(second).encode() + b"\n", json.dumps(first).encode() + b"\n", *lines[2:]]


def leave_one_out(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], *lines[4:]]


def change_one(lines: list[bytes]) -> list[bytes]:
    changed = json.loads(lines[3])
    changed["state"] = changed["state"].replace('"actor":"', '"actor":"x')
    return [*lines[:3], json.dumps(changed).encode() + b"\n", *lines[4:]]


def relist(directory: Path, **changes: Any) -> None:
    """Write a manifest that fits the files as they are, but for the chain, which takes more than that."""
    manifest = json.loads((directory / MANIFEST).read_bytes())
    for file in (*manifest["segments"], *manifest["seals"], manifest["data_keys"]):
        path = directory / file["file"]
        if path.exists():
            file["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    remanifest(directory, {**manifest, **changes})


def remanifest(directory: Path, manifest: dict[str, Any]) -> None:
    blank = "0" * 64
    text = json.dumps({**manifest, "digest": blank}).encode()
    # Other files' digests are not zeros.
    (directory / MANIFEST).write_bytes(text.replace(blank.encode(), hashlib.sha256(text).hexdigest().encode()))
