"""What went wrong, in a person's words, and whether trying again may help.

Messages of backends can carry customers' data, so only texts known to be about SQL and names are passed on.
"""

import errno
import re
from dataclasses import dataclass

from google.api_core import exceptions as google_errors
from google.auth import exceptions as auth_errors

from adapters.pipelines.step import Outcome
from application.ports import Away, NotToBeOpened


class Stopped(Exception):  # noqa: N818 - the step was told to stop
    """Raised inside a step when its run was cancelled or is out of time."""


class StepFailed(Exception):  # noqa: N818 - an answer, with what the step had found
    """A step that failed for a reason it can put into a sentence."""

    def __init__(self, sentence: str, *, can_pass: bool = False, outcome: Outcome | None = None) -> None:
        super().__init__(sentence)
        self.can_pass = can_pass
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Failure:
    """A sentence for the customer, and whether the same step may succeed later."""

    sentence: str
    can_pass: bool


_PASSING_REASONS = frozenset(
    {
        "backendError",
        "internalError",
        "jobBackendError",
        "jobInternalError",
        "rateLimitExceeded",
        "jobRateLimitExceeded",
        "tableUnavailable",
        "timeout",
    }
)
"""Reasons of BigQuery after which its documentation says to try again."""

_PASSING_CODES = frozenset({408, 429, 500, 502, 503, 504})
_AWAY = "BigQuery did not answer, or not in time."
_CONFLICT = "Could not serialize access"

_ABOUT_SQL = re.compile(
    r"Unrecognized name: [\w.`]+"
    r"|Syntax error: [^\n]{1,120}"
    r"|Name [\w.`]+ not found inside [\w.`]+"
    r"|Function not found: [\w.`]+"
    r"|Referenced (?:column|table) \"[\w.]+\" not found"
    r"|Not found: (?:Table|Dataset|Project) [\w.:-]+"
    r"|Query exceeded limit for bytes billed"
    r"|Query parameter '\w+' not found"
)


def explain(error: BaseException) -> Failure:
    """The failure that an exception of a step stands for. Never raises, never repeats customers' data."""
    match error:
        case StepFailed():
            failure = Failure(str(error), can_pass=error.can_pass)
        case Away():
            failure = Failure("A service that the run needs did not answer.", can_pass=True)
        case NotToBeOpened():
            failure = Failure("The customer's credential was not opened for this attempt.", can_pass=True)
        case google_errors.RetryError() | auth_errors.TransportError():
            failure = Failure(_AWAY, can_pass=True)
        case auth_errors.GoogleAuthError():
            failure = Failure("Google refused the credential.", can_pass=bool(error.retryable))
        case google_errors.GoogleAPICallError():
            failure = _answered(error)
        case OSError(errno=errno.ENOSPC):
            failure = Failure("The worker's disk is full.", can_pass=True)
        case OSError():  # what `requests` raises for connections and time-outs, too
            failure = Failure(_AWAY, can_pass=True)
        case _:
            failure = Failure(f"The step failed unexpectedly ({type(error).__name__}).", can_pass=False)
    return failure


def _answered(error: google_errors.GoogleAPICallError) -> Failure:
    reasons = {str(item.get("reason")) for item in error.errors or () if isinstance(item, dict)}
    reason = next(iter(sorted(reasons)), type(error).__name__)
    text = str(error.message)
    if _CONFLICT in text:
        return Failure("Another statement changed the same table at the same time.", can_pass=True)
    if error.code in _PASSING_CODES or reasons & _PASSING_REASONS:
        return Failure(f"BigQuery could not do it now ({reason}).", can_pass=True)
    known = _ABOUT_SQL.search(text)
    if known is not None:
        return Failure(f"BigQuery refused the statement: {known.group().rstrip('.')}.", can_pass=False)
    match error:
        case google_errors.NotFound():
            return Failure("A table or dataset that the step reads does not exist.", can_pass=False)
        case google_errors.Forbidden() | google_errors.Unauthorized():
            return Failure(f"BigQuery denied access ({reason}).", can_pass=False)
        case _:
            return Failure(
                f"BigQuery refused the statement ({reason}): its SQL or a value that it read is not valid.",
                can_pass=False,
            )
