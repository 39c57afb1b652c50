"""BigQuery jobs that are waited for in short steps, so that they can be stopped and cancelled."""

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import IO, Any

from google.api_core.exceptions import ClientError, GoogleAPICallError, NotFound
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery

from adapters.pipelines.failures import Stopped

_log = logging.getLogger(__name__)

CALL_SECONDS = 30.0
"""For calls that only ask."""
_STATEMENT_SECONDS = 120.0
"""For calls that start a job. BigQuery answers them at once; the emulator when the job is done."""
_CANCEL_SECONDS = 5.0
_POLL_SECONDS, _POLL_SECONDS_MOST = 0.05, 1.0

ONCE = Retry(predicate=if_exception_type())
"""For calls that change something: their step decides whether to try again."""
AGAIN = bigquery.DEFAULT_RETRY.with_timeout(20.0)
"""For calls that only ask: a blip is not worth a new job."""

QueryParameter = bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter


class Jobs:
    """Starts jobs, waits for them, and cancels them when their step is to stop.

    One thread starts and waits; any other may call `stop`. BigQuery itself ends a job after `longest_s` seconds,
    whatever becomes of this process. No call is left to the client library's own retries of ten minutes: a job is
    started once, and failures are the caller's to retry.
    """

    def __init__(self, prefix: str, longest_s: float) -> None:
        self._prefix = prefix
        self._longest_ms = max(int(longest_s * 1000), 1)
        self._stop = threading.Event()
        self.ids: list[str] = []
        self.bytes_processed = 0

    def checkpoint(self) -> None:
        """Between units of work. Raises `Stopped` once `stop` was called."""
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Sleep between two tries. Raises `Stopped` as soon as `stop` is called."""
        if self._stop.wait(seconds):
            raise Stopped

    def query(
        self,
        client: bigquery.Client,
        sql: str,
        parameters: Sequence[QueryParameter] = (),
        *,
        dry_run: bool = False,
        most_bytes: int | None = None,
    ) -> bigquery.QueryJob:
        """Run one statement to its end. Raises what Google's client raises, or `Stopped`."""
        config = bigquery.QueryJobConfig(query_parameters=list(parameters), dry_run=dry_run, use_legacy_sql=False)
        config.job_timeout_ms = self._longest_ms
        if most_bytes is not None:
            config.maximum_bytes_billed = most_bytes
        job: bigquery.QueryJob = self._run(
            client,
            lambda job_id: client.query(
                sql, job_config=config, job_id=job_id, retry=ONCE, job_retry=None, timeout=_STATEMENT_SECONDS
            ),
        )
        self.bytes_processed += job.total_bytes_processed or 0
        return job

    def load_parquet(
        self, client: bigquery.Client, file: IO[bytes], table: str, schema: Sequence[bigquery.SchemaField]
    ) -> None:
        """Append a Parquet file, read from its start, to `table` (`project.dataset.table`). Raises as `query` does."""
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            schema=list(schema),
            write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
            create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
        )
        config.job_timeout_ms = self._longest_ms
        self._run(
            client,
            lambda job_id: client.load_table_from_file(
                file, table, rewind=True, job_id=job_id, job_config=config, num_retries=0, timeout=_STATEMENT_SECONDS
            ),
        )

    def stop(self) -> None:
        """Let the thread that waits for a job cancel it and raise `Stopped`, at once or at its next checkpoint."""
        self._stop.set()

    def _run(self, client: bigquery.Client, start: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a job of any kind
        self.checkpoint()
        job_id = f"{self._prefix}-{len(self.ids)}-{uuid.uuid4().hex[:8]}"
        self.ids.append(job_id)
        try:
            job = start(job_id)
        except (GoogleAPICallError, OSError) as error:
            if not isinstance(error, ClientError):
                # It may have been started although the answer is lost, and must not run beside the next try.
                _cancel(client, job_id, client.project, client.location)
            raise
        self._wait(client, job)
        if job.error_result:
            raise job.exception()
        return job

    def _wait(self, client: bigquery.Client, job: Any) -> None:  # noqa: ANN401 - a job of any kind
        pause = _POLL_SECONDS
        while job.state != "DONE":
            if self._stop.wait(pause):
                _cancel(client, job.job_id, job.project, job.location)
                raise Stopped
            job.reload(retry=AGAIN, timeout=CALL_SECONDS)
            pause = min(pause * 2, _POLL_SECONDS_MOST)
        self.checkpoint()


def _cancel(client: bigquery.Client, job_id: str, project: str, location: str | None) -> None:
    try:
        client.cancel_job(job_id, project=project, location=location, retry=ONCE, timeout=_CANCEL_SECONDS)
    except NotFound:
        _log.info("Job %s was never started.", job_id)
    except (GoogleAPICallError, GoogleAuthError, OSError) as error:
        # Nothing waits for the answer: the job ends by its own time limit, and its result is not used.
        _log.warning("Job %s could not be cancelled: %s.", job_id, type(error).__name__)
