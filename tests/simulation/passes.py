"""What one pass of a scheduler did, read from the log and held against the book and the timetable."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby

from domain.run_events import CancelRequested, RunCancelled, RunScheduled, RunSkipped
from projections.follow import Placed
from tests.simulation.book import Book, Run
from tests.simulation.timetable import LATE, Pipeline, Timetable


def absorb(
    placed: Sequence[Placed], book: Book, timetable: Timetable, now: datetime, *, disturbed: bool = False
) -> None:
    """Write what the pass did into the book. Each run must be one that the customer's settings and quota call for."""
    ours = [p for p in placed if isinstance(p.event, RunScheduled | RunSkipped | RunCancelled | CancelRequested)]
    moved = _stopped([p for p in ours if not _born(p, ours)], book, timetable, now)
    scheduled: list[tuple[str, datetime, datetime | None]] = []
    refused: dict[str, str] = {}
    for _, events in groupby((p for p in ours if _born(p, ours)), key=lambda p: p.at.stream_id):
        first, *rest = events
        order = first.event
        assert isinstance(order, RunScheduled)
        assert order.config_id is not None
        pipeline = timetable.pipelines[order.config_id]
        scheduled.append((order.config_id, order.scheduled_for, order.missed_since))
        run = Run(str(first.at.stream_id), order.customer_id, "scheduled", order.scheduled_for, order.config_id)
        run.not_before = order.not_before
        _may_wait(pipeline, order, now)
        if rest:
            [end] = rest
            run.state = "SKIPPED" if isinstance(end.event, RunSkipped) else "CANCELLED"
            book.runs[run.run_id] = run
            if isinstance(end.event, RunSkipped) and "quota" in end.event.reason:
                refused[order.customer_id] = end.event.reason
            else:
                _may_end(pipeline, order.scheduled_for, run.state, now)
        else:
            assert book.room(order.customer_id, now), f"slot {order.scheduled_for} was let in and there was no room"
            assert pipeline.catch_up != "none" or now - order.scheduled_for <= LATE, f"{pipeline} caught up"
            book.admit(run, now)
            assert run.counted_on == order.counted_on
    for customer_id, reason in refused.items():
        # Units that others gave back later in the same pass are for the next one.
        assert customer_id in moved or not book.room(customer_id, now), (
            f"a slot of {customer_id} was refused and there was room: {reason}"
        )
    timetable.triggered(now, scheduled, disturbed=disturbed)


def _born(placed: Placed, ours: Sequence[Placed]) -> bool:
    """Whether the run came into being in this pass."""
    return any(isinstance(p.event, RunScheduled) and p.at.stream_id == placed.at.stream_id for p in ours)


def _stopped(stopped: Sequence[Placed], book: Book, timetable: Timetable, now: datetime) -> set[str]:
    """Earlier runs that had to make way, and whose they were."""
    for placed in stopped:
        run = book.runs[str(placed.at.stream_id)]
        assert run.config_id is not None
        assert run.trigger == "scheduled", f"{run} had to make way for a schedule"
        assert timetable.pipelines[run.config_id].overlap == "cancel_running", f"{run} had to make way"
        if isinstance(placed.event, CancelRequested):
            assert run.state == "RUNNING"
            run.stop_asked = True
        else:
            book.never_run(run, "CANCELLED", now)
    return {placed.at.customer_id for placed in stopped}


def _may_wait(pipeline: Pipeline, order: RunScheduled, now: datetime) -> None:
    if order.not_before is not None:
        delay = order.not_before - order.scheduled_for
        assert timedelta(0) < delay < timedelta(seconds=pipeline.jitter_seconds), f"{order} waits too long"
        assert now - order.scheduled_for <= LATE, f"{order} is late already and must wait"


def _may_end(pipeline: Pipeline, slot: datetime, state: str, now: datetime) -> None:
    """A run that ended as it came into being."""
    if state == "CANCELLED":
        assert pipeline.overlap == "cancel_running", f"slot {slot} of {pipeline} had to make way"
        assert slot < pipeline.due(now)[-1], f"slot {slot} of {pipeline} is the newest and had to make way"
    else:
        late = pipeline.catch_up == "none" and now - slot > LATE
        assert late or pipeline.overlap == "skip", f"slot {slot} of {pipeline} was skipped at {now}"
