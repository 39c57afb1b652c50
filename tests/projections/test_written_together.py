"""Rows that are written together share what they have in common, and are what each would be by itself."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.postgres import rows
from projections.rows import Change, Put, Set, Table, Type
from projections.tables import CUSTOMER_API_KEYS, CUSTOMER_PIPELINE_CONFIGS, CUSTOMER_USAGE, SCHEDULED_PIPELINE_RUNS
from tests.application.world import World
from tests.projections.test_replay import database

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FEW: Mapping[Type, Sequence[Any]] = {
    Type.STRING: ("a", "", "é\n\\x"),
    Type.INT64: (0, 1, -(2**60)),
    Type.BOOL: (False, True),
    Type.TIMESTAMP: (NOON, NOON.astimezone(timezone(timedelta(hours=2))), NOON + timedelta(microseconds=1)),
    Type.DATE: (date(2026, 3, 1), date(2024, 2, 29)),
    Type.BYTES: (b"", b"\x00\xff", b"a"),
    Type.JSON: ({"a": 1}, {"a": True}, {"a": 1.0}, {}, [], ["x"], {"n": None}),
}
TABLES = (CUSTOMER_API_KEYS, CUSTOMER_PIPELINE_CONFIGS, CUSTOMER_USAGE, SCHEDULED_PIPELINE_RUNS)


def whole(table: Table, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose key is its number, in one column where there are two."""
    keys: dict[str, Any] = dict.fromkeys(table.key, "same")
    if table is CUSTOMER_USAGE:
        keys["usage_date"] = date(2026, 1, 1) + timedelta(days=number)
    else:
        keys[table.key[0]] = f"row {number}"
    return {**values, **keys}


@st.composite
def batches(draw: st.DrawFn) -> tuple[Table, list[dict[str, Any]], list[str]]:
    """A table, some rows of it, and the columns that are set in them once more."""
    table = draw(st.sampled_from(TABLES))
    column = {c.name: st.sampled_from((None, *FEW[c.type])) for c in table.columns}
    alike = draw(st.fixed_dictionaries(column))
    different = draw(st.lists(st.sampled_from(table.names), max_size=4))
    rows_of = [
        whole(table, number, {**alike, **{name: draw(column[name]) for name in different}})
        for number in range(draw(st.integers(1, 6)))
    ]
    others = [name for name in table.names if name not in table.key]
    return table, rows_of, draw(st.lists(st.sampled_from(others), unique=True, min_size=1, max_size=4))


def written(world: World, table: Table, groups: Sequence[Sequence[Change]]) -> list[dict[str, Any]]:
    with world.datastore.transaction_cursor() as cursor:
        cursor.execute(f"TRUNCATE {table.name}")
        for changes in groups:
            rows.write(cursor, changes)
        order = ", ".join(table.key)
        query = f"SELECT to_jsonb(t)::text AS row FROM {table.name} t ORDER BY {order}"
        return cursor.execute(query).fetchall()


@pytest.fixture(scope="module")
def tables(postgres_server, migrated_template, tmp_path_factory) -> Iterator[World]:
    key_file = tmp_path_factory.mktemp("keys") / "key"
    with database(postgres_server, migrated_template) as dsn, World(dsn, key_file) as world:
        yield world


LOOKALIKES = [
    {**dict.fromkeys(CUSTOMER_PIPELINE_CONFIGS.names), "config_id": f"row {n}", "parameters": value}
    for n, value in enumerate(({"a": 1}, {"a": True}, {"a": 1.0}))
]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batch=batches())
@example(batch=(CUSTOMER_PIPELINE_CONFIGS, LOOKALIKES, ["parameters"]))
def test_they_are_what_each_would_be_by_itself(tables, batch):
    table, values, again = batch
    puts = [Change(Put(table, row), number, "c") for number, row in enumerate(values, 1)]
    sets = [
        Change(Set(table, {**{k: row[k] for k in table.key}, **{name: row[name] for name in again}}), number, "c")
        for number, row in enumerate(values, len(values) + 1)
    ]
    apart = written(tables, table, [[change] for change in (*puts, *sets)])
    assert written(tables, table, [puts, sets]) == apart
    assert len(apart) == len(values)
    empty = [Change(Set(table, {**c.row.values, **dict.fromkeys(again)}), c.position + 100, "c") for c in sets]
    assert written(tables, table, [puts, sets, empty]) == written(tables, table, [[c] for c in (*puts, *sets, *empty)])


def test_what_is_the_same_for_all_of_them_is_said_once():
    text = "a text that is the same in every row"
    values = dict.fromkeys(SCHEDULED_PIPELINE_RUNS.names) | {"state": text}
    changes = [Change(Put(SCHEDULED_PIPELINE_RUNS, {**values, "run_id": str(n)}), n, "c") for n in range(1, 1000)]
    sent = b"".join(bytes(p.obj) for _, given in rows.writes_of(rows.fold(changes)[1]) for p in given)
    assert sent.count(text.encode()) == 1
