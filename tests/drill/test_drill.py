"""What is backed up can be restored elsewhere, with equal digests, and goes on there."""

from contextlib import ExitStack

import psycopg
import pytest

from tests.drill.drill import NAMES, Drill
from tests.projections.test_replay import database


@pytest.fixture
def drill(postgres_server, tmp_path):
    """On three databases of one server, which is quicker than on three servers."""
    with ExitStack() as stack:
        dsns = {name: stack.enter_context(database(postgres_server, "template1")) for name in NAMES}
        yield Drill(tmp_path, dsns, deeds=60)


def test_both_backups_are_the_original_bit_for_bit_and_go_on(drill):
    drill.back_up_and_restore()
    # The control: one value of one row of each copy.
    change(drill, "pipelines_run_month + 1")
    drill.compare()
    report = drill.report
    assert report.differing("restored") == report.differing("imported") == ["customer_usage"]
    change(drill, "pipelines_run_month - 1")
    drill.compare()
    assert report.differing("restored") == report.differing("imported") == []
    assert len(set(report.hashes.values())) == 1
    drill.go_on()
    for counted in (report.taken_over, report.finished, report.credentials):
        assert counted["original"] == counted["restored"] == counted["imported"] >= 3
    assert report.succeeded


def change(drill: Drill, to: str) -> None:
    for name in NAMES[1:]:
        with psycopg.connect(drill.dsns[name]) as connection:
            connection.execute(f"UPDATE customer_usage SET pipelines_run_month = {to}")
