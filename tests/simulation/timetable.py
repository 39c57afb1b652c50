"""Which slots every pipeline must have had by now, worked out a second time from what its customer asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from domain.schedule import parse, slots_between

LATE = timedelta(seconds=60)
WINDOW = timedelta(hours=24)
AT_MOST = 100


@dataclass
class Pipeline:
    """One schedule. `since` is the instant after which its slots count; None while it rests."""

    config_id: str
    customer_id: str
    cron: str
    timezone: str
    catch_up: str = "latest"
    overlap: str = "queue"
    jitter_seconds: int = 0
    is_active: bool = True
    since: datetime | None = None
    fired: set[datetime] = field(default_factory=set)
    missed: list[tuple[datetime, datetime]] = field(default_factory=list)

    def due(self, now: datetime) -> list[datetime]:
        """The slots that came since it was last looked after."""
        if self.since is None:
            return []
        return slots_between(parse(self.cron, self.timezone), self.since, now, 100_000)

    def wanted(self, now: datetime) -> list[datetime]:
        """Which of the due slots must become runs at this instant: the others are passed over, and said to be."""
        due = self.due(now)
        if not due or now - due[0] <= LATE or self.catch_up != "all":
            return due[-1:]
        return [slot for slot in due if slot >= now - WINDOW][-AT_MOST:] or due[-1:]


class Timetable:
    """Every pipeline there ever was."""

    def __init__(self) -> None:
        self.pipelines: dict[str, Pipeline] = {}
        self.paused: set[str] = set()
        """The customers who paused all of their schedules."""

    def of(self, customer_id: str) -> list[Pipeline]:
        return [p for p in self.pipelines.values() if p.customer_id == customer_id]

    def scheduled(self) -> list[Pipeline]:
        return [p for p in self.pipelines.values() if p.since is not None]

    def rest(self, customer_id: str) -> None:
        for pipeline in self.of(customer_id):
            pipeline.since = None

    def wake(self, customer_id: str, at: datetime) -> None:
        """What was missed while they rested stays missed."""
        for pipeline in self.of(customer_id):
            self.begin(pipeline, at)

    def begin(self, pipeline: Pipeline, at: datetime) -> None:
        """Its slots count from now on, unless it rests."""
        rests = not pipeline.is_active or pipeline.customer_id in self.paused
        pipeline.since = None if rests else at

    def triggered(
        self, now: datetime, runs: Iterable[tuple[str, datetime, datetime | None]], *, disturbed: bool = False
    ) -> None:
        """One pass of a scheduler made these runs: (config_id, slot, the oldest missed slot that it stands for).

        One that was `disturbed` may leave to the next what became due while it looked.
        """
        made: dict[str, list[datetime]] = {}
        for config_id, slot, missed_since in runs:
            pipeline = self.pipelines[config_id]
            assert slot not in pipeline.fired, f"slot {slot} of pipeline {config_id} became two runs"
            pipeline.fired.add(slot)
            made.setdefault(config_id, []).append(slot)
            if missed_since is not None:
                pipeline.missed.append((missed_since, slot))
        for config_id, slots in made.items():
            assert slots == sorted(slots), f"the slots of pipeline {config_id} were not taken in their order"
        for pipeline in self.scheduled():
            due, wanted = pipeline.due(now), set(pipeline.wanted(now))
            new = set(made.pop(pipeline.config_id, ()))
            assert new <= wanted, f"{sorted(new - wanted)} are no slots that {pipeline} should have run for at {now}"
            if disturbed and not new and not wanted <= pipeline.fired:
                continue
            assert wanted <= pipeline.fired, f"{sorted(wanted - pipeline.fired)} of {pipeline} became no run"
            lost = _uncovered(due, pipeline)
            assert not lost, f"{lost} of {pipeline} became no run and are not recorded as missed"
            if due:
                pipeline.since = now
        assert not made, f"pipelines that rest were triggered: {made}"


def _uncovered(due: Sequence[datetime], pipeline: Pipeline) -> list[datetime]:
    return [
        slot
        for slot in due
        if slot not in pipeline.fired and not any(first <= slot <= last for first, last in pipeline.missed)
    ]
