"""Verification: every row that is not what the log says is found, named and mended, and no other."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from adapters.bootstrap import Service, build
from adapters.postgres.beside import TEMPORARY, Beside
from adapters.postgres.comparison import Comparison
from adapters.postgres.maintenance import maintenance
from adapters.projector import WAREHOUSE, run_projector
from adapters.settings import Settings
from adapters.verification.canonical import canonical, line_of
from adapters.verification.expected import Expected
from adapters.verification.report import Report, Side, SideState
from adapters.verification.verify import Asked, verify_rows
from adapters.verification.warehouse import Verdict, WarehouseRows, joined, judge
from domain.refusals import Invalid, NotFound
from projections.follow import catch_up, rows_into
from projections.tables import CENTRAL, CUSTOMER_USAGE, EVERY, SCHEDULED_PIPELINE_RUNS
from projections.targets import Target
from tests.application.busy import CUSTOMERS, Busy
from tests.application.world import World, until
from tests.http.running import NOWHERE
from tests.projections.test_replay import database

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))
POSTGRES, BIGQUERY = Side.POSTGRES, Side.BIGQUERY


class Lived:
    """A world after a busy time, the service that verifies it, and BigQuery with its rows."""

    def __init__(self, world: World, service: Service, directory: Path) -> None:
        self.world = world
        self.service = service
        self.directory = directory

    def project(self) -> None:
        catch_up(WAREHOUSE, self.service.log, rows_into(self.service.warehouse), self.service.checkpoints)

    def verify(self, *tables: str, **asked: Any) -> Report:
        return verify_rows(self.service, Asked(tables=tables, **asked))

    @cached_property
    def customer(self) -> str:
        """One whose runs had data-quality steps."""
        counts = {
            name: self.service.warehouse.query(f"SELECT COUNT(*) FROM `{name}.x_meta_dq_results`").rows[0][0]
            for name in CUSTOMERS
        }
        assert max(counts.values()) > 0
        return max(counts, key=lambda name: counts[name])

    def edit(self, side: Side, statement: str) -> None:
        """By hand; `{c}.` stands before a central table, `{x}.` before one of a customer's own."""
        if side is POSTGRES:
            self.world.tamper(statement.replace("{c}.", ""))
            return
        settings = self.service.settings
        datasets = {"c": settings.customers_dataset_id, "x": self.customer if "{x}." in statement else ""}
        names = re.sub(r"\{(.)\}\.(\w+)", lambda m: f"`{settings.project}.{datasets[m[1]]}.{m[2]}`", statement)
        self.service.warehouse.query(names)

    @contextmanager
    def projecting(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=run_projector, args=(self.service, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextmanager
    def writing(self, writers: int = 4, pause_s: float = 0.02, *, calm: bool = False) -> Iterator[list[Busy]]:
        """As many processes' worth of deeds as writers, until the block ends; what went wrong is raised then.

        `calm` ones request runs and cancel them, which a projector in the same process keeps up with.
        """
        stop, errors, busy = threading.Event(), [], []

        def write(seed: int) -> None:
            with World(self.world.dsn, self.directory / "var" / "keys" / "wrapping.key", size=2) as world:
                world.at = self.world.at
                own = Busy(world, seed)
                busy.append(own)
                try:
                    while not stop.wait(pause_s):
                        if calm:
                            world.cancel(world.request("delta"), "delta")
                        else:
                            own.step()
                except Exception as error:  # noqa: BLE001 - raised by the test
                    errors.append(error)

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(writers)]
        for thread in threads:
            thread.start()
        try:
            yield busy
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert errors == []


@contextmanager
def lived_in(dsn: str, directory: Path, emulator: str, seed: int, steps: int) -> Iterator[Lived]:
    settings = Settings(
        data_dir=directory / "var",
        bigquery_emulator_host=emulator,
        customers_dataset_id=f"central_{uuid4().hex[:10]}",
        gcp_project_id=None,
    )
    service = build(settings, dsn)
    with World(dsn, directory / "var" / "keys" / "wrapping.key") as world:
        busy = Busy(world, seed).begin()
        for _ in range(steps):
            busy.step()
        busy.rarities()
        for row in world.rows("customer_profiles") if emulator != NOWHERE else ():
            service.warehouse.delete_customer(row["customer_id"])
        yield Lived(world, service, directory)
    service.close()


@pytest.fixture(scope="module")
def lived(postgres_server, migrated_template, tmp_path_factory, bigquery_emulator) -> Iterator[Lived]:
    """Every test leaves it as it was: by mending."""
    with (
        database(postgres_server, migrated_template) as dsn,
        lived_in(dsn, tmp_path_factory.mktemp("lived"), bigquery_emulator, seed=4711, steps=150) as lived,
    ):
        lived.project()
        yield lived


def test_rows_that_are_what_the_log_says(lived):
    report = lived.verify()
    assert (report.found, report.complete, report.position) == (0, True, lived.service.log.end())
    assert [table.table for table in report.tables] == [table.name for table in EVERY]
    for table in report.tables:
        assert table.log.rows > 0
        digests = {rows.digest for rows in (table.log, *table.sides.values())}
        assert len(digests) == 1, table
        assert {rows.rows for rows in table.sides.values()} == {table.log.rows}
    assert set(report.table("customer_usage").sides) == {POSTGRES, BIGQUERY}


# What somebody may do by hand, on either side: the statement, what is found, and in which columns.
EDITS = [
    # the customer guide's own
    (
        (
            "UPDATE {c}.customer_profiles SET status = 'SUSPENDED', updated_at = CURRENT_TIMESTAMP"
            " WHERE tenant_dataset_id = 'delta'"
        ),
        [("changed", ["status", "updated_at"])],
    ),
    ("UPDATE {c}.customer_subscriptions SET max_pipelines_per_day = 1 WHERE customer_id = 'delta'", None),
    ("UPDATE {c}.customer_usage SET pipelines_run_month = -1 WHERE customer_id = 'delta'", None),
    # others
    (
        "UPDATE {c}.customer_profiles SET position = position - 1 WHERE customer_id = 'delta'",
        [("changed", ["position"])],
    ),
    ("UPDATE {c}.customer_profiles SET position = 4611686018427387904 WHERE customer_id = 'delta'", None),
    ("UPDATE {c}.customer_profiles SET company_name = NULL WHERE customer_id = 'delta'", None),
    (
        "UPDATE {c}.customer_profiles SET customer_id = 'Delta' WHERE customer_id = 'delta'",
        [("extra", []), ("missing", [])],
    ),
    ("UPDATE {c}.customer_usage SET customer_id = 'nobody' WHERE customer_id = 'delta'", None),
    ("DELETE FROM {c}.customer_usage WHERE customer_id = 'delta'", None),
    ("DELETE FROM {c}.pipeline_execution_queue WHERE customer_id = 'delta'", None),
    ("DELETE FROM {c}.scheduled_pipeline_runs WHERE customer_id = 'delta'", None),
    ("UPDATE {c}.pipeline_execution_queue SET state = 'PENDING', deleted_at = NULL WHERE customer_id = 'delta'", None),
    ("UPDATE {c}.customer_pipeline_configs SET next_run_time = NULL WHERE customer_id = 'delta'", None),
    (
        (
            "INSERT INTO {c}.customer_team_members (member_id, customer_id, email, position)"
            " VALUES ('m-0', 'delta', 'eve@example.com', 3)"
        ),
        [("extra", [])],
    ),
    ("UPDATE {c}.projection_skips SET reason = 'none' WHERE true", [("changed", ["reason"])]),
]


def digests(report: Report, side: Side) -> dict[str, str]:
    return {table.table: table.sides[side].digest for table in report.tables if side in table.sides}


@pytest.mark.parametrize(
    ("side", "statement", "expected"),
    [
        (side, *edit)
        for side in (POSTGRES, BIGQUERY)
        for number, edit in enumerate(EDITS)
        if side is POSTGRES or number % 2
    ],
)
def test_what_was_done_by_hand_is_found_and_mended(lived, side, statement, expected):
    table = statement.partition("{c}.")[2].split()[0]
    target = Target(side.value)
    lived.edit(side, statement)
    before = stamps(lived)
    found = lived.verify(table, target=target)
    assert found.found >= 1
    assert found.left == found.found
    assert found.complete
    kinds = [(d.kind.value, [v.column for v in d.values]) for d in found.differences]
    if expected is not None:
        assert kinds == expected
    for difference in found.differences:
        assert (difference.table, difference.side) == (table, side)
        assert difference.mend.startswith(f"convergence verify {table} --target {side} ")
        assert difference.mended is False
    listed = found.table(table)
    assert listed.sides[side].digest != listed.log.digest
    assert listed.sides[side].differences == found.found
    mended = lived.verify(table, target=target, reason="Edited by hand.")
    assert (mended.found, mended.left) == (found.found, 0)
    assert all(difference.mended for difference in mended.differences)
    again = lived.verify(table, target=target)
    assert (again.found, again.complete) == (0, True)
    touched = {key for key, stamp in stamps(lived).items() if before.get(key) != stamp}
    assert touched <= {(d.table, *map(str, d.key.values())) for d in found.differences}


def stamps(lived: Lived) -> dict[tuple[str, ...], str]:
    """Which transaction wrote each live row of PostgreSQL: a row that is written again, even with the same, differs."""
    found = {}
    with psycopg.connect(lived.world.dsn) as connection:
        for table in CENTRAL:
            keys = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in table.key)
            query = sql.SQL("SELECT xmin::text, {} FROM {}").format(keys, sql.Identifier(table.name))
            found |= {(table.name, *key): stamp for stamp, *key in connection.execute(query)}
    return found


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE scheduled_pipeline_runs SET parameters = '{\"days\": 7}' WHERE customer_id = 'delta'",
        "UPDATE scheduled_pipeline_runs SET created_at = 'infinity' WHERE customer_id = 'delta'",
        "UPDATE scheduled_pipeline_runs SET updated_at = updated_at + interval '1 us' WHERE customer_id = 'delta'",
        "UPDATE customer_api_keys SET encrypted_api_key = 'not it' WHERE customer_id = 'delta'",
        "TRUNCATE customer_usage",
        # the log's row cannot be put back before this one is gone
        (
            "UPDATE customer_profiles SET customer_id = 'zz' WHERE customer_id = 'delta';"
            " INSERT INTO customer_profiles (customer_id, position) VALUES ('DELTA', 1)"
        ),
    ],
)
def test_what_only_postgresql_can_do(lived, statement):
    lived.world.tamper(statement)
    found = lived.verify(target=Target.POSTGRES)
    assert found.found
    assert lived.verify(target=Target.POSTGRES, reason="Edited.").left == 0
    assert lived.verify(target=Target.POSTGRES).found == 0


@pytest.mark.parametrize(
    ("table", "statement", "kinds"),
    [
        (
            "x_meta_pipeline_runs",
            "UPDATE {x}.x_meta_pipeline_runs SET status = 'FAILED' WHERE status != 'FAILED'",
            None,
        ),
        ("x_meta_step_logs", "UPDATE {x}.x_meta_step_logs SET metadata = JSON '{\"bytes\": 1}' WHERE true", None),
        ("x_meta_dq_results", "DELETE FROM {x}.x_meta_dq_results WHERE true", None),
        (
            "x_meta_dq_results",
            "INSERT INTO {x}.x_meta_dq_results (dq_result_id, position) VALUES ('q', 1)",
            ["extra"],
        ),
        # there are no keys in BigQuery: a row may be there twice
        (
            "customer_profiles",
            (
                "INSERT INTO {c}.customer_profiles SELECT * FROM {c}.customer_profiles"
                " WHERE customer_id IN ('alpha', 'beta', 'gamma', 'delta')"
            ),
            ["extra"] * 4,
        ),
        ("customer_usage", "DROP TABLE {c}.customer_usage", None),
    ],
)
def test_what_only_bigquery_can_do(lived, table, statement, kinds):
    lived.edit(BIGQUERY, statement)
    found = lived.verify(table, target=Target.BIGQUERY)
    assert found.found
    if kinds is not None:
        assert [difference.kind for difference in found.differences] == kinds
    assert lived.verify(table, target=Target.BIGQUERY, reason="Edited.").left == 0
    again = lived.verify(table, target=Target.BIGQUERY)
    assert (again.found, again.table(table).sides[BIGQUERY].digest) == (0, again.table(table).log.digest)


def test_secrets_are_not_told(lived):
    [key] = lived.world.rows("customer_api_keys", customer_id="delta", is_active=True)
    edit = "UPDATE {c}.customer_api_keys SET api_key_hash = 'abcdef', last4 = 'last' WHERE api_key_id = '%s'"
    lived.edit(POSTGRES, edit % key["api_key_id"])
    report = lived.verify("customer_api_keys", target=Target.POSTGRES)
    [difference] = report.differences
    assert [(v.column, v.secret, v.expected, v.found) for v in difference.values] == [
        ("api_key_hash", True, None, None),
        ("last4", False, key["last4"], "last"),
    ]
    assert key["api_key_hash"] not in repr(report)
    assert lived.verify("customer_api_keys", target=Target.POSTGRES, reason="Edited.").left == 0


def test_all_are_counted_and_some_described(lived):
    lived.edit(POSTGRES, "UPDATE {c}.scheduled_pipeline_runs SET attempt = 99")
    report = lived.verify(target=Target.POSTGRES, limit=3)
    assert len(report.differences) == 3
    assert report.found == len(lived.world.rows("scheduled_pipeline_runs")) > 3
    assert lived.verify(target=Target.POSTGRES, limit=0, reason="Edited.").left == 0


def test_one_customer(lived):
    for customer_id in ("beta", "delta"):
        lived.edit(
            POSTGRES, f"UPDATE {{c}}.scheduled_pipeline_runs SET attempt = 99 WHERE customer_id = '{customer_id}'"
        )
    lived.edit(BIGQUERY, "UPDATE {c}.customer_profiles SET customer_id = 'nobody' WHERE customer_id = 'delta'")
    lived.edit(
        POSTGRES, "INSERT INTO {c}.customer_team_members (member_id, customer_id, position) VALUES ('n', 'delta', 1)"
    )
    report = lived.verify(customer_id="delta")
    own = len(lived.world.rows("scheduled_pipeline_runs", customer_id="delta"))
    counted = {t.table: sum(rows.differences for rows in t.sides.values()) for t in report.tables}
    assert {name: count for name, count in counted.items() if count} == {
        "scheduled_pipeline_runs": own,
        "customer_profiles": 1,
        "customer_team_members": 1,
    }
    assert report.table("scheduled_pipeline_runs").log.rows == own
    assert "projection_skips" not in counted
    assert lived.verify(customer_id="delta", reason="Edited.").left == 0
    left = lived.verify()
    # the row that was given to nobody is no customer's
    assert {(d.table, d.key.get("customer_id")) for d in left.differences if d.side is BIGQUERY} <= {
        ("customer_profiles", "nobody")
    }
    assert all(d.mend.count("--customer beta") for d in left.differences if d.side is POSTGRES)
    assert lived.verify(reason="Edited.").left == 0


def test_only_the_customers_events_are_read(lived):
    told = []
    verify_rows(lived.service, Asked(customer_id="delta", target=Target.POSTGRES), lambda *stage: told.append(stage))
    everybodys = lived.world.scalar("SELECT count(*) FROM stored_events WHERE customer_id <> 'delta'")
    assert told
    assert everybodys > 100
    # An event of another customer that nobody can read stops who reads all of them.
    position = lived.world.scalar("SELECT max(notification_id) FROM stored_events WHERE customer_id = 'alpha'")
    topic = lived.world.scalar("SELECT topic FROM stored_events WHERE notification_id = %s", position)
    lived.world.tamper("UPDATE stored_events SET topic = 'run.unheard-of@1' WHERE notification_id = %s", position)
    try:
        assert lived.verify(customer_id="delta", target=Target.POSTGRES).found == 0
        with pytest.raises(Exception, match=r"run.unheard-of@1"):
            lived.verify(target=Target.POSTGRES)
    finally:
        lived.world.tamper("UPDATE stored_events SET topic = %s WHERE notification_id = %s", topic, position)


def test_what_there_is_not(lived):
    with pytest.raises(Invalid, match="There is no table nothing"):
        lived.verify("nothing")
    with pytest.raises(Invalid, match="x_meta_dq_results is in BigQuery only"):
        lived.verify("x_meta_dq_results", target=Target.POSTGRES)
    for nobody in ("nobody_at_all", "a\0b", ""):
        with pytest.raises(NotFound):
            lived.verify(customer_id=nobody)


def test_a_warehouse_that_is_away(lived):
    away = build(replace_settings(lived.service.settings, bigquery_emulator_host=NOWHERE), lived.service.dsn)
    lived.edit(POSTGRES, "UPDATE {c}.customer_profiles SET company_name = 'x' WHERE customer_id = 'delta'")
    try:
        report = verify_rows(away, Asked(tables=("customer_profiles",)))
    finally:
        away.close()
    assert (report.found, report.complete, report.sides[BIGQUERY].state) == (1, False, SideState.AWAY)
    assert lived.verify("customer_profiles", target=Target.POSTGRES, reason="Edited.").left == 0


def replace_settings(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


def test_a_warehouse_that_is_behind(lived):
    lived.world.limits("delta", max_pipelines_per_day=500)
    lived.project()
    lived.world.request("delta", parameters={"days": 3})
    lived.edit(BIGQUERY, "UPDATE {c}.customer_profiles SET company_name = 'x' WHERE customer_id = 'delta'")
    report = lived.verify(target=Target.BIGQUERY, wait_s=0.1)
    assert (report.complete, report.sides[BIGQUERY].state) == (False, SideState.BEHIND)
    waiting = {t.table: t.sides[BIGQUERY].waiting for t in report.tables}
    assert {name for name, count in waiting.items() if count} == {
        "scheduled_pipeline_runs",
        "pipeline_execution_queue",
        "x_meta_pipeline_runs",
        "customer_usage",
    }
    # Rows that do not wait are compared nevertheless.
    assert [d.table for d in report.differences] == ["customer_profiles"]
    lived.project()
    assert lived.verify(target=Target.BIGQUERY, reason="Edited.").left == 0
    assert lived.verify().found == 0


JUDGED = [
    # by the log, as found, verdict: with the events up to 10 read, those up to 10 handled, 20 in the log
    (5, 5, Verdict.EQUAL),
    (5, None, Verdict.DIFFERENT),
    (None, 5, Verdict.DIFFERENT),
    (5, 4, Verdict.DIFFERENT),
    (4, 5, Verdict.DIFFERENT),
    (5, 11, Verdict.MOVED),
    (None, 11, Verdict.MOVED),
    (5, 21, Verdict.DIFFERENT),
    (None, 21, Verdict.DIFFERENT),
]


@pytest.mark.parametrize(("expected", "found", "verdict"), JUDGED)
def test_a_row_that_is_written_meanwhile(expected, found, verdict):
    rows = [None if position is None else {"position": position} for position in (expected, found)]
    assert judge(*rows, cut=10, handled=10, end=20) is verdict
    if expected is not None and verdict is Verdict.DIFFERENT and (found is None or found <= 10):
        assert judge(*rows, cut=10, handled=expected - 1, end=20) is Verdict.WAITING


def test_rows_in_another_order_are_no_differences():
    rows = [{"customer_id": name, "usage_date": "2025-11-17"} for name in ("a", "b", "B")]
    with pytest.raises(ValueError, match="out of order"):
        list(joined(CUSTOMER_USAGE, [], rows))


@pytest.fixture
def busy(database_url, tmp_path, bigquery_emulator) -> Iterator[Lived]:
    with lived_in(database_url, tmp_path, bigquery_emulator, seed=3, steps=20) as lived:
        yield lived


def test_no_false_alarm_in_postgresql_while_writes_go_on(busy):
    """Beside the control: the log read first, and the rows then."""
    with busy.writing() as writers:
        until(lambda: len(writers) == 4)
        until(lambda: careless_postgres(busy), seconds=60)
        for _ in range(5):
            assert busy.verify(target=Target.POSTGRES).found == 0
        busy.edit(POSTGRES, "UPDATE {c}.customer_cloud_credentials SET project_id = 'x' WHERE customer_id = 'delta'")
        [difference] = busy.verify(target=Target.POSTGRES).differences
        assert difference.table == "customer_cloud_credentials"


MOVING = ("scheduled_pipeline_runs", "customer_cloud_credentials")


def test_no_false_alarm_in_bigquery_while_writes_go_on(busy):
    """Beside the control: the same rows compared without asking for their positions."""
    busy.world.limits("delta", max_pipelines_per_day=None)
    busy.project()
    with busy.projecting(), busy.writing(1, 1.0, calm=True):
        until(lambda: careless_bigquery(busy), seconds=60)
        report = busy.verify(*MOVING)
        assert (report.found, report.complete) == (0, True), report
        for table in report.tables:
            assert {rows.digest for rows in table.sides.values()} == {table.log.digest}
        busy.edit(BIGQUERY, "UPDATE {c}.customer_cloud_credentials SET project_id = 'x' WHERE customer_id = 'delta'")
        report = busy.verify(*MOVING)
        assert [(d.table, d.side) for d in report.differences] == [("customer_cloud_credentials", BIGQUERY)]
        assert busy.verify("customer_cloud_credentials", reason="Edited.").left == 0
    busy.project()
    report = busy.verify(*MOVING)
    assert (report.found, report.complete) == (0, True)


def at_the_comparison(act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Does something once, when the log was read and BigQuery's first table is about to be."""
    left = [act]

    def tell(stage: str, *_: int) -> None:
        if stage == "Comparing BigQuery" and left:
            left.pop()()

    return tell


def test_a_row_that_moves_on_is_looked_at_again(busy):
    busy.world.limits("delta", max_pipelines_per_day=None)
    busy.project()
    edit = "UPDATE {c}.scheduled_pipeline_runs SET state = 'FAILED' WHERE run_id = '%s'"

    def move() -> None:
        busy.world.request("delta")
        busy.project()

    def move_and_edit() -> None:
        run_id = busy.world.request("delta")
        busy.project()
        busy.edit(BIGQUERY, edit % run_id)

    asked = Asked(target=Target.BIGQUERY)
    report = verify_rows(busy.service, asked, at_the_comparison(move))
    assert (report.found, report.complete) == (0, True)
    assert all(table.sides[BIGQUERY].digest == table.log.digest for table in report.tables)
    report = verify_rows(busy.service, asked, at_the_comparison(move_and_edit))
    [difference] = report.differences
    assert ([v.column for v in difference.values], report.complete) == (["state"], True)
    listed = report.table("scheduled_pipeline_runs")
    assert listed.sides[BIGQUERY].digest != listed.log.digest


def test_what_a_projector_wrote_before_it_died_is_no_difference(busy):
    """Rows are written before the checkpoint: these are further than it says."""
    busy.world.limits("delta", max_pipelines_per_day=None)
    busy.project()
    at = busy.service.checkpoints.position(WAREHOUSE)

    def move_and_die() -> None:
        busy.world.request("delta")
        rows_into(busy.service.warehouse)(busy.service.log.read(at, 1_000))

    asked = Asked(tables=MOVING, target=Target.BIGQUERY, wait_s=0.2)
    report = verify_rows(busy.service, asked, at_the_comparison(move_and_die))
    assert (report.found, report.sides[BIGQUERY].state) == (0, SideState.BEHIND)
    # That its rows are there already is seen when the log is read as far.
    assert busy.verify(*MOVING, target=Target.BIGQUERY, wait_s=0.2).complete
    busy.project()
    assert busy.verify().found == 0


def careless_postgres(busy: Lived) -> int:
    """Differences by a comparison that reads the log first and the rows then."""
    with maintenance(busy.world.dsn, name="careless") as connection:
        beside = Beside(connection, TEMPORARY, CENTRAL)
        Expected(beside, busy.service.log, None).extend(busy.service.log.end())
        comparison = Comparison(connection, beside)
        return sum(1 for table in CENTRAL for _ in comparison.differing(table))


def careless_bigquery(busy: Lived) -> int:
    """Differences by a comparison that does not ask for positions."""
    service, table = busy.service, SCHEDULED_PIPELINE_RUNS
    rows = WarehouseRows(service.bigquery, service.warehouse, service.settings.customers_dataset_id)
    with maintenance(busy.world.dsn, name="careless") as connection:
        beside = Beside(connection, TEMPORARY, [table])
        Expected(beside, service.log, None).extend(service.log.end())
        expected = (canonical(table, row) for row in beside.rows(table.name))
        pairs = joined(table, expected, rows.all(table))
        return sum(1 for e, f in pairs if e is None or f is None or line_of(e) != line_of(f))


def test_writers_do_not_notice_a_repair(busy):
    with busy.writing() as writers:
        until(lambda: len(writers) == 4)
        for _ in range(3):
            busy.edit(POSTGRES, "UPDATE {c}.scheduled_pipeline_runs SET worker_id = 'nobody'")
            busy.edit(POSTGRES, "DELETE FROM {c}.customer_team_members")
            assert busy.verify(target=Target.POSTGRES, reason="Edited.").left == 0
    assert busy.verify(target=Target.POSTGRES).found == 0


@pytest.mark.parametrize("seed", [11, 12])
def test_every_way_of_writing_makes_the_rows_of_the_log(postgres_server, migrated_template, tmp_path, seed):
    with (
        database(postgres_server, migrated_template) as dsn,
        lived_in(dsn, tmp_path, NOWHERE, seed, steps=200) as lived,
    ):
        assert lived.verify(target=Target.POSTGRES).found == 0


def run_command(lived: Lived, *arguments: str) -> "subprocess.CompletedProcess[str]":
    settings = lived.service.settings
    return subprocess.run(
        [CONVERGENCE, "verify", *arguments],
        env={
            "PATH": os.defpath,
            "DATABASE_URL": lived.world.dsn,
            "DATA_DIR": str(settings.data_dir),
            "BIGQUERY_EMULATOR_HOST": settings.emulator_url,
            "CUSTOMERS_DATASET_ID": settings.customers_dataset_id,
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command(lived):
    done = run_command(lived, "customer_profiles")
    assert (done.returncode, "Every row that was compared is what the log says." in done.stdout) == (0, True), (
        done.stderr
    )
    lived.edit(POSTGRES, "UPDATE {c}.customer_profiles SET status = 'ACTIVE!' WHERE customer_id = 'delta'")
    done = run_command(lived, "customer_profiles", "--target", "postgres")
    assert done.returncode == 1
    assert "customers_metadata" not in done.stdout
    assert "status: ACTIVE!, by the log ACTIVE" in done.stdout
    assert "→ convergence verify customer_profiles --target postgres --customer delta --repair" in done.stdout
    for wrong in (("--repair",), ("--reason", "x"), ("--repair", "--reason", "a\nb"), ("nothing",)):
        assert run_command(lived, *wrong).returncode == 2
    done = run_command(
        lived,
        "customer_profiles",
        "--customer",
        "delta",
        "--repair",
        "--reason",
        "By hand.",
        "--json",
        "--target",
        "postgres",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["found"], answer["left"], answer["complete"]) == (1, 0, True)
    [difference] = answer["differences"]
    assert difference["values"] == [{"column": "status", "secret": False, "expected": "ACTIVE", "found": "ACTIVE!"}]
    assert difference["mended"] is True
    assert "By hand." in done.stderr
    assert lived.verify("customer_profiles").found == 0
