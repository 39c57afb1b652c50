"""One attempt in a worker's hands: how long it waits for the next one, and when it is the worker's no more."""

import time
from datetime import UTC, date, datetime, timedelta
from statistics import mean

import pytest

from adapters.attempt import Attempt, Progress, Stop, backoff_s
from application.ports import Cancelled, RunOrder, RunReport, StepReport

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CAN_PASS = RunReport(succeeded=False, error="BigQuery answered 503.", can_pass=True)


def attempt(number: int = 1, ours_s: float = 60) -> Attempt:
    order = RunOrder("r", "acme", "GCP", "COST", "cost_billing", number, "manual", date(2026, 1, 1), {})
    return Attempt(order, time.monotonic() + ours_s)


def is_full_jitter(waits: list[float], longest: float) -> bool:
    """Anything between nothing and the longest, evenly."""
    return (
        0 <= min(waits) < longest * 0.05
        and longest * 0.95 < max(waits) <= longest
        and abs(mean(waits) - longest / 2) < longest * 0.1
    )


@pytest.mark.parametrize(
    ("number", "longest"), [(1, 30), (2, 60), (3, 120), (4, 240), (5, 300), (6, 300), (2_000, 300), (10**9, 300)]
)
def test_the_wait_doubles_to_five_minutes_with_full_jitter(number, longest):
    assert is_full_jitter([backoff_s(number) for _ in range(2_000)], longest)
    # The controls: no jitter, half of it, and no back-off.
    assert not is_full_jitter([longest] * 2_000, longest)
    assert not is_full_jitter([longest / 2 + backoff_s(number) / 2 for _ in range(2_000)], longest)
    assert not is_full_jitter([backoff_s(number) / 2 for _ in range(2_000)], longest)


def test_only_errors_that_can_pass_ask_for_another_attempt():
    assert attempt().ended(NOW, RunReport(succeeded=True)).retry_after is None
    assert attempt().ended(NOW, RunReport(succeeded=False, error="Bad SQL.")).retry_after is None
    waits = attempt().ended(NOW, CAN_PASS).retry_after
    assert waits is not None
    assert timedelta(0) <= waits <= timedelta(seconds=30)


def test_it_ends_when_its_lease_was_not_renewed_in_time():
    held = attempt(ours_s=60)
    held.look()
    held.ours_until = time.monotonic()
    with pytest.raises(Cancelled):
        held.look()
    assert held.reason is Stop.LOST


def test_the_first_reason_to_stop_counts():
    held = attempt()
    held.stop(Stop.CANCELLED)
    held.stop(Stop.SHUTDOWN)
    held.ours_until = 0
    with pytest.raises(Cancelled):
        held.look()
    assert held.reason is Stop.CANCELLED


def test_steps_are_told_on_the_way_when_a_run_takes_long_and_once():
    told = []
    held = attempt()
    progress = Progress(held, lambda a: told.append(a.so_far(NOW)))
    step = StepReport(index=0, name="a", type="notify", status="COMPLETED", started_at=NOW, ended_at=NOW)
    progress.finished(step)
    held.flushed_at -= 10
    progress.finished(step)
    assert [None if outcome is None else len(outcome.steps) for outcome in told] == [None, 2]
    assert held.handed_back(NOW, "x").steps == ()
    held.stop(Stop.SHUTDOWN)
    with pytest.raises(Cancelled):
        progress.finished(step)
