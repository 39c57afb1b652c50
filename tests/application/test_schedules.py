"""All schedules of a customer paused and resumed: nothing fires meanwhile, and nothing is caught up afterwards."""

from datetime import timedelta

import psycopg
import pytest

from adapters.postgres.channels import SCHEDULES
from application import pipelines, schedules
from application.schedules import Schedules
from domain.refusals import Forbidden, NotFound
from tests.application.world import World


def pause(world: World, customer_id: str = "acme") -> Schedules:
    command = schedules.PauseSchedules(**world.stamp(), customer_id=customer_id, reason="moving")
    return schedules.pause_schedules(command, world.platform)


def resume(world: World, customer_id: str = "acme") -> Schedules:
    command = schedules.ResumeSchedules(**world.stamp(), customer_id=customer_id, reason="moved")
    return schedules.resume_schedules(command, world.platform)


def next_slots(world: World, **where) -> set:
    return {row["next_run_time"] for row in world.rows("customer_pipeline_configs", **where)}


def paused(world: World) -> bool:
    return world.row("customer_profiles", customer_id="acme")["schedules_paused"]


@pytest.fixture
def hourly(acme) -> World:
    """ACME with a pipeline of every hour, and one that rests by itself."""
    acme.pipeline(cron="0 * * * *", config_id="hourly", catch_up="all")
    acme.pipeline(cron="0 * * * *", config_id="rests", is_active=False)
    return acme


def test_nothing_fires_while_paused_nor_is_caught_up_afterwards(hourly):
    assert pause(hourly) == Schedules(paused=True, pipelines=2, resting=2)
    assert paused(hourly)
    assert next_slots(hourly) == {None}
    hourly.wait(hours=5, minutes=30)
    assert hourly.trigger().triggered == 0
    assert resume(hourly) == Schedules(paused=False, pipelines=2, resting=1)
    assert not paused(hourly)
    assert next_slots(hourly, config_id="hourly") == {hourly.at + timedelta(minutes=30)}
    assert next_slots(hourly, config_id="rests") == {None}
    assert hourly.trigger().triggered == 0
    hourly.wait(minutes=30)
    assert hourly.trigger().queued == 1


def test_a_slot_that_was_due_already_is_not_made_up_for(hourly):
    hourly.wait(hours=1)
    pause(hourly)
    assert hourly.trigger().triggered == 0
    resume(hourly)
    assert hourly.trigger().triggered == 0


def test_twice_is_once(hourly):
    assert pause(hourly) == pause(hourly)
    assert resume(hourly) == resume(hourly)
    assert [hourly.kinds().count(kind) for kind in ("SchedulesPaused", "SchedulesResumed")] == [1, 1]


def test_runs_go_on(hourly):
    hourly.wait(hours=1)
    hourly.trigger()
    waiting = hourly.request()
    pause(hourly)
    assert len(hourly.claim()) == 2
    assert hourly.run(waiting)["state"] == "RUNNING"
    assert hourly.run(hourly.request())["state"] == "PENDING"


def test_another_customer_goes_on(hourly):
    hourly.onboard("other")
    hourly.pipeline("other", "0 * * * *")
    pause(hourly)
    hourly.wait(hours=1)
    assert hourly.trigger().queued == 1


def test_what_is_configured_or_changed_meanwhile_waits_for_the_end(hourly):
    pause(hourly)
    hourly.pipeline(cron="30 * * * *", config_id="new")
    hourly.change("hourly", schedule_cron="15 * * * *")
    hourly.change("rests", is_active=True)
    assert next_slots(hourly) == {None}
    hourly.wait(hours=3)
    assert hourly.trigger().triggered == 0
    assert resume(hourly) == Schedules(paused=False, pipelines=3, resting=0)
    minutes = {row["config_id"]: row["next_run_time"].minute for row in hourly.rows("customer_pipeline_configs")}
    assert minutes == {"hourly": 15, "rests": 0, "new": 30}
    assert min(next_slots(hourly)) > hourly.at


def test_what_was_removed_or_put_to_rest_meanwhile_stays_so(hourly):
    hourly.pipeline(cron="0 * * * *", config_id="goes")
    pause(hourly)
    command = pipelines.RemovePipeline(**hourly.stamp(), customer_id="acme", config_id="goes")
    pipelines.remove_pipeline(command, hourly.platform)
    hourly.change("hourly", is_active=False)
    resume(hourly)
    assert next_slots(hourly) == {None}


def test_a_customer_who_comes_back_finds_them_paused_still(hourly):
    pause(hourly)
    hourly.suspend()
    hourly.reactivate()
    assert paused(hourly)
    assert next_slots(hourly) == {None}
    hourly.wait(hours=2)
    assert hourly.trigger().triggered == 0
    resume(hourly)
    assert next_slots(hourly, config_id="hourly") == {hourly.at + timedelta(hours=1)}


def test_a_suspended_customer_neither_pauses_nor_resumes(hourly):
    hourly.suspend()
    for act in (pause, resume):
        with pytest.raises(Forbidden):
            act(hourly)
    hourly.reactivate()
    assert next_slots(hourly, config_id="hourly") == {hourly.at + timedelta(hours=1)}


def test_a_customer_that_there_is_not(hourly):
    with pytest.raises(NotFound):
        pause(hourly, "nobody")


def test_schedulers_are_woken(hourly):
    pause(hourly)
    with psycopg.connect(hourly.dsn, autocommit=True) as connection:
        connection.execute(f"LISTEN {SCHEDULES}")
        resume(hourly)
        assert [heard.channel for heard in connection.notifies(timeout=20, stop_after=1)] == [SCHEDULES]
