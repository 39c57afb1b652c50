"""Runs a pipeline's steps: in order, with time limits, tries, and an eye on cancellation."""

import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from adapters.pipelines import data_quality, extract_load, notify, query
from adapters.pipelines.attempt import Attempt, first_variables
from adapters.pipelines.failures import Failure, StepFailed, explain
from adapters.pipelines.jobs import Jobs
from adapters.pipelines.registry import AnyStep, Registry, Template
from adapters.pipelines.source import Sources
from adapters.pipelines.step import Outcome, Step
from application.ports import (
    Away,
    CredentialReader,
    Mailer,
    NotToBeOpened,
    RunOrder,
    RunProgress,
    RunReport,
    StepReport,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_SECONDS = 0.2
"""How often a running step is looked after: a cancelled run ends within this and _STOP_SECONDS."""
_STOP_SECONDS = 0.5
"""For the step's thread to cancel its job. If BigQuery is slow it goes on with that, and nobody waits."""
_CLEAN_SECONDS = 2.0
_MAIL_SECONDS = 30.0

_LEGAL = re.compile(r"[^A-Za-z0-9_-]")
_RUNNERS: Mapping[type[Step], Callable[[Any, Attempt], Outcome]] = {
    query.QueryStep: query.run,
    extract_load.ExtractLoadStep: extract_load.run,
    data_quality.DataQualityStep: data_quality.run,
    notify.NotifyStep: notify.run,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a step and a whole run may take."""

    step_s: float = 600.0
    run_s: float = 1800.0
    longest_pause_s: float = 20.0
    """Between two tries of a step: the ceiling of the exponential back-off, of which a random part is taken."""


class Engine:
    """A PipelineRunner on BigQuery. One engine serves any number of runs at the same time.

    `endpoint` is the emulator's URL when that is what `client` talks to; None means Google.
    """

    def __init__(
        self,
        registry: Registry,
        client: bigquery.Client,
        *,
        central: str,
        credentials: CredentialReader,
        mailer: Mailer,
        now: Callable[[], datetime],
        endpoint: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._registry = registry
        self._client = client
        self._sources = Sources(client, credentials, central=central, endpoint=endpoint)
        self._mailer = mailer
        self._now = now
        self._limits = limits or Limits()

    def run(self, order: RunOrder, progress: RunProgress) -> RunReport:
        """Execute one attempt. A failing step is a report; raises only what `progress` raises, as it does."""
        template = self._registry.find(order.provider, order.domain, order.template)
        if template is None:
            return RunReport(succeeded=False, error="There is no such pipeline template.")
        try:
            values = template.check(order.parameters)
        except ValueError as error:
            return RunReport(succeeded=False, error=str(error))
        return _Execution(self._attempt(template, order, values), template, self._limits, progress).run()

    def _attempt(self, template: Template, order: RunOrder, values: Mapping[str, Any]) -> Attempt:
        # The run may have been asked for as GCP/COST: from here on names are the registry's.
        order = replace(
            order, provider=template.provider, domain=template.domain, template=template.name, parameters=values
        )
        return Attempt(
            order=order,
            directory=template.directory,
            platform=self._client,
            sources=self._sources,
            jobs=Jobs("", self._limits.run_s),
            mailer=self._mailer,
            now=self._now,
            parameters=values,
            variables=first_variables(order, template.parameters, values),
        )


class _Execution:
    """One attempt, step by step."""

    def __init__(self, attempt: Attempt, template: Template, limits: Limits, progress: RunProgress) -> None:
        self._attempt = attempt
        self._template = template
        self._limits = limits
        self._progress = progress
        self._ends = time.monotonic() + limits.run_s
        self._rows = 0
        self._failure: Failure | None = None

    def run(self) -> RunReport:
        cleaning_s = 0.0
        try:
            for index, step in enumerate(self._template.ordered_steps):
                self._progress.check()
                self._progress.finished(self._step(index, step))
            cleaning_s = _CLEAN_SECONDS
        finally:
            self._clean(cleaning_s)
        failure = self._failure
        return RunReport(
            succeeded=failure is None,
            rows=self._rows,
            error=None if failure is None else failure.sentence,
            can_pass=failure is not None and failure.can_pass,
        )

    def _step(self, index: int, step: AnyStep) -> StepReport:
        began = self._attempt.now()
        order = self._attempt.order
        jobs = Jobs(
            f"convergence-{_LEGAL.sub('_', order.run_id)}-{order.attempt}-{step.id}",
            longest_s=min(step.timeout_s or self._limits.step_s, self._limits.run_s),
        )
        outcome, failure = self._outcome(step, jobs)
        if failure is not None and step.on_failure == "fail" and not isinstance(step, notify.NotifyStep):
            self._fail(failure)
        if failure is None and outcome.delivers:
            self._rows += outcome.rows
        metadata = {**outcome.metadata, "job_ids": list(jobs.ids), "bytes_processed": jobs.bytes_processed}
        if outcome.skipped is not None:
            metadata["reason"] = outcome.skipped
        return StepReport(
            index=index,
            name=step.id,
            type=step.type,
            status="FAILED" if failure else "SKIPPED" if outcome.skipped is not None else "COMPLETED",
            started_at=began,
            ended_at=self._attempt.now(),
            rows=outcome.rows,
            error=None if failure is None else failure.sentence,
            target_table=outcome.target_table,
            expectations=outcome.expectations,
            metadata=metadata,
        )

    def _outcome(self, step: AnyStep, jobs: Jobs) -> tuple[Outcome, Failure | None]:
        seconds = min(step.timeout_s or self._limits.step_s, self._ends - time.monotonic())
        if isinstance(step, notify.NotifyStep):
            # People are told even when the run's time is used up.
            seconds = max(seconds, _MAIL_SECONDS)
        elif self._failure is not None:
            return Outcome(skipped="An earlier step has failed."), None
        retrying = Retrying(
            stop=stop_after_attempt(step.retries + 1),
            wait=wait_random_exponential(multiplier=0.5, max=self._limits.longest_pause_s),  # full jitter
            retry=retry_if_exception(lambda error: explain(error).can_pass),
            sleep=jobs.pause,
            after=_tell,
            reraise=True,
        )
        # A step that is given up keeps its own jobs, stopped for good, whatever the next step does.
        share = replace(self._attempt, jobs=jobs)
        future = _started(lambda: retrying(_RUNNERS[type(step)], step, share))
        ends = time.monotonic() + seconds
        if not self._finished(future, ends, jobs):
            what = "run" if ends >= self._ends else f"step {step.id}"
            limit = self._limits.run_s if ends >= self._ends else seconds
            return Outcome(), Failure(f"The {what} took longer than {limit:g} seconds and was stopped.", can_pass=True)
        error = future.exception()
        if error is None:
            return future.result(), None
        if not isinstance(error, (StepFailed, Away, NotToBeOpened, GoogleAPICallError, GoogleAuthError, OSError)):
            # Frames without the message: that may hold customers' data.
            _log.error(
                "Run %s, step %s: %s\n%s",
                self._attempt.order.run_id,
                step.id,
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)),
            )
        found = error.outcome if isinstance(error, StepFailed) else None
        return found or Outcome(), explain(error)

    def _finished(self, future: Future[Outcome], ends: float, jobs: Jobs) -> bool:
        """Whether the step came to its end in time. When `progress` raises, the step is stopped first."""
        while not wait([future], timeout=_LOOK_SECONDS).done:
            try:
                self._progress.check()
            except BaseException:
                _stop(future, jobs)
                raise
            if time.monotonic() >= ends:
                _stop(future, jobs)
                return False
        return True

    def _fail(self, failure: Failure) -> None:
        self._failure = failure
        self._attempt.failure = failure.sentence
        self._attempt.may_come_again = failure.can_pass and not self._attempt.order.last_attempt

    def _clean(self, wait_s: float) -> None:
        """Remove the stage, if there is one, without keeping a cancelled run waiting for a backend that is away."""
        if any(isinstance(step, extract_load.ExtractLoadStep) for step in self._template.steps):
            cleaning = _started(lambda: extract_load.drop_stage(self._attempt))
            if wait([cleaning], timeout=wait_s).done and cleaning.exception() is not None:
                _log.warning("Run %s left its stage table; it expires by itself.", self._attempt.order.run_id)


def _stop(future: Future[Outcome], jobs: Jobs) -> None:
    jobs.stop()
    wait([future], timeout=_STOP_SECONDS)


def _started(work: Callable[[], T]) -> Future[T]:
    """Do it in a thread of its own, which nobody waits for at exit: a call that hangs must not hold up the worker."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed over to whoever asks the future
            future.set_exception(error)

    threading.Thread(target=body, name="pipeline-step", daemon=True).start()
    return future


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.info("Try %d of a step did not succeed: %s", state.attempt_number, explain(error).sentence if error else "")
