"""The server that the demo walks through: one that runs already, or one of its own that goes when the demo ends."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from google.cloud import bigquery
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from adapters.bigquery.client import connect, plain_errors, run
from adapters.embedded.child import Child, free_port
from adapters.process import Unable
from adapters.running import RunningServe, locate
from adapters.settings import LOCAL_ADMIN_KEY, LOCAL_PROJECT, Settings
from application.ports import Away

_START_S: Final = 90.0
_STOP_S: Final = 35.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the demo calls, and where the same server's BigQuery is."""

    url: str
    admin_key: str = field(repr=False)
    open_onboarding: bool
    project: str
    central_dataset: str
    location: str
    emulator_url: str | None

    def bigquery(self) -> bigquery.Client:
        """A client for its BigQuery; raises `Unable` where there are no credentials for it."""
        try:
            return connect(self.project, emulator_url=self.emulator_url, location=self.location)
        except ValueError as error:
            raise Unable(str(error)) from error


@contextmanager
def server(settings: Settings, url: str | None) -> Iterator[Target]:
    """The server at `url`, the `serve` that runs on the data directory, or else a temporary one.

    It answers, and so does its BigQuery. Raises `Unable` with a sentence.
    """
    place = locate(settings)
    if url is None and place.serve is None:
        with tempfile.TemporaryDirectory(prefix="convergence-demo-") as directory, _temporary(Path(directory)) as own:
            yield _answering(own)
        return
    if place.settings.embedded_bigquery:
        raise Unable("The demo loads data into the server's BigQuery: set BIGQUERY_EMULATOR_HOST or GCP_PROJECT_ID.")
    yield _answering(
        Target(
            url=(url or place.url).rstrip("/"),
            admin_key=settings.admin_api_key.get_secret_value(),
            open_onboarding=settings.onboarding_is_open,
            project=settings.project,
            central_dataset=settings.customers_dataset_id,
            location=settings.gcp_location,
            emulator_url=place.settings.emulator_url,
        )
    )


@contextmanager
def _temporary(directory: Path) -> Iterator[Target]:
    data_dir, port, emulator_port = directory / "var", free_port(), free_port()
    log = directory / "serve.log"
    child = Child(
        [sys.executable, "-P", "-m", "adapters.cli", "serve"],
        directory=directory,
        log=log,
        # Nothing of our own settings: they may name a database that is no playground.
        environment={
            "PATH": os.defpath,
            "HOME": str(directory),
            "DATA_DIR": str(data_dir),
            "PORT": str(port),
            "BIGQUERY_EMULATOR_PORT": str(emulator_port),
        },
        stop_signal=signal.SIGINT,
        grace_seconds=_STOP_S,
    )
    try:
        _await_ready(data_dir, child)
        yield Target(
            url=f"http://127.0.0.1:{port}",
            admin_key=LOCAL_ADMIN_KEY,
            open_onboarding=True,
            project=LOCAL_PROJECT,
            central_dataset="customers_metadata",
            location="US",
            emulator_url=f"http://127.0.0.1:{emulator_port}",
        )
    finally:
        child.stop()


class _NotYet(Exception):  # noqa: N818 - it says when
    """It has not started yet."""


def _await_ready(data_dir: Path, child: Child) -> None:
    for attempt in Retrying(
        retry=retry_if_exception_type(_NotYet), wait=wait_fixed(0.1), stop=stop_after_delay(_START_S), reraise=True
    ):
        with attempt:
            if RunningServe.find(data_dir) is not None:
                return
            if not child.running:
                said = child.output().strip().splitlines() or ["it said nothing"]
                raise Unable(f"The temporary server did not start: {said[-1]}")
            raise _NotYet


def _answering(target: Target) -> Target:
    """The target, once its API and BigQuery answer: the local BigQuery takes a little longer than the API."""
    try:
        httpx.get(f"{target.url}/livez", timeout=10, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise Unable(f"No server answers at {target.url} ({type(error).__name__}).") from error
    client = target.bigquery()
    try:
        for attempt in Retrying(
            retry=retry_if_exception_type(Away), wait=wait_fixed(0.2), stop=stop_after_delay(_START_S), reraise=True
        ):
            with attempt, plain_errors():
                run(client, "SELECT 1")
    except (Away, ValueError, PermissionError) as error:
        raise Unable(str(error)) from error
    finally:
        client.close()  # type: ignore[no-untyped-call]
    return target
