"""A backup and its restoration, for real: a server with a past, and two others that are to be like it.

The second server gets a dump of the database, as `pg_dump` and `pg_restore` make and read it; the third one an export
of the log, from which everything else is made anew.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from adapters.embedded.binaries import installation
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres import seals
from adapters.postgres.maintenance import maintenance
from adapters.postgres.privileges import TENANT
from adapters.postgres.schema import migrate
from application.chain import START, link
from application.ports import Purpose, RunReport, SealedFor
from tests.application.busy import Busy
from tests.application.world import World, until

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))
BESIDE_THE_LOG = frozenset(
    {
        "allowances",
        "api_key_uses",
        "bigquery_grants",
        "checkpoints",
        "commands_done",
        "erasures",
        "decryptions",
        "idempotent_requests",
        "idle_workers",
        "key_reveals",
        "notification_deliveries",
        "notifications",
        "processes",
        "rebuilds",
        "run_leases",
        "snapshots",
    }
)
"""What no log holds, and no export brings along."""
_LEASE_S = 90


@dataclass
class Report:
    """What came of it: digests by table and server, the hash over each server's log, and how long things took."""

    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    events: int = 0
    taken_over: dict[str, int] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    credentials: dict[str, int] = field(default_factory=dict)

    def differing(self, server: str) -> list[str]:
        """The tables of a server that are not like the original's, of those that its backup was to bring."""
        original, copy = self.digests["original"], self.digests[server]
        left_out = BESIDE_THE_LOG if server == "imported" else frozenset()
        return [table for table in original if table not in left_out and copy.get(table) != original[table]]

    @property
    def succeeded(self) -> bool:
        copies = NAMES[1:]
        return (
            not any(self.differing(server) for server in copies)
            and len(set(self.hashes.values())) == 1
            and all(self.finished[s] and self.credentials[s] == self.credentials["original"] for s in copies)
        )


NAMES = ("original", "restored", "imported")


@contextmanager
def servers(directory: Path) -> Iterator[dict[str, str]]:
    """Three servers of their own below a directory."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(EmbeddedPostgres(directory / name / "postgres")).dsn for name in NAMES}


class Drill:
    """One drill on three empty databases, with a past of so many deeds; files go below the directory."""

    def __init__(self, directory: Path, dsns: Mapping[str, str], *, deeds: int, seed: int = 1) -> None:
        self.directory = directory
        self.report = Report()
        self.dsns = dsns
        self._deeds = deeds
        self._seed = seed

    def run(self) -> Report:
        """All of it."""
        self.back_up_and_restore()
        self.compare()
        self.go_on()
        return self.report

    def back_up_and_restore(self) -> None:
        original = self.dsns["original"]
        self._migrate(original)
        with self._world("original") as world:
            self._live(world)
        self._restore(original, self.dsns["restored"])
        self._import(original, self.dsns["imported"])

    def compare(self) -> None:
        for name, dsn in self.dsns.items():
            self.report.digests[name] = dict(digests(dsn))
            self.report.hashes[name] = log_hash(dsn)

    def go_on(self) -> None:
        """On each server by itself."""
        for name in NAMES:
            with self._world(name) as world:
                self._go_on(name, world)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.report.seconds[what] = time.perf_counter() - began

    def _data_dir(self, name: str) -> Path:
        return self.directory / name / "var"

    @contextmanager
    def _world(self, name: str) -> Iterator[World]:
        key = self._data_dir(name) / "keys" / "wrapping.key"
        if name != "original" and not key.exists():
            key.parent.mkdir(parents=True)
            shutil.copy2(self._data_dir("original") / "keys" / "wrapping.key", key)
        with World(self.dsns[name], key) as world:
            yield world

    @staticmethod
    def _migrate(dsn: str) -> None:
        with psycopg.connect(dsn, row_factory=dict_row) as connection:
            migrate(connection)

    def _live(self, world: World) -> None:
        """A past with everything in it, sealed, which ends while runs are running."""
        with self._timed("the past"):
            busy = Busy(world, self._seed).begin()
            for _ in range(self._deeds):
                busy.step()
            busy.rarities()
            for _ in range(3):
                busy.credential("delta")
            world.onboard("omega", "SCALE")
            for _ in range(3):
                assert world.claim(run_id=world.request("omega"))
            # The machine dies with all of its workers, and nobody looks for a while.
            world.execute("UPDATE run_leases SET expires_at = least(expires_at, clock_timestamp() + interval '1 s')")
        with maintenance(world.dsn, name="seal") as connection:
            done = seals.last(connection)
            while further := seals.seal_next(connection, done):
                done = further
        self.report.events = done.events

    def _restore(self, source: str, target: str) -> None:
        dump = self.directory / "database.dump"
        with self._timed("pg_dump"):
            _program("pg_dump", source, "--format=custom", f"--file={dump}")
        with self._timed("pg_restore, migrate"):
            # Roles belong to a server: those of the new one are given what they may by the migration. The one that
            # row-level security names has to be there before.
            with psycopg.connect(target) as connection, suppress(psycopg.errors.DuplicateObject):
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(TENANT)))
            restore = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
            _program("pg_restore", target, *restore, str(dump))
            self._migrate(target)

    def _import(self, source: str, target: str) -> None:
        archive = str(self.directory / "archive")
        with self._timed("convergence export"):
            self._command("original", source, "export", archive)
        with self._timed("convergence export --check"):
            self._command("original", None, "export", "--check", archive)
        with self._timed("convergence migrate"):
            self._command("imported", target, "migrate")
        with self._world("imported"), self._timed("convergence import"):
            self._command("imported", target, "import", archive)

    def _command(self, name: str, dsn: str | None, *arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(self._data_dir(name)), "COLUMNS": "120"}
        if dsn is not None:
            environment["DATABASE_URL"] = dsn
        _call([CONVERGENCE, *arguments, "--json"], environment)

    def _go_on(self, name: str, world: World) -> None:
        """Runs go on: those that were running are taken over, and all that wait are executed."""
        taken: set[str] = set()

        def taken_over() -> bool:
            taken.update(world.take_over())
            return not world.rows("pipeline_execution_queue", state="RUNNING")

        until(taken_over, _LEASE_S)
        self.report.taken_over[name] = len(taken)
        world.at = max(row["updated_at"] for row in world.rows("scheduled_pipeline_runs"))
        world.reactivate("omega")
        finished = 0
        while orders := world.claim():
            world.report(orders, report=RunReport(succeeded=True, rows=1))
            finished += len(orders)
        self.report.finished[name] = finished
        kept = [row for row in world.rows("customer_cloud_credentials", is_active=True) if row["deleted_at"] is None]
        for row in kept:
            owner = SealedFor(row["customer_id"], row["credential_id"], Purpose.CREDENTIAL)
            json.loads(world.vault.open(bytes(row["encrypted_credentials"]), owner))
        self.report.credentials[name] = len(kept)


def digests(dsn: str) -> Iterator[tuple[str, str]]:
    """Each table's number of rows, and the SHA-256 over them in the order of their keys."""
    tables = (
        "SELECT c.relname AS name, array_agg(a.attname ORDER BY k.number) AS key FROM pg_class c"
        " JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary"
        " CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(column_number, number)"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.column_number"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'schema_migrations' GROUP BY 1 ORDER BY 1"
    )
    with psycopg.connect(dsn) as connection:
        for name, key in connection.execute(tables).fetchall():
            query = sql.SQL("SELECT to_jsonb(t)::text FROM {} t ORDER BY {}").format(
                sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, key))
            )
            hasher, rows = hashlib.sha256(), 0
            with connection.cursor("digest") as cursor:
                for (row,) in cursor.execute(query):
                    hasher.update(row.encode() + b"\n")
                    rows += 1
            yield name, f"{rows} rows {hasher.hexdigest()}"


def log_hash(dsn: str) -> str:
    """The hash over the log, from its first event to its last."""
    with maintenance(dsn, name="hash") as connection:
        found = START
        for event in seals.events_to(connection, 2**62):
            found = link(found, event.position, event.digest())
    return found.hex()


def _program(name: str, dsn: str, *options: str) -> None:
    """One of PostgreSQL's own. The password goes by the environment: command lines are for all to see."""
    url = urlsplit(dsn)
    environment = {
        "PGHOST": url.hostname or "",
        "PGPORT": str(url.port),
        "PGUSER": unquote(url.username or ""),
        "PGPASSWORD": unquote(url.password or ""),
    }
    database = url.path.lstrip("/")
    _call([str(installation() / "bin" / name), *options, f"--dbname={database}"], environment)


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:])}: {done.stderr.strip()}")
