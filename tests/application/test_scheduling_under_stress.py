"""Schedules that a scheduler must get past: unreadable ones, changed ones, and very many missed slots."""

import time

from tests.application.world import World


def spoil(world: World, config_id: str, **columns: str) -> None:
    for column, value in columns.items():
        world.execute(f"UPDATE customer_pipeline_configs SET {column} = %s WHERE config_id = %s", value, config_id)


def test_poison(world):
    world.onboard("acme")
    world.onboard("other")
    bad = world.pipeline("acme")
    good = world.pipeline("other")
    spoil(world, bad, timezone="US/Pacific-New")
    world.wait(days=1)
    print(world.trigger())
    print(world.states(config_id=good))


def test_change_loses(acme):
    config_id = acme.pipeline(cron="0 * * * *")
    acme.wait(hours=1, seconds=1)
    acme.change(config_id, jitter_seconds=5)
    print(acme.trigger())


def test_unit(acme):
    run_id = acme.request()
    acme.claim(begin=False)
    acme.cancel(run_id)
    acme.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 millisecond'")
    acme.take_over()
    print(acme.run(run_id)["state"], acme.usage())


def test_nul(acme):
    run_id = acme.request()
    from application.ports import RunReport
    orders = acme.claim()
    try:
        print(acme.report(orders, report=RunReport(succeeded=False, error="a\x00b \ud800")))
    except Exception as e:
        print("NUL:", type(e), e)
    print(acme.run(run_id)["state"])


def test_storm(world):
    zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"]
    n = 0
    for c in range(5):
        world.onboard(f"cust{c}", "SCALE")
        for p in range(100):
            world.pipeline(f"cust{c}", f"*/{1 + p % 2} {'*' if p % 3 else '0-23'} * * *", timezone=zones[p % 4], catch_up="all")
    world.wait(days=2)
    t = time.monotonic()
    try:
        print(world.trigger())
    finally:
        print("took", time.monotonic() - t)
