"""What rebuilding, reading back and mending promise of the warehouse, at an emulator and, with a project, at Google."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapters.bigquery.client import NotThere, connect, run
from adapters.bigquery.mending import Mending
from adapters.bigquery.reading import Reader
from adapters.bigquery.staging import SUFFIX, Staging
from adapters.bigquery.tables import ensure_dataset, ensure_table
from adapters.bigquery.writing import write_rows
from application.ports import Away
from projections.rows import Change, Column, Set, Type
from projections.tables import (
    CUSTOMER,
    CUSTOMER_API_KEYS,
    CUSTOMER_TEAM_MEMBERS,
    CUSTOMER_USAGE,
    SCHEDULED_PIPELINE_RUNS,
    X_META_PIPELINE_RUNS,
)
from tests.contracts.warehouse_place import LOCATION, log, whole

NOON = datetime(2025, 11, 17, 12, 0, 0, 123456, tzinfo=UTC)
RUNS, KEYS, MEMBERS, USAGE = SCHEDULED_PIPELINE_RUNS, CUSTOMER_API_KEYS, CUSTOMER_TEAM_MEMBERS, CUSTOMER_USAGE
LOGS = X_META_PIPELINE_RUNS


def row(table, position=1, **values):
    return {**dict.fromkeys(table.names), **values, "position": position}


def members(*names, position=1):
    return [row(MEMBERS, position, member_id=name, name=name) for name in names]


@pytest.fixture
def dataset(place, client) -> str:
    """A dataset of the test's own."""
    name = place.customer()
    ensure_dataset(client, name, LOCATION)
    return name


@pytest.fixture
def staging(place, client) -> Iterator[Staging]:
    with Staging(client, place.project, place.central, LOCATION) as staging:
        yield staging


@pytest.fixture
def reader(place, client) -> Reader:
    return Reader(client, place.project)


@pytest.fixture
def mending(place, client) -> Mending:
    return Mending(client, place.project)


def live(client, place, dataset, table, rows):
    ensure_table(client, dataset, table)
    write_rows(client, f"`{place.project}.{dataset}.{table.name}`", table, rows, guarded=True)


# --- values ---

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
INT64 = st.integers(-(2**63), 2**63 - 1)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-45))])
INSTANTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES)  # noqa: DTZ001 - the zone is drawn
DOCUMENTS = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
RUN = st.fixed_dictionaries(
    {
        "error_message": st.none() | TEXT,
        "rows_processed": st.none() | INT64,
        "scheduled_time": st.none() | INSTANTS,
        "run_date": st.none() | st.dates(),
        "parameters": st.none() | DOCUMENTS,
    }
)
KEY = st.fixed_dictionaries(
    {"encrypted_api_key": st.none() | st.binary(max_size=40), "is_active": st.none() | st.booleans()}
)


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(runs=st.lists(RUN, min_size=1, max_size=16), keys=st.lists(KEY, min_size=1, max_size=16))
def test_values_come_back_as_they_went_loaded_or_mended(dataset, *, staging, reader, mending, runs, keys):
    for table, drawn in ((RUNS, runs), (KEYS, keys)):
        rows = [row(table, n + 1, **{table.key[0]: f"{n:02}"}, **values) for n, values in enumerate(drawn)]
        assert staging.load(dataset, table, iter(rows)) == len(rows)
        staging.swap(dataset, table)
        assert list(reader.rows(dataset, table)) == rows
        mending.mend(dataset, table, gone=[(f"{n:02}",) for n in range(len(rows))])
        assert list(reader.rows(dataset, table)) == []
        mending.mend(dataset, table, rows)
        assert list(reader.rows(dataset, table)) == rows


@pytest.mark.parametrize(
    "text", ["null", "NULL", "", '"', "'", "\\", "\n", "`", "@keys", "{}", "[1]", "\u2028", "😀é", "2025-01-01", "1e5"]
)
def test_text_that_looks_like_something_else(dataset, staging, reader, text):
    rows = [row(RUNS, run_id=text, state=text, parameters={text: text})]
    staging.load(dataset, RUNS, rows)
    staging.swap(dataset, RUNS)
    assert list(reader.rows(dataset, RUNS)) == list(reader.rows(dataset, RUNS, keys=[(text,)])) == rows


@pytest.mark.parametrize(
    "bad", [{"run_id": "1", "position": 1}, row(RUNS, run_id="1", created_at=NOON.replace(tzinfo=None))]
)
def test_a_row_that_is_not_whole_or_has_no_zone_is_refused(place, client, dataset, *, staging, mending, reader, bad):
    live(client, place, dataset, RUNS, [row(RUNS, run_id="kept")])
    for work in (lambda: staging.load(dataset, RUNS, [bad]), lambda: mending.mend(dataset, RUNS, [bad])):
        with pytest.raises(ValueError, match="scheduled_pipeline_runs"):
            work()
    assert [r["run_id"] for r in reader.rows(dataset, RUNS)] == ["kept"]


# --- staging ---


def test_the_staged_table_is_laid_out_as_the_live_one_and_so_is_what_it_becomes(place, client, dataset, staging):
    older = replace(RUNS, columns=tuple(c for c in RUNS.columns if c.name != "attempt"))
    ensure_table(client, dataset, replace(older, columns=(*older.columns, Column("of_old", Type.DATE))))
    staging.load(dataset, RUNS, [row(RUNS, run_id="1", attempt=7, parameters=[1], created_at=NOON)])
    before = client.get_table(f"{dataset}.{RUNS.name}", timeout=10)
    for name in (RUNS.name + SUFFIX, RUNS.name):
        found = client.get_table(f"{dataset}.{name}", timeout=10)
        assert found.schema == before.schema
        assert found.time_partitioning == before.time_partitioning
        assert found.clustering_fields == before.clustering_fields
        staging.swap_all()
    sql = f"SELECT run_id, attempt, created_at, of_old, position FROM `{place.project}.{dataset}.{RUNS.name}`"
    assert [r.values() for r in run(client, sql).result(timeout=30)] == [("1", 7, NOON, None, 1)]


def test_the_live_table_stays_until_the_swap_and_leftovers_are_replaced(place, client, dataset, reader):
    live(client, place, dataset, MEMBERS, members("old"))
    for names in (("left", "over"), ("new",)):  # the first rebuild ends before its swap
        with Staging(client, place.project, place.central, LOCATION) as staging:
            assert staging.load(dataset, MEMBERS, members(*names)) == len(names)
            assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["old"]
            assert staging.staged == [(dataset, MEMBERS)]
    with Staging(client, place.project, place.central, LOCATION) as other:
        other.swap(dataset, MEMBERS)
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["new"]
    with pytest.raises(NotThere):
        staging.swap(dataset, MEMBERS)
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["new"]
    assert [table.table_id for table in client.list_tables(dataset, timeout=10)] == [MEMBERS.name]


def test_everything_missing_is_made_and_an_empty_table_is_empty(place, client, staging, reader):
    dataset = place.customer()
    assert staging.load(dataset, MEMBERS, []) == 0
    assert reader.count(dataset, MEMBERS) == 0
    live(client, place, dataset, MEMBERS, members("old"))
    staging.swap(dataset, MEMBERS)
    assert reader.count(dataset, MEMBERS) == 0


def test_dropping_leaves_the_live_table(place, client, dataset, staging, reader):
    live(client, place, dataset, MEMBERS, members("old"))
    staging.load(dataset, MEMBERS, members("new"))
    staging.drop_all()
    staging.drop(dataset, MEMBERS)
    assert staging.staged == []
    assert [table.table_id for table in client.list_tables(dataset, timeout=10)] == [MEMBERS.name]
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["old"]


def test_many_slices_make_one_table(place, client, dataset, reader):
    rows = [row(RUNS, n + 1, run_id=f"{n:04}", error_message="é" * 100) for n in range(300)]
    with Staging(client, place.project, place.central, LOCATION, slice_bytes=20_000) as staging:
        assert staging.load(dataset, RUNS, iter(rows)) == 300
        staging.swap(dataset, RUNS)
    assert list(reader.rows(dataset, RUNS)) == rows


def logs(dataset, count):
    return [
        row(LOGS, n + 1, pipeline_logging_id=f"{n}", run_date=date(2025, 1, 1), dataset=dataset) for n in range(count)
    ]


@pytest.mark.parametrize("slice_bytes", [64_000_000, 400])
def test_customers_side_by_side(place, client, reader, slice_bytes):
    sizes = {place.customer(): size for size in (3, 1, 0, 9, 2, 1, 0, 5, 1, 1)}
    rows = (r for dataset, size in sizes.items() for r in logs(dataset, size))
    with Staging(client, place.project, place.central, LOCATION, slice_bytes=slice_bytes) as staging:
        assert staging.load_each(LOGS, rows, sizes) == sizes
        assert {dataset for dataset, _ in staging.staged} == set(sizes)
        staging.swap_all()
        assert staging.staged == []
    for dataset, size in sizes.items():
        assert [r["pipeline_logging_id"] for r in reader.rows(dataset, LOGS)] == [str(n) for n in range(size)]


def test_customers_rows_that_do_not_come_together_are_refused(place, staging):
    one, other = place.customer(), place.customer()
    with pytest.raises(ValueError, match="together"):
        staging.load_each(LOGS, [*logs(one, 1), *logs(other, 1), *logs(one, 1)])


# --- following the log meanwhile ---


def follow_up(staging, reader, dataset, write):
    """A rebuild up to position 10, and the log after it, written twice, and stale; what the table has in the end."""
    staging.load(dataset, LOGS, [row(LOGS, 10, pipeline_logging_id=k, status="loaded") for k in ("a", "b")])
    later = log(
        Set(LOGS, {"pipeline_logging_id": "a", "status": "followed"}),
        whole(LOGS, pipeline_logging_id="c", status="new"),
        start=11,
        customer=dataset,
    )
    stale = log(whole(LOGS, pipeline_logging_id="b", status="stale"), start=9, customer=dataset)
    for changes in (later, later, stale):
        write(changes)
    staging.swap(dataset, LOGS)
    return {r["pipeline_logging_id"]: (r["status"], r["position"]) for r in reader.rows(dataset, LOGS)}


FOLLOWED = {"a": ("followed", 11), "b": ("loaded", 10), "c": ("new", 12)}


def test_changes_after_the_load_reach_the_staged_table_only_and_once(dataset, staging, reader):
    staging.load(dataset, LOGS, logs(dataset, 1))
    staging.swap(dataset, LOGS)
    before = list(reader.rows(dataset, LOGS))

    def write(changes):
        staging.write(changes)
        assert list(reader.rows(dataset, LOGS)) == before

    assert follow_up(staging, reader, dataset, write) == FOLLOWED


def test_control_without_the_guard_a_stale_change_is_noticed(place, client, dataset, staging, reader):
    def write(changes):
        for change in changes:
            if isinstance(change.row, Set):
                staging.write([change])
                continue
            target = f"`{place.project}.{dataset}.{LOGS.name}{SUFFIX}`"
            values = {**change.row.values, "position": change.position}
            write_rows(client, target, LOGS, [values], guarded=False)

    assert follow_up(staging, reader, dataset, write) != FOLLOWED


def test_a_customer_that_comes_after_the_load_is_staged_too(place, staging, reader):
    customer = place.customer()
    puts = [whole(table, **{table.key[0]: "1"}) for table in CUSTOMER]
    staging.write(log(*puts, customer=customer))
    assert [reader.count(customer, table) for table in CUSTOMER] == [0, 0, 0]
    staging.swap_all()
    assert [reader.count(customer, table) for table in CUSTOMER] == [1, 1, 1]


# --- swapping ---


def counts_seen(place, client, dataset, reader, swap):
    """Every number of rows that somebody who looks all the time saw while it went from two rows to three and back."""
    live(client, place, dataset, MEMBERS, members("a", "b"))
    seen, done, looked = set(), threading.Event(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(reader.count(dataset, MEMBERS))
            looked.set()

    looking = threading.Thread(target=look)
    looking.start()
    for names in ("abc", "ab", "abc"):
        swap(names, looked)
    done.set()
    looking.join()
    return seen


def test_who_queries_meanwhile_sees_the_old_rows_or_the_new(place, client, dataset, staging, reader):
    def swap(names, looked):
        staging.load(dataset, MEMBERS, members(*names))
        looked.clear()
        staging.swap(dataset, MEMBERS)
        assert looked.wait(30)

    assert counts_seen(place, client, dataset, reader, swap) == {2, 3}


def test_control_a_swap_in_two_steps_is_noticed(place, client, dataset, reader):
    target = f"`{place.project}.{dataset}.{MEMBERS.name}`"

    def swap(names, looked):
        run(client, f"DELETE FROM {target} WHERE TRUE")
        for _ in range(2):  # a look that begins now ends before the second
            looked.clear()
            assert looked.wait(30)
        write_rows(client, target, MEMBERS, members(*names), guarded=True)

    assert 0 in counts_seen(place, client, dataset, reader, swap)


def test_a_live_table_that_has_changed_since_is_left_alone(place, client, dataset, staging, reader):
    live(client, place, dataset, MEMBERS, members("old"))
    staging.load(dataset, MEMBERS, members("new"))
    ensure_table(client, dataset, replace(MEMBERS, columns=(*MEMBERS.columns, Column("later"))))
    with pytest.raises(ValueError, match="other columns"):
        staging.swap(dataset, MEMBERS)
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["old"]


# --- failures ---


def test_rows_that_end_in_an_error_leave_the_live_table(place, client, dataset, staging, reader):
    def broken():
        yield from members("new")
        raise ArithmeticError("no more rows")

    live(client, place, dataset, MEMBERS, members("old"))
    with pytest.raises(ArithmeticError):
        staging.load(dataset, MEMBERS, broken())
    with pytest.raises(ArithmeticError):
        staging.load_each(MEMBERS, ({**r, "dataset": dataset} for r in broken()))
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["old"]


def test_a_value_that_the_column_cannot_hold_leaves_the_live_table(place, client, dataset, staging, reader):
    live(client, place, dataset, RUNS, [row(RUNS, run_id="old")])
    with pytest.raises(ValueError):
        staging.load(dataset, RUNS, [row(RUNS, run_id="1"), row(RUNS, run_id="2", run_date="no day")])
    assert [r["run_id"] for r in reader.rows(dataset, RUNS)] == ["old"]


def test_more_rows_than_were_loaded_are_noticed(place, client, dataset, staging):
    """As when an upload is repeated because its answer was lost."""

    def rows():
        yield from members("a")
        target = f"`{place.project}.{dataset}.{MEMBERS.name}{SUFFIX}`"
        run(client, f"INSERT INTO {target} (member_id, position) VALUES ('a', 1)")

    with pytest.raises(ValueError, match="1 rows were loaded, and BigQuery has 2"):
        staging.load(dataset, MEMBERS, rows())


class _Refusing(BaseHTTPRequestHandler):
    """Between the client and an emulator: answers uploads, or copies, as a project without quota is answered."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Tests read no access log."""

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upload, copy = self.path.startswith("/upload/"), b'"copy"' in body
        if {"upload": upload, "copy": copy}[self.server.refused]:
            error = {"reason": self.server.reason, "message": "Quota exceeded: Your project exceeded its quota"}
            self._answer(
                403, json.dumps({"error": {"code": 403, "message": error["message"], "errors": [error]}}).encode()
            )
            return
        there = HTTPConnection(self.server.emulator.hostname, self.server.emulator.port, timeout=30)
        there.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Host"})
        answer = there.getresponse()
        self._answer(answer.status, answer.read())
        there.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def refusing(place, refused, reason):
    if place.emulator_url is None:
        pytest.skip("Google refuses when it wants to")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    server.daemon_threads = True
    server.emulator, server.refused, server.reason = urlsplit(place.emulator_url), refused, reason
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = connect(place.project, f"http://127.0.0.1:{server.server_address[1]}", LOCATION)
    with Staging(client, place.project, place.central, LOCATION) as staging:
        yield staging
    client.close()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("reason", "error"), [("quotaExceeded", Away), ("accessDenied", PermissionError)])
def test_a_load_or_a_swap_that_is_refused_leaves_the_live_table(
    place, client, dataset, *, staging, reader, reason, error
):
    live(client, place, dataset, MEMBERS, members("old"))
    with refusing(place, "upload", reason) as refused:
        with pytest.raises(error, match=r"(?i)quota"):
            refused.load(dataset, MEMBERS, members("new"))
        with pytest.raises(error, match=r"(?i)quota"):
            refused.load_each(MEMBERS, [{**r, "dataset": dataset} for r in members("new")])
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["old"]
    staging.load(dataset, MEMBERS, members("new"))
    with refusing(place, "copy", reason) as refused, pytest.raises(error, match=r"(?i)quota"):
        refused.swap(dataset, MEMBERS)
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["old"]
    staging.swap(dataset, MEMBERS)
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS)] == ["new"]


def test_nobody_there_is_away_within_ten_seconds(free_port):
    client = connect("nobody", f"http://127.0.0.1:{free_port}", LOCATION)
    with Staging(client, "nobody", "central", LOCATION) as staging:
        for work in (
            lambda: staging.load_each(LOGS, logs("acme_corp", 2), [f"other_{n}" for n in range(20)]),
            lambda: list(Reader(client, "nobody").rows("acme_corp", MEMBERS)),
        ):
            begun = time.monotonic()
            with pytest.raises(Away):
                work()
            assert time.monotonic() - begun < 10
    client.close()


@pytest.fixture
def free_port():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_address[1]


# --- reading ---


def test_rows_come_in_the_order_of_their_keys_bytes_whatever_the_page(place, client, dataset, reader):
    names = ["", " ", "A", "B", "Z", "a", "a b", "ab", "b", "z", "~", "é", "\uffff", "😀"]
    shuffled = members(*random.Random(1).sample(names, len(names)))  # noqa: S311 - the same each time
    live(client, place, dataset, MEMBERS, shuffled)
    assert sorted(names, key=str.encode) == names
    for page in (2, 5, len(names), 100):
        assert [r["member_id"] for r in reader.rows(dataset, MEMBERS, page=page)] == names


def test_a_key_of_two_columns_in_pages_and_chosen(place, client, dataset, reader):
    days = [date(2025, 1, day) for day in range(1, 4)]
    rows = [
        row(USAGE, 5, customer_id=c, usage_date=day, pipelines_run_today=3) for c in ("a", "b", "c") for day in days
    ]
    live(client, place, dataset, USAGE, rows[::-1])
    for page in (2, 4, 9, 10):
        assert list(reader.rows(dataset, USAGE, page=page)) == rows
    keys = [("c", days[0]), ("a", days[2]), ("a", days[2]), ("nobody", days[0]), ("b", date(2020, 1, 1))]
    assert list(reader.rows(dataset, USAGE, keys=keys)) == [rows[2], rows[6]]
    assert list(reader.rows(dataset, USAGE, keys=[])) == []


@pytest.mark.parametrize("page", [1, 2, 3, 4, 100])
def test_a_row_that_is_there_several_times_is_given_as_often(place, client, dataset, *, reader, mending, page):
    live(client, place, dataset, MEMBERS, members("a", "b", "c"))
    target = f"`{place.project}.{dataset}.{MEMBERS.name}`"
    for _ in range(2):
        run(client, f"INSERT INTO {target} (member_id, position) VALUES ('b', 7)")
    assert [r["member_id"] for r in reader.rows(dataset, MEMBERS, page=page)] == ["a", "b", "b", "b", "c"]
    assert [r["position"] for r in reader.rows(dataset, MEMBERS, keys=[("b",)])].count(7) == 2
    mending.mend(dataset, MEMBERS, members("b"), gone=[("b",)])
    assert list(reader.rows(dataset, MEMBERS, page=page)) == members("a", "b", "c")


def test_what_is_not_there_is_said(place, dataset, reader, mending):
    for work in (
        lambda: list(reader.rows(dataset, MEMBERS)),
        lambda: list(reader.rows("no_such_dataset", MEMBERS)),
        lambda: list(reader.rows(dataset, MEMBERS, keys=[("1",)])),
        lambda: reader.count(dataset, MEMBERS),
        lambda: mending.mend(dataset, MEMBERS, members("a")),
        lambda: mending.mend(dataset, MEMBERS, gone=[("a",)]),
    ):
        with pytest.raises(NotThere):
            work()


# --- mending ---


def mended(place, client, dataset, reader, mend):
    """Whether a table with a wrong row at a later position, one too few and one too many becomes as it ought to be."""
    right = [row(RUNS, n, run_id=f"{n}", state="COMPLETED", parameters={"n": n}, created_at=NOON) for n in (1, 2, 3)]
    wrong = [right[0], {**right[1], "state": "WRONG", "position": 99}, row(RUNS, 5, run_id="ghost")]
    live(client, place, dataset, RUNS, wrong)
    for _ in range(2):
        mend(dataset, RUNS, right[1:], [("ghost",), ("never",)])
    return list(reader.rows(dataset, RUNS)) == right


def test_mending_writes_exactly_these_rows(place, client, dataset, reader, mending):
    assert mended(place, client, dataset, reader, mending.mend)


def test_control_what_writes_only_later_rows_does_not_mend(place, client, dataset, reader, mending):
    def mend(dataset, table, rows, gone):
        mending.mend(dataset, table, gone=gone)
        write_rows(client, f"`{place.project}.{dataset}.{table.name}`", table, rows, guarded=True)

    assert not mended(place, client, dataset, reader, mend)


def test_after_mending_the_projector_goes_on(place, client, dataset, *, reader, mending, warehouse):
    live(client, place, dataset, LOGS, [row(LOGS, 9, pipeline_logging_id="1", status="WRONG")])
    mending.mend(dataset, LOGS, [row(LOGS, 4, pipeline_logging_id="1", status="RUNNING")])
    warehouse.write([Change(Set(LOGS, {"pipeline_logging_id": "1", "status": "COMPLETED"}), 5, dataset)])
    assert [(r["status"], r["position"]) for r in reader.rows(dataset, LOGS)] == [("COMPLETED", 5)]
