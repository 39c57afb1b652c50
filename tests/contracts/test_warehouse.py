"""What the warehouse promises, at an emulator and, where there is a project, at Google."""

import random
import re
import socket
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
from google.cloud import bigquery
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapters.bigquery.client import NotThere, connect, run
from adapters.bigquery.merge import CHUNK_BYTES, CHUNK_ROWS, merge_of, merge_sql
from adapters.bigquery.tables import dataset_of, ensure_dataset, ensure_table
from adapters.bigquery.warehouse import BigQueryWarehouse
from application.ports import Away
from projections.fold import fold
from projections.rows import Change, Column, Put, Set, Table
from projections.tables import (
    CENTRAL,
    CUSTOMER,
    CUSTOMER_API_KEYS,
    CUSTOMER_TEAM_MEMBERS,
    SCHEDULED_PIPELINE_RUNS,
    X_META_PIPELINE_RUNS,
    X_META_STEP_LOGS,
)
from tests.contracts.warehouse_place import LOCATION, fresh, log, whole

NOON = datetime(2025, 11, 17, 12, 0, 0, 123456, tzinfo=UTC)
MEMBERS, RUNS, KEYS = CUSTOMER_TEAM_MEMBERS, SCHEDULED_PIPELINE_RUNS, CUSTOMER_API_KEYS
GUARD = " AND s.position > t.position"
# Every example talks to a server: few of them, the same each time, and no minutes of shrinking one that fails.
FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def stored(warehouse, place, table, prefix="", dataset=None):
    """The rows whose key begins so, by key, NULLs left out."""
    answer = warehouse.query(
        f"SELECT * FROM `{place.project}.{dataset or place.central}.{table.name}`"
        f" WHERE STARTS_WITH({table.key[0]}, @prefix)",
        {"prefix": prefix},
    )
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    found = {row[table.key[0]]: {name: value for name, value in row.items() if value is not None} for row in rows}
    assert len(found) == len(rows), "a row twice"
    return found


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
MAYBE = st.none()


@settings(FEW, max_examples=15)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "error_message": MAYBE | TEXT,
                "rows_processed": MAYBE | INT64,
                "scheduled_time": MAYBE | INSTANTS,
                "run_date": MAYBE | st.dates(),
                "parameters": MAYBE | DOCUMENTS,
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_values_come_back_as_they_went(warehouse, place, rows):
    prefix = fresh()
    sent = {f"{prefix}{n}": values for n, values in enumerate(rows)}
    warehouse.write(log(*(whole(RUNS, run_id=key, **values) for key, values in sent.items())))
    back = stored(warehouse, place, RUNS, prefix)
    for position, (key, values) in enumerate(sent.items(), 1):
        expected = {name: value for name, value in values.items() if value is not None}
        assert back[key] == {"run_id": key, "position": position, **expected}


@settings(FEW)
@given(st.binary(max_size=40) | MAYBE, st.booleans() | MAYBE)
def test_bytes_and_booleans_come_back_as_they_went(warehouse, place, ciphertext, active):
    prefix = fresh()
    warehouse.write(log(whole(KEYS, api_key_id=prefix, encrypted_api_key=ciphertext, is_active=active)))
    [row] = stored(warehouse, place, KEYS, prefix).values()
    assert (row.get("encrypted_api_key"), row.get("is_active")) == (ciphertext, active)


@pytest.mark.parametrize(
    "text", ["null", "NULL", "", '"', "'", "\\", "\n", "`", "@rows", "{}", "[1]", "\u2028", "😀é", "$1"]
)
def test_text_that_looks_like_something_else(warehouse, place, text):
    prefix = fresh()
    warehouse.write(log(whole(MEMBERS, member_id=prefix + text, name=text)))
    assert stored(warehouse, place, MEMBERS, prefix)[prefix + text]["name"] == text


def test_what_a_table_cannot_hold_is_refused_before_anything_is_written(warehouse, place):
    prefix = fresh()
    good = whole(MEMBERS, member_id=prefix)
    for bad in (
        whole(RUNS, run_id=prefix, created_at=NOON.replace(tzinfo=None)),
        whole(RUNS, run_id=prefix, nothing=1),
        Put(RUNS, {"run_id": prefix}),
        Set(RUNS, {"run_id": prefix, "nothing": 1}),
    ):
        with pytest.raises(ValueError, match="scheduled_pipeline_runs"):
            warehouse.write(log(good, bad))
    assert stored(warehouse, place, MEMBERS, prefix) == {}


# --- positions ---


def apply(rows, changes):
    """The effect of changes on rows, a dict by key, written down independently."""
    for change in changes:
        table, values = change.row.table, change.row.values
        key = values[table.key[0]]
        if key in rows and change.position <= rows[key]["position"]:
            continue
        if isinstance(change.row, Put):
            rows[key] = {**values, "position": change.position}
        elif key in rows:
            rows[key] = {**rows[key], **values, "position": change.position}
    return rows


def without_nulls(rows):
    return {key: {n: v for n, v in row.items() if v is not None} for key, row in rows.items()}


FIELDS = st.dictionaries(st.sampled_from(["email", "name", "role"]), MAYBE | st.sampled_from("xyz"), max_size=3)


@st.composite
def histories(draw):
    """A few rows' changes in log order, as functions of the rows' prefix."""
    drawn = draw(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), FIELDS), min_size=1, max_size=7))

    def row(put, key, values):
        return whole(MEMBERS, member_id=key, **values) if put else Set(MEMBERS, {"member_id": key, **values})

    return lambda prefix: log(*(row(put, prefix + key, values) for key, put, values in drawn))


@settings(FEW, max_examples=5)
@given(histories(), st.integers(0, 999))
def test_one_batch_one_by_one_and_crashes_in_between_end_the_same(warehouse, place, history, seed):
    at_once, single, crashing = fresh(), fresh(), fresh()
    warehouse.write(history(at_once))
    for change in history(single):
        warehouse.write([change])
    changes, chance = history(crashing), random.Random(seed)  # noqa: S311 - hypothesis draws the seed
    done = 0
    while done < len(changes):
        end = chance.randint(done + 1, len(changes))
        warehouse.write(changes[done:end])
        if chance.random() < 0.5:  # otherwise written, and killed before the checkpoint: it comes again, cut elsewhere
            done = end
    for prefix in (at_once, single, crashing):
        assert stored(warehouse, place, MEMBERS, prefix) == without_nulls(apply({}, history(prefix)))


def replays_and_reorderings_change_nothing(write, read):
    """Whole rows of 40 events, written in order, then every one again in any order and twice: the newest stay."""
    prefix, chance = fresh(), random.Random(1)  # noqa: S311 - the same shuffle each time
    changes = log(*(whole(MEMBERS, member_id=f"{prefix}{n % 7}", name=f"version {n}") for n in range(40)))
    write(changes)
    before = read(prefix)
    assert before == without_nulls(apply({}, changes))
    again = [*changes, *changes]
    chance.shuffle(again)
    for start in range(0, len(again), 20):
        write(again[start : start + 20])
    return read(prefix) == before


def test_replays_and_reorderings_change_nothing(warehouse, place):
    assert replays_and_reorderings_change_nothing(warehouse.write, lambda p: stored(warehouse, place, MEMBERS, p))


def test_control_without_the_guard_a_replay_is_noticed(warehouse, place, client):
    def write(changes):
        merge = merge_of(fold(changes).rows)
        sql = merge_sql(f"`{place.project}.{place.central}.{MEMBERS.name}`", MEMBERS, merge.shape)
        assert GUARD in sql
        for chunk in merge.chunks:
            run(client, sql.replace(GUARD, ""), [bigquery.ScalarQueryParameter("rows", "STRING", chunk)])

    assert not replays_and_reorderings_change_nothing(write, lambda p: stored(warehouse, place, MEMBERS, p))


def test_whole_rows_in_any_order_end_as_the_newest(warehouse, place):
    prefix = fresh()
    changes = log(*(whole(MEMBERS, member_id=f"{prefix}{n % 3}", name=f"version {n}") for n in range(9)))
    for change in reversed(changes):
        warehouse.write([change])
    assert stored(warehouse, place, MEMBERS, prefix) == without_nulls(apply({}, changes))


@pytest.mark.parametrize("emptied", ["whole", "set"])
def test_a_column_that_all_rows_empty_is_emptied(warehouse, place, emptied):
    """Nothing of it travels: neither must what stood there stay."""
    prefix = fresh()
    ids = [prefix + "1", prefix + "2"]
    begun = {"worker_id": "w", "attempt": 1, "parameters": {"a": 1}, "created_at": NOON}
    warehouse.write(log(*(whole(RUNS, run_id=run_id, state="RUNNING", **begun) for run_id in ids)))
    nothing = dict.fromkeys(begun)
    again = [
        whole(RUNS, run_id=run_id, state="PENDING", **nothing)
        if emptied == "whole"
        else Set(RUNS, {"run_id": run_id, "state": "PENDING", **nothing})
        for run_id in ids
    ]
    merge = merge_of(fold(log(*again, start=3)).rows)
    assert set(begun) <= set(merge.shape.empty)
    warehouse.write(log(*again, start=3))
    assert stored(warehouse, place, RUNS, prefix) == {
        run_id: {"run_id": run_id, "state": "PENDING", "position": position} for position, run_id in enumerate(ids, 3)
    }


def test_a_column_that_some_rows_empty_travels(warehouse, place):
    """The control."""
    prefix = fresh()
    one, other = Set(RUNS, {"run_id": prefix + "1", "worker_id": None}), Set(RUNS, {"run_id": prefix, "worker_id": "w"})
    merge = merge_of(fold(log(one, other)).rows)
    assert merge.shape.empty == ()
    assert "worker_id" in merge.shape.columns


def test_a_set_that_only_empties_a_column(warehouse, place):
    prefix = fresh()
    warehouse.write(log(whole(RUNS, run_id=prefix, state="RUNNING", worker_id="w")))
    warehouse.write(log(Set(RUNS, {"run_id": prefix, "worker_id": None}), start=2))
    assert stored(warehouse, place, RUNS, prefix)[prefix] == {"run_id": prefix, "state": "RUNNING", "position": 2}


def test_a_set_keeps_the_other_columns_and_makes_no_row(warehouse, place):
    prefix = fresh()
    warehouse.write(
        log(whole(RUNS, run_id=prefix + "1", state="PENDING", attempt=1, parameters={"a": [1]}, created_at=NOON))
    )
    warehouse.write(
        log(
            Set(RUNS, {"run_id": prefix + "1", "state": "RUNNING"}),
            Set(RUNS, {"run_id": prefix + "unknown", "state": "RUNNING", "worker_id": "w"}),
            start=2,
        )
    )
    expected = {"run_id": prefix + "1", "state": "RUNNING", "attempt": 1, "parameters": {"a": [1]}, "created_at": NOON}
    assert stored(warehouse, place, RUNS, prefix) == {prefix + "1": {**expected, "position": 2}}


def test_one_statement_makes_changes_and_clears_columns(warehouse, place):
    prefix = fresh()
    warehouse.write(log(*(whole(RUNS, run_id=f"{prefix}{n}", state="A", attempt=n, parameters={}) for n in range(3))))
    warehouse.write(
        log(
            Set(RUNS, {"run_id": prefix + "0", "parameters": None}),
            Set(RUNS, {"run_id": prefix + "1", "state": None, "attempt": 9}),
            whole(RUNS, run_id=prefix + "2", state="B"),
            whole(RUNS, run_id=prefix + "3", state="C", run_date=date(2025, 1, 1)),
            start=4,
        )
    )
    assert list(dict(sorted(stored(warehouse, place, RUNS, prefix).items())).values()) == [
        {"run_id": prefix + "0", "state": "A", "attempt": 0, "position": 4},
        {"run_id": prefix + "1", "attempt": 9, "parameters": {}, "position": 5},
        {"run_id": prefix + "2", "state": "B", "position": 6},
        {"run_id": prefix + "3", "state": "C", "run_date": date(2025, 1, 1), "position": 7},
    ]


# --- datasets and tables ---


def test_tables_are_laid_out_as_defined(warehouse, place, client):
    customer = place.customer()
    assert warehouse.ensure_customer(customer) == [table.name for table in CUSTOMER]
    assert warehouse.ensure_customer(customer) == [table.name for table in CUSTOMER]
    for dataset, tables in ((place.central, CENTRAL), (customer, CUSTOMER)):
        for table in tables:
            found = client.get_table(f"{dataset}.{table.name}", timeout=10)
            assert [f.name for f in found.schema] == [*table.names, "position"]
            assert {f.name for f in found.schema if f.mode == "REQUIRED"} == {*table.key, "position"}
            assert (found.time_partitioning.field if found.time_partitioning else None) == table.partition_by
            assert tuple(found.clustering_fields or ()) == table.cluster_by


def test_a_missing_dataset_is_made_by_writing_also_when_it_goes_later(warehouse, place, client):
    customer, row = place.customer(), whole(X_META_PIPELINE_RUNS, pipeline_logging_id="1", status="RUNNING")
    warehouse.write(log(row, customer=customer))
    client.delete_dataset(customer, delete_contents=True, timeout=30)
    warehouse.write(log(row, customer=customer))
    assert list(stored(warehouse, place, X_META_PIPELINE_RUNS, dataset=customer)) == ["1"]


def test_customers_are_apart(warehouse, place):
    one, other = place.customer(), place.customer()
    row = whole(X_META_STEP_LOGS, step_logging_id="same", start_time=NOON)
    rows = [Put(row.table, {**row.values, "status": name}) for name in (one, other)]
    warehouse.write([Change(rows[0], 1, one), Change(rows[1], 2, other)])
    for customer in (one, other):
        found = stored(warehouse, place, X_META_STEP_LOGS, dataset=customer)
        assert [row["status"] for row in found.values()] == [customer]


@pytest.mark.parametrize("bad", ["ab", "a" * 51, "acme.x", "acme`x", "acme x", "acme\n", "akmé", "acme-corp", ""])
def test_an_id_that_is_no_dataset_is_refused(warehouse, bad):
    for refused in (
        lambda: dataset_of(bad),
        lambda: warehouse.ensure_customer(bad),
        lambda: warehouse.write(log(whole(X_META_STEP_LOGS, step_logging_id="1"), customer=bad)),
    ):
        with pytest.raises(ValueError, match="3 to 50"):
            refused()


def test_new_columns_are_added_and_old_rows_keep_theirs(place, client):
    dataset = place.customer()
    old = Table(name="grown", description="", columns=(Column("id"), Column("kept")), key=("id",))
    new = replace(old, columns=(*old.columns, *(c for c in RUNS.columns if c.name in ("parameters", "created_at"))))
    ensure_dataset(client, dataset, LOCATION)
    ensure_table(client, dataset, old)
    target = f"`{place.project}.{dataset}.grown`"
    run(client, f"INSERT INTO {target} (id, kept, position) VALUES ('1', 'x', 1)")
    for _ in range(2):
        ensure_table(client, dataset, new)
    assert {f.name for f in client.get_table(f"{dataset}.grown", timeout=10).schema} == {*new.names, "position"}
    merge = merge_of(fold(log(Set(new, {"id": "1", "created_at": NOON, "parameters": [1]}), start=2)).rows)
    rows = [bigquery.ScalarQueryParameter("rows", "STRING", merge.chunks[0])]
    run(client, merge_sql(target, new, merge.shape), rows)
    row = next(iter(run(client, f"SELECT id, kept, created_at, parameters FROM {target}").result(timeout=30)))
    assert row.values() == ("1", "x", NOON, [1])


def test_what_fails_is_raised_and_the_other_tables_are_written(warehouse, place, client):
    customer = place.customer()
    ensure_dataset(client, customer, LOCATION)
    wrong = bigquery.Table(
        f"{place.project}.{customer}.{X_META_STEP_LOGS.name}", schema=[bigquery.SchemaField("step_logging_id", "DATE")]
    )
    client.create_table(wrong, timeout=10)
    changes = log(
        whole(X_META_STEP_LOGS, step_logging_id="1"),
        whole(X_META_PIPELINE_RUNS, pipeline_logging_id="1"),
        customer=customer,
    )
    with pytest.raises(ValueError):
        warehouse.write(changes)
    assert list(stored(warehouse, place, X_META_PIPELINE_RUNS, dataset=customer)) == ["1"]


# --- size ---


def test_chunks_are_bounded_by_rows_and_by_bytes():
    many = merge_of(fold(log(*(whole(MEMBERS, member_id=str(n)) for n in range(CHUNK_ROWS + 1)))).rows)
    assert [chunk.count('"') // 2 for chunk in many.chunks] == [CHUNK_ROWS, 1]
    big = merge_of(fold(log(*(whole(MEMBERS, member_id=str(n), name="é" * 200_000) for n in range(20)))).rows)
    assert len(big.chunks) > 2
    assert all(len(chunk.encode()) <= CHUNK_BYTES for chunk in big.chunks)
    assert sum(chunk.count("é") for chunk in big.chunks) == 20 * 200_000


def test_large_batches_arrive(warehouse, place):
    prefix = fresh()
    warehouse.write(log(*(whole(MEMBERS, member_id=f"{prefix}{n}", name="😀" * 100_000) for n in range(12))))
    rows = stored(warehouse, place, MEMBERS, prefix)
    assert {len(row["name"]) for row in rows.values()} == {100_000}
    warehouse.write(log(*(whole(KEYS, api_key_id=f"{prefix}{n}") for n in range(CHUNK_ROWS + 10))))
    count = f"SELECT COUNT(*) FROM `{place.project}.{place.central}.{KEYS.name}` WHERE STARTS_WITH(api_key_id, @p)"
    assert warehouse.query(count, {"p": prefix}).rows[0][0] == CHUNK_ROWS + 10


# --- queries ---


def test_every_published_query_runs(place):
    """At an emulator to the letter, in a project of its own; at Google in a dataset of the suite's."""
    project = place.project if place.emulator_url is None else f"published-{uuid4().hex[:8]}"
    central = place.central if place.emulator_url is None else "customers_metadata"
    customer = place.customer()
    warehouse = BigQueryWarehouse(connect(project, place.emulator_url, LOCATION), project, central, LOCATION)
    warehouse.ensure_central()
    warehouse.ensure_customer(customer)
    text = Path(__file__).with_name("published_queries.sql").read_text("utf-8")
    for name, filled in (("gac-prod-471220", project), ("customers_metadata", central), ("demo_test", customer)):
        text = text.replace(name, filled)
    statements = [s for s in re.sub(r"^--.*$", "", text, flags=re.MULTILINE).split(";") if s.strip()]
    assert len(statements) == 21
    for statement in statements:
        answer = warehouse.query(statement.replace("{customer_id}", customer))
        assert (answer.affected is not None) == ("UPDATE" in statement)
        assert answer.columns or answer.affected is not None
    warehouse.close()


def test_a_query_answers_with_plain_values(warehouse):
    parameters = {
        "text": "x' OR 1=1 --", "number": 2**63 - 1, "real": 0.5, "money": Decimal("1.25"), "yes": True,
        "at": NOON, "day": date(2025, 1, 2), "none": None, "list": [1, 2], "words": ["a", "b"], "empty": [],
    }  # fmt: skip
    sql = "SELECT @text, @number, @real, @money, @yes, @at, @day, @none, @list, @words, ARRAY_LENGTH(@empty)"
    [row] = warehouse.query(sql, parameters).rows
    assert list(row) == [*list(parameters.values())[:-1], 0]
    assert warehouse.query("SELECT 1 AS one, 'x' AS two").columns == ["one", "two"]


def test_an_update_tells_how_many_rows(warehouse, place):
    prefix = fresh()
    warehouse.write(log(*(whole(MEMBERS, member_id=f"{prefix}{n}") for n in range(3))))
    sql = f"UPDATE `{place.project}.{place.central}.{MEMBERS.name}` SET name = @n WHERE STARTS_WITH(member_id, @p)"
    assert warehouse.query(sql, {"n": "x", "p": prefix}).affected == 3


def test_a_wrong_statement_gets_bigquerys_sentence(warehouse, place):
    with pytest.raises(ValueError, match=r"(?i)syntax") as wrong:
        warehouse.query("SELEC 1")
    assert "http" not in str(wrong.value)
    with pytest.raises(NotThere, match="nowhere"):
        warehouse.query(f"SELECT * FROM `{place.project}.{place.central}.nowhere`")
    with pytest.raises(NotThere):
        warehouse.query(f"SELECT * FROM `{place.project}.no_such_dataset.nowhere`")


@pytest.mark.parametrize("sql", ["BEGIN TRANSACTION", "begin transaction;", "BEGIN;", " BEGIN TRANSACTION; SELECT 1"])
def test_a_transaction_left_open_is_refused(warehouse, sql):
    with pytest.raises(ValueError, match="transaction"):
        warehouse.query(sql)
    assert warehouse.query("SELECT 1").rows[0][0] == 1


@pytest.mark.parametrize("value", [b"x", object(), NOON.replace(tzinfo=None), {"a": 1}])
def test_a_parameter_that_would_not_arrive_as_it_is_is_refused(warehouse, value):
    with pytest.raises(ValueError, match="Parameter p"):
        warehouse.query("SELECT @p", {"p": value})


# --- away ---


def calls(warehouse):
    rows = [whole(MEMBERS, member_id="1"), *(whole(table, **{table.key[0]: "1"}) for table in CUSTOMER)]
    return {
        "write": lambda: warehouse.write(log(*rows)),
        "query": lambda: warehouse.query("SELECT 1"),
        "ensure_central": warehouse.ensure_central,
        "ensure_customer": lambda: warehouse.ensure_customer("acme_corp"),
    }


@pytest.mark.parametrize("name", ["write", "query", "ensure_central", "ensure_customer"])
def test_nobody_listening_is_away_within_ten_seconds(name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    warehouse = BigQueryWarehouse(
        connect("nobody", f"http://127.0.0.1:{port}", LOCATION), "nobody", "central", LOCATION
    )
    started = time.monotonic()
    with pytest.raises(Away):
        calls(warehouse)[name]()
    assert time.monotonic() - started < 10
    warehouse.close()


def test_somebody_silent_is_away_within_ten_seconds_for_tables():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        warehouse = BigQueryWarehouse(connect("silent", url, LOCATION), "silent", "central", LOCATION)
        started = time.monotonic()
        with pytest.raises(Away):
            warehouse.ensure_central()
        assert time.monotonic() - started < 10
        warehouse.close()
