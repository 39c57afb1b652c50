"""Back-fill: one run for each day that lies behind, in order, as far as the quota goes, and however often asked for."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from application import pipelines
from application.backfill import Backfill, Backfilled, backfill
from domain.identity import backfill_run_id
from domain.refusals import Conflict, Forbidden, Invalid, Limit, NotFound, QuotaExceeded
from tests.application.world import World, race

ID = "6b1f6f0e-5a0e-4b6f-9a55-1c0de5f1a9e4"


@pytest.fixture
def daily(acme) -> World:
    """ACME (25 runs a day, 5 at a time) with a daily pipeline, on 20 November 2035, 12:00 UTC."""
    acme.at = datetime(2035, 11, 20, 12, 0, tzinfo=UTC)
    acme.pipeline(config_id="daily", parameters={"days": 2})
    return acme


def fill(world: World, first: str = "2035-11-01", last: str = "2035-11-10", **more: Any) -> Backfilled:
    given = {"customer_id": "acme", "config_id": "daily", "backfill_id": ID, "first": first, "last": last, **more}
    return backfill(Backfill(**world.stamp(), **given), world.platform, world.catalogue)


def days(world: World, **where: Any) -> list[date]:
    """The days that have runs, in the order of the queue."""
    rows = world.rows("scheduled_pipeline_runs", trigger_type="backfill", **where)
    return [row["run_date"] for row in sorted(rows, key=lambda row: row["scheduled_time"])]


def span(first: int, last: int) -> list[date]:
    return [date(2035, 11, day) for day in range(first, last + 1)]


def test_makes_one_run_a_day_in_order(daily):
    assert fill(daily) == Backfilled(ID, queued=10, refused=0, next_from=None, refusal=None)
    assert days(daily) == span(1, 10)
    row = daily.run(str(backfill_run_id("acme", ID, date(2035, 11, 1))))
    assert (row["config_id"], row["backfill_id"], row["parameters"]) == ("daily", ID, {"days": 2})
    assert (row["trigger_type"], row["trigger_by"], row["state"]) == ("backfill", "admin", "PENDING")
    assert (row["pipeline_template"], row["scheduled_time"]) == ("cost_billing", daily.at)
    assert {queued["priority"] for queued in daily.rows("pipeline_execution_queue")} == {50}
    assert daily.usage() == (10, 10, 0)
    assert daily.kinds().count("RunsAdmitted") == 1


def test_runs_in_the_order_of_the_days_in_half_of_the_places(daily):
    fill(daily)
    done = []
    while orders := daily.claim():
        assert len(orders) == 2
        done += [order.run_date for order in orders]
        daily.report(orders)
    assert sorted(done) == span(1, 10)
    assert [set(done[i : i + 2]) for i in range(0, 10, 2)] == [set(span(i, i + 1)) for i in range(1, 10, 2)]


def test_says_why(daily):
    fill(daily, reason="Late invoices.")
    assert {row["trigger_by"] for row in daily.rows("scheduled_pipeline_runs")} == {"admin: Late invoices."}


def test_leaves_the_pipelines_own_row_alone(daily):
    before = daily.row("customer_pipeline_configs")
    fill(daily, last="2035-11-02")
    daily.report(daily.claim())
    assert daily.states() == {"COMPLETED": 2}
    assert daily.row("customer_pipeline_configs") == before


def test_fills_in_a_pipeline_that_rests(daily):
    daily.change("daily", is_active=False)
    assert fill(daily).queued == 10


class TestAgain:
    def test_finds_the_same_runs(self, daily):
        assert fill(daily) == fill(daily)
        assert len(days(daily)) == 10
        assert daily.usage() == (10, 10, 0)

    def test_of_twenty_at_once_one_makes_them(self, daily):
        answers = race(20, lambda _: fill(daily))
        assert {answer.queued for answer in answers} == {10}
        assert days(daily) == span(1, 10)
        assert daily.usage() == (10, 10, 0)

    def test_with_other_ids_makes_others(self, daily):
        """The control: were runs not named after their back-fill and day, each call would make some."""
        fill(daily)
        fill(daily, backfill_id="0b1f6f0e-5a0e-4b6f-9a55-1c0de5f1a9e4")
        assert daily.usage() == (20, 20, 0)

    def test_does_not_bring_back_what_has_ended(self, daily):
        fill(daily, last="2035-11-02")
        daily.report(daily.claim())
        fill(daily, last="2035-11-03")
        assert daily.states() == {"COMPLETED": 2, "PENDING": 1}

    def test_for_another_pipeline_is_refused(self, daily):
        fill(daily)
        daily.pipeline(config_id="other")
        with pytest.raises(Conflict):
            fill(daily, config_id="other")

    def test_for_another_customer_is_another_one(self, daily):
        """An id that is taken elsewhere is answered as one that never was."""
        fill(daily)
        daily.onboard("other")
        daily.pipeline("other", config_id="theirs")
        assert fill(daily, customer_id="other", config_id="theirs").queued == 10
        assert days(daily, customer_id="other") == days(daily, customer_id="acme") == span(1, 10)
        with pytest.raises(NotFound):
            fill(daily, customer_id="other")


class TestQuota:
    def test_what_does_not_fit_is_not_queued(self, daily):
        for _ in range(3):
            daily.request()
        done = fill(daily, last="2035-11-20")
        assert (done.queued, done.refused, done.next_from) == (20, 0, None)
        done = fill(daily, backfill_id="0b1f6f0e-5a0e-4b6f-9a55-1c0de5f1a9e4")
        assert (done.queued, done.refused, done.next_from) == (2, 8, date(2035, 11, 3))
        assert done.refusal == "Daily pipeline quota exceeded. Used 25/25 pipelines today."
        assert daily.usage() == (25, 25, 0)

    def test_the_refused_days_are_queued_when_they_fit(self, daily):
        daily.limits(max_pipelines_per_day=4)
        assert (fill(daily).queued, fill(daily).queued) == (4, 4)
        daily.wait(days=1)
        assert fill(daily) == Backfilled(
            ID, 8, 2, date(2035, 11, 9), "Daily pipeline quota exceeded. Used 4/4 pipelines today."
        )
        daily.wait(days=1)
        assert fill(daily) == Backfilled(ID, 10, 0, None, None)
        assert days(daily) == span(1, 10)

    def test_nothing_that_fits_is_a_refusal_recorded_once(self, daily):
        daily.limits(max_pipelines_per_day=0)
        for _ in range(3):
            with pytest.raises(QuotaExceeded) as refused:
                fill(daily)
            assert (refused.value.limit, refused.value.used, refused.value.allowed) == (Limit.DAILY, 0, 0)
        assert days(daily) == []
        assert daily.kinds().count("RunRefused") == 1

    def test_the_month_counts_too(self, daily):
        daily.limits(max_pipelines_per_month=7)
        done = fill(daily)
        assert (done.queued, done.next_from) == (7, date(2035, 11, 8))
        assert "this month" in done.refusal

    def test_places_that_are_taken_refuse_nothing(self, daily):
        for _ in range(5):
            daily.request()
        assert len(daily.claim()) == 5
        assert fill(daily).queued == 10

    def test_a_run_that_is_cancelled_before_it_began_gives_its_unit_back(self, daily):
        fill(daily)
        daily.cancel(str(backfill_run_id("acme", ID, date(2035, 11, 1))))
        assert daily.usage() == (9, 9, 0)


class TestDays:
    @pytest.mark.parametrize(
        ("first", "last"),
        [
            ("2035-11-02", "2035-11-01"),
            ("2035-11-20", "2035-11-21"),
            ("2034-11-19", "2035-11-20"),
            ("0001-01-01", "9999-12-31"),
        ],
        ids=["backwards", "tomorrow", "367 days", "all of them"],
    )
    def test_that_it_cannot_be(self, daily, first, last):
        with pytest.raises(Invalid):
            fill(daily, first, last)
        assert days(daily) == []

    def test_a_whole_leap_year(self, daily):
        daily.limits(max_pipelines_per_day=1000, max_pipelines_per_month=1000)
        daily.at = datetime(2037, 1, 1, tzinfo=UTC)
        assert fill(daily, "2036-01-01", "2036-12-31").queued == 366
        assert days(daily) == [date(2036, 1, 1) + timedelta(days=n) for n in range(366)]

    @pytest.mark.parametrize(
        ("zone", "last"), [("UTC", "2035-11-20"), ("Pacific/Kiritimati", "2035-11-21"), ("Etc/GMT+12", "2035-11-20")]
    )
    def test_up_to_today_where_the_pipeline_is(self, daily, zone, last):
        daily.change("daily", timezone=zone)
        assert fill(daily, last, last).queued == 1
        after = date.fromisoformat(last) + timedelta(days=1)
        with pytest.raises(Invalid):
            fill(daily, last, str(after))

    def test_of_midnight(self, daily):
        daily.change("daily", timezone="America/New_York")
        daily.at = datetime(2035, 11, 21, 5, 0, tzinfo=UTC) - timedelta.resolution
        with pytest.raises(Invalid):
            fill(daily, "2035-11-21", "2035-11-21")
        daily.wait(microseconds=1)
        assert fill(daily, "2035-11-21", "2035-11-21").queued == 1


def test_needs_a_pipeline_that_there_is(daily):
    with pytest.raises(NotFound):
        fill(daily, config_id="nonesuch")
    daily.catalogue.names.clear()
    with pytest.raises(NotFound, match="template"):
        fill(daily)
    command = pipelines.RemovePipeline(**daily.stamp(), customer_id="acme", config_id="daily")
    pipelines.remove_pipeline(command, daily.platform)
    with pytest.raises(NotFound):
        fill(daily)


def test_needs_a_customer_who_is_active(daily):
    fill(daily, last="2035-11-02")
    daily.suspend()
    with pytest.raises(Forbidden):
        fill(daily)
    assert days(daily) == span(1, 2)
