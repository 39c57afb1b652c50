"""What customers do with their schedules, on the database and in the book, which must agree."""

from datetime import date, datetime, timedelta
from typing import Any, Final

from application import backfill, pipelines, schedules
from domain.identity import backfill_run_id
from domain.refusals import Forbidden, QuotaExceeded
from tests.simulation.book import Run
from tests.simulation.life import Answer, Life
from tests.simulation.timetable import Pipeline

_SCHEDULE: Final = ("cron", "timezone", "is_active")
"""A change of none of these leaves the slots alone that wait to be triggered."""


class Planner:
    """Whoever plans what runs when. `at` is what the caller's clock shows."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def configure(self, pipeline: Pipeline, at: datetime) -> Answer:
        command = pipelines.ConfigurePipeline(
            **self._life.stamp("admin", at),
            customer_id=pipeline.customer_id,
            provider="gcp",
            domain="cost",
            pipeline_template="cost_billing",
            schedule_cron=pipeline.cron,
            timezone=pipeline.timezone,
            catch_up=pipeline.catch_up,
            overlap=pipeline.overlap,
            jitter_seconds=pipeline.jitter_seconds,
            config_id=pipeline.config_id,
        )
        answer = self._life.attempt(
            lambda: pipelines.configure_pipeline(command, self._life.platform, self._life.world.catalogue)
        )
        if answer.happened and answer.refusal is None:
            self._life.timetable.begin(pipeline, at)
            self._life.timetable.pipelines[pipeline.config_id] = pipeline
        return answer

    def change(self, pipeline: Pipeline, at: datetime, **changes: Any) -> None:
        """`changes` are named as the pipeline's own fields."""
        asked = {"schedule_cron" if name == "cron" else name: value for name, value in changes.items()}
        command = pipelines.ChangePipeline(
            **self._life.stamp("admin", at), customer_id=pipeline.customer_id, config_id=pipeline.config_id, **asked
        )
        answer = self._life.attempt(
            lambda: pipelines.change_pipeline(command, self._life.platform, self._life.world.catalogue)
        )
        differs = any(getattr(pipeline, name) != value for name, value in changes.items())
        if answer.happened and answer.refusal is None and differs:
            moved = any(getattr(pipeline, name) != changes.get(name, getattr(pipeline, name)) for name in _SCHEDULE)
            waits = not moved and pipeline.due(at)
            for name, value in changes.items():
                setattr(pipeline, name, value)
            if not waits:
                self._life.timetable.begin(pipeline, at)

    def remove(self, pipeline: Pipeline, at: datetime) -> None:
        command = pipelines.RemovePipeline(
            **self._life.stamp("admin", at), customer_id=pipeline.customer_id, config_id=pipeline.config_id
        )
        if self._life.attempt(lambda: pipelines.remove_pipeline(command, self._life.platform)).happened:
            del self._life.timetable.pipelines[pipeline.config_id]

    def pause(self, customer_id: str, at: datetime) -> None:
        command = schedules.PauseSchedules(**self._life.stamp("admin", at), customer_id=customer_id, reason="test")
        answer = self._life.attempt(lambda: schedules.pause_schedules(command, self._life.platform))
        if self._allowed(answer, customer_id):
            self._life.timetable.paused.add(customer_id)
            self._life.timetable.rest(customer_id)

    def resume(self, customer_id: str, at: datetime) -> None:
        command = schedules.ResumeSchedules(**self._life.stamp("admin", at), customer_id=customer_id, reason="test")
        answer = self._life.attempt(lambda: schedules.resume_schedules(command, self._life.platform))
        timetable = self._life.timetable
        if self._allowed(answer, customer_id) and customer_id in timetable.paused:
            timetable.paused.discard(customer_id)
            timetable.wake(customer_id, at)

    def _allowed(self, answer: Answer, customer_id: str) -> bool:
        if answer.happened:
            suspended = self._life.book.accounts[customer_id].suspended
            assert isinstance(answer.refusal, Forbidden) == suspended, f"{customer_id}: {answer}"
        return answer.happened and answer.refusal is None

    def fill_in(self, pipeline: Pipeline, at: datetime, first: date, days: int, backfill_id: str) -> Answer:
        """A run for each of so many days: as many as there is room for, the oldest first, and each of them once."""
        command = backfill.Backfill(
            **self._life.stamp("admin", at),
            customer_id=pipeline.customer_id,
            config_id=pipeline.config_id,
            first=first,
            last=first + timedelta(days=days - 1),
            backfill_id=backfill_id,
        )
        book, account = self._life.book, self._life.book.accounts[pipeline.customer_id]
        answer = self._life.attempt(lambda: backfill.backfill(command, self._life.platform, self._life.world.catalogue))
        if answer.happened:
            filled = [first + timedelta(days=n) for n in range(days)]
            wanted = [str(backfill_run_id(pipeline.customer_id, backfill_id, day)) for day in filled]
            missing = [run_id for run_id in wanted if run_id not in book.runs]
            room = book.room(pipeline.customer_id, at)
            for run_id in missing[:room]:
                book.admit(Run(run_id, pipeline.customer_id, "backfill", at, pipeline.config_id), at)
            if answer.heard:
                _told_of(answer, len(wanted), len(missing[room:]), suspended=account.suspended)
        return answer


def _told_of(answer: Answer, asked: int, refused: int, *, suspended: bool) -> None:
    if suspended:
        assert isinstance(answer.refusal, Forbidden), answer
    elif refused == asked:
        assert isinstance(answer.refusal, QuotaExceeded), answer
    else:
        assert (answer.value.queued, answer.value.refused) == (asked - refused, refused), answer
