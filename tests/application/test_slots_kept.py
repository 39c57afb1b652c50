"""No slot is lost: not to another pipeline's schedule, to very many that were missed, nor to a change in between."""

import pytest

from domain.identity import scheduled_run_id
from tests.application.world import World


def spoil(world: World, config_id: str, column: str, value: str) -> None:
    """What was read when the pipeline was configured cannot be read any more: a zone that the world gave up, say."""
    world.execute(f"UPDATE customer_pipeline_configs SET {column} = %s WHERE config_id = %s", value, config_id)


class TestAnUnreadableSchedule:
    @pytest.mark.parametrize(
        ("column", "value"), [("timezone", "US/Pacific-New"), ("schedule_cron", "99 * * * *")], ids=["zone", "cron"]
    )
    @pytest.mark.parametrize("late", [{"seconds": 1}, {"days": 1}], ids=["at once", "late"])
    def test_holds_up_nobody(self, world, column, value, late):
        configs = {name: world.pipeline(name, "0 13 * * *") for name in ("acme", "other") if world.onboard(name)}
        spoil(world, configs["acme"], column, value)
        world.wait(hours=1)
        world.wait(**late)
        done = world.trigger()
        assert (done.triggered, done.queued, done.skipped) == (2, 1, 1)
        assert world.states(config_id=configs["other"]) == {"PENDING": 1}

    def test_rests_and_says_why(self, acme):
        config_id = acme.pipeline(cron="0 13 * * *")
        spoil(acme, config_id, "timezone", "US/Pacific-New")
        acme.wait(hours=2)
        acme.trigger()
        run = acme.row("scheduled_pipeline_runs", config_id=config_id)
        assert run["state"] == "SKIPPED"
        assert run["error_message"].startswith("The pipeline rests: Time zone 'US/Pacific-New' is unknown")
        row = acme.row("customer_pipeline_configs", config_id=config_id)
        assert (row["is_active"], row["next_run_time"]) == (False, None)
        assert acme.usage() == (0, 0, 0)
        assert acme.trigger().triggered == 0

    def test_goes_on_with_another_one(self, acme):
        config_id = acme.pipeline(cron="0 13 * * *")
        spoil(acme, config_id, "timezone", "US/Pacific-New")
        acme.wait(hours=2)
        acme.trigger()
        acme.change(config_id, timezone="America/Los_Angeles", is_active=True)
        acme.wait(days=1)
        assert acme.trigger().queued == 1

    def test_whose_slot_became_a_run_before(self, acme):
        config_id = acme.pipeline(cron="0 13 * * *")
        before = acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"]
        acme.wait(hours=2)
        acme.trigger()
        acme.execute("UPDATE customer_pipeline_configs SET next_run_time = %s", before)
        spoil(acme, config_id, "timezone", "US/Pacific-New")
        assert acme.trigger().triggered == 1
        assert acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"] is None
        assert acme.states() == {"PENDING": 1}


class TestARowWithoutItsRun:
    """What a restored table or a hand left: new runs are put without a look, and this one is in their way."""

    @pytest.mark.parametrize("table", ["scheduled_pipeline_runs", "pipeline_execution_queue"])
    def test_holds_up_nobody_and_is_put_right(self, world, table):
        configs = {name: world.pipeline(name, "0 13 * * *") for name in ("acme", "other") if world.onboard(name)}
        slot = world.row("customer_pipeline_configs", config_id=configs["acme"])["next_run_time"]
        run_id = str(scheduled_run_id(configs["acme"], slot))
        world.execute(
            f"INSERT INTO {table} (run_id, customer_id, state, position) VALUES (%s, %s, %s, 0)",
            run_id,
            "nobody",
            "COMPLETED",
        )
        world.wait(hours=1)
        done = world.trigger()
        assert (done.triggered, done.queued, done.skipped) == (2, 2, 0)
        row = world.row(table, run_id=run_id)
        assert (row["customer_id"], row["state"]) == ("acme", "PENDING")
        assert row["position"] > 0
        assert world.trigger().triggered == 0


class TestManyMissedSlots:
    def most_in_one_transaction(self, world: World) -> int:
        return world.scalar(
            "SELECT max(runs)::integer FROM (SELECT count(*) AS runs FROM stored_events"
            " WHERE topic LIKE 'run.scheduled@%%' AND %s GROUP BY xmin::text) AS made",
            True,
        )

    @pytest.mark.parametrize(("runs", "most"), [(250, 200), (100, 100), (100_000, 500)], ids=["few", "one", "control"])
    def test_are_taken_in_several_transactions(self, acme, runs, most):
        configs = [acme.pipeline(cron="* * * * *", catch_up="all") for _ in range(5)]
        acme.wait(days=2)
        done = acme.trigger(runs=runs)
        assert (done.triggered, done.queued + done.skipped) == (5, 500)
        assert self.most_in_one_transaction(acme) == most
        for config_id in configs:
            slots = [run["scheduled_time"] for run in acme.rows("scheduled_pipeline_runs", config_id=config_id)]
            assert len(set(slots)) == 100
        assert acme.trigger().triggered == 0


class TestAChangeWhileASlotIsDue:
    @pytest.mark.parametrize(
        "change", [{"jitter_seconds": 5}, {"overlap": "skip"}, {"parameters": {"days": 2}}, {"date_offset_days": 2}]
    )
    def test_leaves_the_slot_alone(self, acme, change):
        config_id = acme.pipeline(cron="0 13 * * *")
        slot = acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"]
        acme.wait(hours=1, seconds=1)
        acme.change(config_id, **change)
        assert acme.trigger().queued == 1
        assert acme.row("scheduled_pipeline_runs")["scheduled_time"] == slot

    @pytest.mark.parametrize("change", [{"schedule_cron": "30 13 * * *"}, {"timezone": "Asia/Tokyo"}])
    def test_unless_it_is_one_of_the_schedule(self, acme, change):
        config_id = acme.pipeline(cron="0 13 * * *")
        acme.wait(hours=1, seconds=1)
        acme.change(config_id, **change)
        assert acme.trigger().queued == 0
        assert acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"] > acme.at

    def test_by_a_clock_that_is_ahead(self, acme):
        """Another schedule of the same pipeline is as far away as before: the caller's clock passes over no slot."""
        config_id = acme.pipeline(cron="0 13 * * *")
        slot = acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"]
        acme.wait(hours=2)
        acme.change(config_id, jitter_seconds=5)
        assert acme.row("customer_pipeline_configs", config_id=config_id)["next_run_time"] == slot
