"""An operator looks at a `convergence serve` from another terminal, with no setting but its data directory."""

import signal

ROLES = {"api": 1, "scheduler": 1, "worker": 1, "projector": 1}


def test_every_part_is_seen_to_live_and_one_that_was_killed_to_be_gone(fresh):
    fresh.start()
    before = fresh.json("status")
    [process] = before["processes"]
    assert (before["alive"], before["problems"]) == (ROLES, [])
    assert process["pid"] == fresh.process.pid
    assert fresh.stop(signal.SIGTERM) == 0

    fresh.start()
    assert [process["pid"] for process in fresh.json("status")["processes"]] == [fresh.process.pid]
    assert fresh.run("runs").returncode == 0
    fresh.process.kill()
    fresh.process.wait(10)
    done = fresh.run("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "convergence serve" in done.stderr
