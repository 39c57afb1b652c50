"""From due slots to waiting runs: each slot once, none forgotten, and what was missed as each pipeline wants it."""

from datetime import UTC, date, datetime, timedelta

import pytest
from pydantic import ValidationError

from application import pipelines
from domain.identity import scheduled_run_id
from domain.refusals import Invalid, NotFound
from domain.schedule import jitter
from tests.application.world import World, race


@pytest.fixture
def noon(acme) -> World:
    """ACME on a Monday noon in 2035, with a summer and a winter before it."""
    acme.at = datetime(2035, 11, 19, 12, 0, tzinfo=UTC)
    acme.limits(max_pipelines_per_day=1000, max_pipelines_per_month=100_000)
    return acme


def slots(world: World, **where) -> list[tuple[datetime, str]]:
    return sorted((r["scheduled_time"], r["state"]) for r in world.rows("scheduled_pipeline_runs", **where))


def config(world: World) -> dict:
    return world.row("customer_pipeline_configs")


class TestConfiguring:
    def test_leaves_the_next_slot_in_its_zone(self, noon):
        config_id = noon.pipeline(cron="0 2 * * *", timezone="America/New_York", parameters={"days": 2})
        row = config(noon)
        assert row["config_id"] == config_id
        assert row["next_run_time"] == datetime(2035, 11, 20, 7, 0, tzinfo=UTC)
        assert (row["provider"], row["domain"], row["pipeline_template"]) == ("GCP", "COST", "cost_billing")
        assert (row["is_active"], row["parameters"], row["catch_up"], row["overlap"]) == (
            True,
            {"days": 2},
            "latest",
            "queue",
        )

    @pytest.mark.parametrize(
        "wrong",
        [
            {"cron": "0 0 2 * * *"},
            {"cron": "every day"},
            {"timezone": "Mars/Olympus"},
            {"pipeline_template": "nonesuch"},
            {"parameters": {"x": 1}},
        ],
    )
    def test_refuses_what_is_wrong(self, noon, wrong):
        with pytest.raises(Invalid):
            noon.pipeline(**wrong)
        assert noon.rows("customer_pipeline_configs") == []

    def test_again_with_the_same_id_finds_the_same(self, noon):
        assert noon.pipeline(config_id="once") == noon.pipeline(config_id="once")
        assert noon.kinds().count("PipelineConfigured") == 1

    def test_a_removed_one_fires_no_more(self, noon):
        config_id = noon.pipeline()
        command = pipelines.RemovePipeline(**noon.stamp(), customer_id="acme", config_id=config_id)
        pipelines.remove_pipeline(command, noon.platform)
        noon.wait(days=1)
        assert noon.trigger().triggered == 0
        with pytest.raises(NotFound):
            noon.change(config_id, is_active=True)

    def test_another_customers_is_not_there(self, noon):
        config_id = noon.pipeline()
        noon.onboard("other")
        with pytest.raises(NotFound):
            noon.change(config_id, "other", is_active=False)


class TestTriggering:
    def test_a_due_slot_becomes_a_waiting_run(self, noon):
        config_id = noon.pipeline(cron="0 2 * * *", parameters={"days": 2})
        noon.at = datetime(2035, 11, 20, 2, 0, 30, tzinfo=UTC)
        done = noon.trigger()
        assert (done.triggered, done.queued, done.skipped) == (1, 1, 0)
        run = noon.row("scheduled_pipeline_runs")
        slot = datetime(2035, 11, 20, 2, 0, tzinfo=UTC)
        assert run["run_id"] == str(scheduled_run_id(config_id, slot))
        assert (run["scheduled_time"], run["run_date"], run["parameters"]) == (slot, date(2035, 11, 19), {"days": 2})
        assert (run["trigger_type"], run["state"]) == ("scheduled", "PENDING")
        assert noon.row("pipeline_execution_queue")["priority"] == 30
        row = config(noon)
        assert (row["next_run_time"], row["last_run_time"], row["last_run_state"]) == (
            slot + timedelta(days=1),
            slot,
            "PENDING",
        )
        assert noon.usage() == (1, 1, 0)
        assert noon.trigger().triggered == 0

    def test_the_pipelines_row_follows_its_run(self, noon):
        noon.pipeline(cron="0 2 * * *")
        noon.wait(days=1)
        noon.trigger()
        noon.report(noon.claim())
        assert config(noon)["last_run_state"] == "COMPLETED"

    def test_nothing_is_due_a_tick_before(self, noon):
        noon.pipeline(cron="0 2 * * *")
        noon.at = datetime(2035, 11, 20, 2, 0, tzinfo=UTC) - timedelta.resolution
        assert noon.trigger().triggered == 0
        noon.wait(microseconds=1)
        assert noon.trigger().queued == 1

    def test_no_minute_is_lost_between_two_that_come_a_minute_apart(self, noon):
        noon.pipeline(cron="* * * * *")
        for _ in range(5):
            noon.wait(seconds=60)
            noon.trigger()
        noon.wait(seconds=60)
        for _ in range(2):
            noon.trigger()
        assert len(slots(noon)) == 6

    def test_twenty_at_once_make_one_run_of_each_slot(self, database_url, tmp_path):
        with World(database_url, tmp_path / "key", size=20) as world:
            for number in range(5):
                world.onboard(f"c{number}", "SCALE")
                for _ in range(8):
                    world.pipeline(f"c{number}", "0 * * * *")
            world.wait(hours=1)
            done = race(20, lambda _: world.trigger(batch=7))
            assert sum(d.queued for d in done) == 40
            assert sum(d.triggered for d in done) == 40
            assert len(world.rows("scheduled_pipeline_runs")) == 40
            assert {world.usage(f"c{n}") for n in range(5)} == {(8, 8, 0)}

    def test_in_batches_until_nothing_is_due(self, noon):
        for _ in range(23):
            noon.pipeline(cron="0 * * * *")
        noon.wait(hours=1)
        assert noon.trigger(batch=5).queued == 23

    def test_what_finds_no_quota_is_skipped_and_says_why(self, noon):
        noon.limits(max_pipelines_per_day=2)
        for _ in range(4):
            noon.pipeline(cron="0 13 * * *")
        noon.wait(hours=1)
        done = noon.trigger()
        assert (done.triggered, done.queued, done.skipped) == (4, 2, 2)
        assert noon.states() == {"PENDING": 2, "SKIPPED": 2}
        [reason] = {r["error_message"] for r in noon.rows("scheduled_pipeline_runs", state="SKIPPED")}
        assert reason == "Daily pipeline quota exceeded. Used 2/2 pipelines today."
        assert noon.kinds().count("RunRefused") == 1
        assert noon.usage() == (2, 2, 0)

    def test_a_template_that_is_gone_is_skipped_and_says_so(self, noon):
        noon.pipeline(cron="0 13 * * *")
        noon.catalogue.names.clear()
        noon.wait(hours=1)
        assert noon.trigger().skipped == 1
        assert "No such pipeline template" in noon.row("scheduled_pipeline_runs")["error_message"]
        assert noon.usage() == (0, 0, 0)

    def test_a_suspended_customer_has_no_slots(self, noon):
        noon.pipeline(cron="0 * * * *")
        noon.suspend()
        noon.wait(hours=5)
        assert noon.trigger().triggered == 0
        noon.reactivate()
        assert noon.trigger().triggered == 0
        noon.wait(hours=1)
        assert noon.trigger().queued == 1

    def test_every_slot_of_a_year_in_a_zone_that_changes_clocks(self, noon):
        noon.at = datetime(2035, 1, 1, tzinfo=UTC)
        noon.pipeline(cron="30 1 * * 0", timezone="America/New_York")
        for _ in range(52):
            noon.wait(days=7)
            noon.trigger()
        assert len(slots(noon)) == 52
        assert {slot.hour for slot, _ in slots(noon)} == {5, 6}


class TestLateTriggers:
    def late(self, world: World, hours: float = 5.5, **more) -> None:
        """Hourly, and nobody triggered for hours."""
        world.pipeline(cron="0 * * * *", **more)
        world.wait(hours=hours)
        world.trigger()

    def test_latest_makes_one_run_for_the_newest_slot(self, noon):
        start = noon.at
        self.late(noon)
        assert slots(noon) == [(start + timedelta(hours=5), "PENDING")]
        assert noon.row("pipeline_execution_queue")["priority"] == 40
        [scheduled] = [e for e in noon.events() if type(e).__name__ == "RunScheduled"]
        assert scheduled.missed_since == start + timedelta(hours=1)
        assert config(noon)["next_run_time"] == start + timedelta(hours=6)

    def test_all_makes_each_in_order(self, noon):
        start = noon.at
        self.late(noon, catch_up="all")
        assert slots(noon) == [(start + timedelta(hours=h), "PENDING") for h in range(1, 6)]
        assert noon.trigger().triggered == 0

    def test_all_goes_back_a_day_and_no_further(self, noon):
        start = noon.at
        self.late(noon, hours=72.5, catch_up="all")
        found = slots(noon)
        assert len(found) == 24
        assert found[0][0] == start + timedelta(hours=49)

    def test_all_makes_at_most_a_hundred(self, noon):
        noon.pipeline(cron="* * * * *", catch_up="all")
        noon.wait(hours=20)
        noon.trigger()
        assert len(slots(noon)) == 100
        assert slots(noon)[-1][0] == noon.at

    def test_none_skips_what_was_missed_and_says_so(self, noon):
        self.late(noon, catch_up="none")
        [run] = noon.rows("scheduled_pipeline_runs")
        assert run["state"] == "SKIPPED"
        assert "was missed" in run["error_message"]
        assert noon.usage() == (0, 0, 0)
        noon.wait(minutes=30)
        assert noon.trigger().queued == 1

    def test_none_still_runs_the_slot_that_is_not_late(self, noon):
        self.late(noon, hours=5, catch_up="none")
        assert [state for _, state in slots(noon)] == ["PENDING"]

    def test_a_minute_is_not_late(self, noon):
        noon.pipeline(cron="0 13 * * *", catch_up="none")
        noon.wait(hours=1, seconds=60)
        assert noon.trigger().queued == 1


class TestJitter:
    """Ahead of the database's clock, so that what must wait is seen to wait."""

    def test_holds_the_run_up_and_leaves_its_slot(self, noon):
        config_id = noon.pipeline(cron="0 * * * *", jitter_seconds=3600)
        delays = []
        for _ in range(3):
            noon.wait(hours=1)
            noon.trigger()
            row = noon.rows("pipeline_execution_queue")[-1]
            assert row["scheduled_time"] == noon.at
            delays.append(row["not_before"] - noon.at)
        assert set(delays) == {jitter(config_id, timedelta(hours=1))}
        assert timedelta(0) < delays[0] < timedelta(hours=1)
        assert noon.claim() == []

    def test_spreads_pipelines(self, noon):
        for _ in range(20):
            noon.pipeline(cron="0 * * * *", jitter_seconds=600)
        noon.wait(hours=1)
        noon.trigger()
        starts = {row["not_before"] for row in noon.rows("pipeline_execution_queue")}
        assert len(starts) == 20
        assert noon.at <= min(starts) < max(starts) < noon.at + timedelta(minutes=10)

    def test_none_holds_nothing_up(self, noon):
        noon.pipeline(cron="0 * * * *")
        noon.wait(hours=1)
        noon.trigger()
        assert noon.row("pipeline_execution_queue")["not_before"] is None
        assert len(noon.claim()) == 1

    def test_what_is_late_is_not_held_up_further(self, noon):
        noon.pipeline(cron="0 * * * *", jitter_seconds=3600, catch_up="all")
        noon.wait(hours=3)
        noon.trigger()
        assert [row["not_before"] is None for row in noon.rows("pipeline_execution_queue")] == [True, True, False]

    def test_is_changed(self, noon):
        config_id = noon.pipeline(cron="0 * * * *", jitter_seconds=60)
        noon.change(config_id, overlap="skip")
        assert config(noon)["jitter_seconds"] == 60
        noon.change(config_id, jitter_seconds=0)
        assert config(noon)["jitter_seconds"] == 0
        noon.wait(hours=1)
        noon.trigger()
        assert noon.row("pipeline_execution_queue")["not_before"] is None

    @pytest.mark.parametrize("wrong", [-1, 3601, "soon", None])
    def test_is_an_hour_at_most(self, noon, wrong):
        with pytest.raises(ValidationError):
            noon.pipeline(jitter_seconds=wrong)


class TestEditing:
    def test_moves_the_next_slot(self, noon):
        config_id = noon.pipeline(cron="0 2 * * *")
        noon.change(config_id, schedule_cron="0 5 * * *")
        assert config(noon)["next_run_time"] == datetime(2035, 11, 20, 5, 0, tzinfo=UTC)
        noon.change(config_id, timezone="Asia/Tokyo")
        assert config(noon)["next_run_time"] == datetime(2035, 11, 19, 20, 0, tzinfo=UTC)
        noon.change(config_id, is_active=False)
        assert config(noon)["next_run_time"] is None
        noon.wait(days=30)
        assert noon.trigger().triggered == 0
        noon.change(config_id, is_active=True)
        assert noon.trigger().triggered == 0

    def test_to_the_same_changes_nothing(self, noon):
        config_id = noon.pipeline()
        noon.change(config_id, schedule_cron=" 0  2 * * * ", timezone="UTC")
        assert "PipelineChanged" not in noon.kinds()

    def test_cannot_fire_a_slot_again(self, noon):
        """Back to the old schedule by a clock that is behind: the slot is due once more, and its run exists."""
        config_id = noon.pipeline(cron="0 13 * * *")
        noon.wait(hours=1)
        assert noon.trigger().queued == 1
        noon.wait(minutes=-10)
        noon.change(config_id, schedule_cron="5 13 * * *")
        noon.change(config_id, schedule_cron="0 13 * * *")
        assert config(noon)["next_run_time"] == datetime(2035, 11, 19, 13, 0, tzinfo=UTC)
        noon.wait(minutes=11)
        done = noon.trigger()
        assert (done.triggered, done.queued, done.skipped) == (1, 0, 0)
        assert len(slots(noon)) == 1
        assert noon.usage() == (1, 1, 0)
        assert config(noon)["next_run_time"] == datetime(2035, 11, 20, 13, 0, tzinfo=UTC)
        assert noon.trigger().triggered == 0

    def test_a_due_row_whose_run_exists_ends_no_batch_in_a_loop(self, noon):
        for number in range(3):
            noon.pipeline(cron="0 13 * * *", config_id=f"p{number}")
        noon.wait(hours=1)
        noon.trigger()
        noon.execute("UPDATE customer_pipeline_configs SET next_run_time = %s", noon.at)
        done = noon.trigger(batch=1)
        assert (done.triggered, done.queued) == (3, 0)
        assert noon.trigger().triggered == 0

    def test_parameters_are_checked(self, noon):
        config_id = noon.pipeline()
        with pytest.raises(Invalid):
            noon.change(config_id, parameters={"x": 1})
        noon.change(config_id, parameters={"days": 9})
        noon.wait(days=1)
        noon.trigger()
        assert noon.row("scheduled_pipeline_runs")["parameters"] == {"days": 9}
