"""Telling the log what became of runs: outcomes of many threads in one transaction."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_random

from adapters.bootstrap import Service, origin
from application.execution import Outcome, ReportOutcomes, report_outcomes
from application.ports import Away

logger = logging.getLogger(__name__)

MOST: Final = 200
"""Outcomes per transaction, at most."""

GATHER_S: Final = 0.01
"""How long an outcome waits for others at most."""

_UNTOLD: Final = "The run failed, and what it said about it could not be recorded; the operators' log says why."

Recorded = Callable[[], None]
Submitted = tuple[Outcome, Recorded]


class Reporter:
    """Records outcomes in the order they come, as many at a time as have gathered.

    While the database is away it tries again for `patience_s`; after that the leases of the runs are lost anyway, and
    whoever takes them over starts them again. `in_hand` says how many attempts are not recorded yet; `then` is called
    when some have been, once for all of them.
    """

    def __init__(
        self,
        service: Service,
        worker_id: str,
        *,
        patience_s: float,
        in_hand: Callable[[], int] = lambda: 0,
        then: Callable[[], None] = lambda: None,
        request_id: str | None = None,
    ) -> None:
        self._service = service
        self._worker_id = worker_id
        self._patience_s = patience_s
        self._in_hand = in_hand
        self._then = then
        self._request_id = request_id
        self._queue: queue.SimpleQueue[Submitted | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when everything submitted before has been recorded or given up."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, outcome: Outcome, recorded: Recorded) -> None:
        """Have the outcome recorded soon; `recorded` is called afterwards, in the reporter's thread."""
        self._queue.put((outcome, recorded))

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            gathered = self._gathered(first)
            self._record([outcome for outcome, _ in gathered])
            for _, recorded in gathered:
                recorded()
            self._then()

    def _gathered(self, first: Submitted) -> list[Submitted]:
        """What is there, and what comes in a moment as long as more is in hand: short runs end together."""
        gathered, until = [first], time.monotonic() + GATHER_S
        while len(gathered) < MOST:
            left = until - time.monotonic() if len(gathered) < self._in_hand() else 0
            try:
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            gathered.append(item)
        return gathered

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(Away),
            wait=wait_random(0.1, 1.0),
            stop=stop_after_delay(self._patience_s),
            before_sleep=_tell,
        )
        command = ReportOutcomes(
            at=self._service.now(),
            by=origin(f"worker:{self._worker_id}", request_id=self._request_id),
            worker_id=self._worker_id,
            outcomes=tuple(outcomes),
        )
        try:
            refused = retrying(report_outcomes, command, self._service.platform)
        except RetryError:
            logger.error("the outcomes of %d runs could not be recorded; they will run again", len(outcomes))  # noqa: TRY400 - the warnings before it say why
            return
        except Exception:
            logger.exception("the outcomes of %d runs cannot be recorded", len(outcomes))
            if len(outcomes) > 1:
                # One that cannot be recorded must not keep the others from it.
                for outcome in outcomes:
                    self._record([outcome])
            elif (bare := _bare(outcomes[0])) != outcomes[0]:
                # Nor must its run be executed again and again because of what it said.
                self._record([bare])
            return
        for run_id in refused:
            logger.warning("run %s was no longer ours: another worker has it", run_id)


def _bare(outcome: Outcome) -> Outcome:
    """How the attempt ended, without the steps and words of the run."""
    report = outcome.report
    if report is not None and report.error is not None:
        report = replace(report, error=_UNTOLD)
    return replace(outcome, steps=(), report=report)


def _tell(state: RetryCallState) -> None:
    logger.warning("outcomes wait to be recorded: %s", state.outcome.exception() if state.outcome else "")
