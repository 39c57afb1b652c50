"""Data quality: what passes, warns and fails, and what is said of it."""

import pytest
from google.cloud import bigquery

NONE_REFUSED = "0 values not accepted"
HOURS = "the latest is 11 hours old"
COUNT = "{check: row_count, minimum: 3}"


@pytest.fixture
def things(bench):
    """Three things, one of them twice, with a gap, seen on two days."""
    kinds = {"id": "STRING", "kind": "STRING", "size": "INT64", "seen": "DATE", "moment": "TIMESTAMP"}
    schema = [bigquery.SchemaField(name, kind) for name, kind in kinds.items()]
    bench.client.create_table(bigquery.Table(f"{bench.client.project}.{bench.customer}.things", schema), timeout=30)
    bench.rows(
        f"INSERT INTO {bench.table('things')} (id, kind, size, seen, moment) VALUES"
        " ('a', 'box', 1, DATE '2025-11-16', TIMESTAMP '2025-11-17 12:00:00+00'),"
        " ('a', 'box', 5, DATE '2025-11-16', TIMESTAMP '2025-11-16 12:00:00+00'),"
        " ('CANARY', NULL, -2, DATE '2025-11-15', NULL)"
    )
    return bench


def check(bench, *expectations: str, where: str = "TRUE", **sql: str):
    checks = ", ".join(expectations)
    yaml = f'steps: [{{id: dq, type: data_quality, table: things, where: "{where}", expectations: [{checks}]}}]'
    bench.template("it", yaml, **sql)
    return bench.run("gcp/test/it", "2025-11-17")


def results(bench) -> list[tuple[str, bool, str]]:
    return [(e.name, e.passed, e.observed) for e in bench.progress.steps["dq"].expectations]


@pytest.mark.parametrize(
    ("expectation", "name", "passed", "observed"),
    [
        ("{check: row_count, minimum: 3, maximum: 3}", "row_count", True, "3 rows"),
        ("{check: row_count, minimum: 4}", "row_count", False, "3 rows"),
        ("{check: row_count, maximum: 2}", "row_count", False, "3 rows"),
        ("{check: not_null, columns: [id]}", "not_null(id)", True, "0 rows without a value"),
        ("{check: not_null, columns: [kind]}", "not_null(kind)", False, "1 rows without a value"),
        ("{check: unique, columns: [id, size]}", "unique(id, size)", True, "0 duplicates of (id, size)"),
        ("{check: unique, columns: [id]}", "unique(id)", False, "1 duplicates of (id)"),
        ("{check: range, column: size, minimum: -2, maximum: 5}", "range(size)", True, "0 values out of range"),
        ("{check: range, column: size, minimum: 0, maximum: 4}", "range(size)", False, "2 values out of range"),
        ("{check: accepted_values, column: kind, values: [box]}", "accepted_values(kind)", True, NONE_REFUSED),
        ("{check: accepted_values, column: id, values: [a]}", "accepted_values(id)", False, "1 values not accepted"),
        ("{check: freshness, column: moment, max_age_hours: 12}", "freshness(moment)", True, HOURS),
        ("{check: freshness, column: moment, max_age_hours: 11}", "freshness(moment)", False, HOURS),
        ("{check: freshness, column: seen, max_age_hours: 24}", "freshness(seen)", True, "the latest is 24 hours old"),
        ("{check: custom_sql, name: mine, sql: mine.sql}", "mine", False, "3 things"),
    ],
)  # fmt: skip
def test_each_expectation(things, expectation, name, passed, observed):
    count = "CONCAT(CAST(COUNT(*) AS STRING), ' things')"
    mine = f"SELECT COUNT(*) = 4 AS passed, {count} AS observed FROM {{{{ table('things') }}}}"
    report = check(things, expectation, mine=mine)
    assert results(things) == [(name, passed, observed)]
    assert report.succeeded is passed
    assert things.progress.steps["dq"].target_table == "things"
    assert "CANARY" not in repr(things.progress.steps)
    if not passed:
        assert report.error == f"Data quality: {name}: {observed}."


def test_a_warning_is_recorded_and_fails_nothing(things):
    report = check(things, "{check: unique, columns: [id], severity: warn}", COUNT)
    assert report.succeeded
    assert results(things) == [("unique(id)", False, "1 duplicates of (id)"), ("row_count", True, "3 rows")]
    step = things.progress.steps["dq"]
    assert [e.severity for e in step.expectations] == ["warn", "fail"]
    assert step.metadata["passed"] == 1


def test_only_the_rows_that_are_looked_at_count(things):
    assert check(things, "{check: row_count, maximum: 1}", where="seen < DATE_SUB(@run_date, INTERVAL 1 DAY)").succeeded


def test_a_value_that_nothing_has_found_is_a_clear_error(things):
    assert check(things, COUNT, where="seen IN UNNEST(@days)").error == (
        "The statement needs @days, which no earlier step has found."
    )
    report = check(things, "{check: row_count, equals: nothing}")
    assert report.error == "The expectation row_count needs @nothing, which no earlier step has found."


def test_a_column_that_is_no_name_never_reaches_bigquery(things):
    report = check(things, "{check: not_null, columns: ['id` IS NULL) FROM x; --']}")
    assert not report.succeeded
    assert things.progress.steps["dq"].metadata["job_ids"] == []
