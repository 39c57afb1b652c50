"""Connecting to BigQuery, Google's or an emulator's, and saying in the project's words what went wrong there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast
from uuid import uuid4

import requests
from google.api_core import exceptions, retry
from google.api_core.client_options import ClientOptions
from google.auth import default as default_credentials
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import bigquery
from requests.adapters import HTTPAdapter

from application.ports import Away

GOOGLE = "https://bigquery.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/bigquery"
CONNECT_SECONDS = 3.0
CALL_SECONDS = 30.0
"""The longest that one call may take: a statement, or waiting for its end."""
_CONNECTIONS = 32
"""Kept open, which is more than there are threads that share a client."""
METADATA_SECONDS = 5.0
"""The longest that one call about a dataset or a table may take."""

_PASSING_REASONS = frozenset(
    {"backendError", "internalError", "jobBackendError", "jobInternalError", "jobRateLimitExceeded", "quotaExceeded"}
    | {"rateLimitExceeded", "tableUnavailable"}
)
_PASSING_WORDS = ("could not serialize access", "concurrent update", "out of memory error")
"""Two writers of one table at Google; an emulator that is short of memory for a moment. Both say the query is bad."""
_NO_ANSWER = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    auth_exceptions.TransportError,
    ConnectionError,
    TimeoutError,
)


class NotThere(ValueError):  # noqa: N818 - it says where the thing is
    """The project, dataset, table or job does not exist. The text is BigQuery's sentence."""


class _Session(HTTPAdapter):
    """Gives up connecting after a few seconds, however long the answer itself may take."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override] # noqa: ANN401 - requests' own
        patience = options.get("timeout")
        if isinstance(patience, int | float):
            options["timeout"] = (min(CONNECT_SECONDS, patience), patience)
        return super().send(request, **options)


def connect(project: str, emulator_url: str | None, location: str) -> bigquery.Client:
    """A client for `project` at Google (application default credentials), or at the emulator of that URL.

    Nothing is sent. Both endpoints are passed explicitly, because the library would otherwise read its own environment
    variables. Raises `ValueError` when Google's credentials cannot be found.
    """
    if emulator_url is None:
        try:
            credentials, _ = default_credentials(scopes=[SCOPE])
        except auth_exceptions.DefaultCredentialsError as missing:
            raise ValueError(f"No credentials for BigQuery: {missing}") from missing
    else:
        credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    session = AuthorizedSession(credentials, refresh_timeout=METADATA_SECONDS)  # type: ignore[no-untyped-call]
    session.mount("https://", _Session(pool_maxsize=_CONNECTIONS))
    session.mount("http://", _Session(pool_maxsize=_CONNECTIONS))
    return bigquery.Client(
        project=project,
        credentials=credentials,
        location=location,
        client_options=ClientOptions(api_endpoint=emulator_url or GOOGLE),
        _http=session,
    )


def passes(error: BaseException) -> bool:
    """Whether the same call may work later: no answer, too many calls, a server's own error, two writers colliding."""
    if isinstance(error, exceptions.MethodNotImplemented):
        return False
    if isinstance(error, (exceptions.RetryError, exceptions.TooManyRequests, exceptions.ServerError, *_NO_ANSWER)):
        return True
    if isinstance(error, auth_exceptions.RefreshError):
        return bool(error.retryable)
    if isinstance(error, exceptions.GoogleAPICallError):
        return _reason(error) in _PASSING_REASONS or any(words in str(error).lower() for words in _PASSING_WORDS)
    return False


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns the library's errors into `Away`, `NotThere`, `PermissionError` or a `ValueError` of BigQuery's words."""
    try:
        yield
    except (
        exceptions.GoogleAPIError,
        auth_exceptions.GoogleAuthError,
        requests.RequestException,
        *_NO_ANSWER,
    ) as error:
        raise _plain(error) from error


def _plain(error: BaseException) -> Exception:
    if passes(error):
        cause = error.cause if isinstance(error, exceptions.RetryError) else error
        return Away(f"BigQuery is away: {_sentence(cause) if cause else 'no answer in time'}")
    if isinstance(error, exceptions.NotFound):
        return NotThere(_sentence(error))
    if isinstance(error, exceptions.Forbidden | exceptions.Unauthorized | auth_exceptions.GoogleAuthError):
        return PermissionError(f"BigQuery refuses: {_sentence(error)}")
    return ValueError(_sentence(error))


def _sentence(error: BaseException) -> str:
    """What BigQuery said, without the request; of other errors only their kind, since they may quote addresses."""
    if isinstance(error, exceptions.GoogleAPICallError):
        details = error.errors
        if details and isinstance(details[0], dict) and details[0].get("message"):
            return str(details[0]["message"])
        return str(error.message)
    return type(error).__name__


def _reason(error: exceptions.GoogleAPICallError) -> str:
    details = error.errors
    return str(details[0].get("reason", "")) if details and isinstance(details[0], dict) else ""


RETRY = retry.Retry(predicate=passes, initial=0.1, maximum=1.0, multiplier=2.0, timeout=5.0)
"""For every call: tries again for five seconds, then leaves it to the caller, who knows what else is waiting."""


def run(
    client: bigquery.Client,
    sql: str,
    parameters: Sequence[bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter] = (),
) -> bigquery.QueryJob:
    """Run one statement to its end; raises the library's errors.

    It is cancelled, with a `TimeoutError`, when it has not ended `CALL_SECONDS` after it was accepted.

    It goes through jobs.insert: the client's shorter way through jobs.query takes a failed statement for an empty
    answer when the server reports the failure inside a response of status 200, as an emulator may. The job has an id
    from the beginning, so that Google runs it once even when its acceptance was lost and the call repeated.
    """
    job_id = f"convergence_{uuid4()}"
    config = bigquery.QueryJobConfig(query_parameters=list(parameters))
    try:
        job = client.query(sql, config, job_id=job_id, retry=RETRY, job_retry=None, timeout=CALL_SECONDS)
    except exceptions.Conflict:
        job = cast("bigquery.QueryJob", client.get_job(job_id, retry=RETRY, timeout=METADATA_SECONDS))
    if job.state != "DONE" or job.error_result:
        try:
            job.result(max_results=0, retry=RETRY, job_retry=None, timeout=CALL_SECONDS)
        except TimeoutError:
            with suppress(exceptions.GoogleAPIError, requests.RequestException):  # it ends by itself then
                job.cancel(retry=None, timeout=METADATA_SECONDS)
            raise
    return job
