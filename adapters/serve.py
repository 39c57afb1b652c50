"""Everything on a laptop: PostgreSQL and BigQuery as child processes, the service's four roles in this one."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from adapters.embedded import EmbeddedError
from adapters.embedded.bigquery import EmbeddedBigQuery
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.event_log import connection_arguments
from adapters.process import Shutdown, Unable, bind
from adapters.running import RunningServe, reachable_host
from adapters.settings import LOCAL_ADMIN_KEY, Settings

logger = logging.getLogger(__name__)

_FROM_THE_BEGINNING: Final = (
    "INSERT INTO checkpoints (projection, position) VALUES (%s, 0)"
    " ON CONFLICT (projection) DO UPDATE SET position = 0, updated_at = clock_timestamp()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything is, once it is ready. No secret but the admin key that every laptop has."""

    url: str
    docs: str
    bigquery: str
    project: str
    postgresql: str
    mail: str
    data_dir: str
    admin_key: str
    ready_after_s: float


def serve(settings: Settings, shutdown: Shutdown, announce: Callable[[Addresses], None]) -> None:
    """Run everything until a signal comes; returns when all of it has stopped. What is in the data directory stays.

    `announce` is called once the API answers. Raises `Unable` or `EmbeddedError` with a sentence when something cannot
    start, or ends before it should.
    """
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            _serve(settings, shutdown, announce, stack, began)
    except EmbeddedError:
        # A Ctrl-C in the terminal also reaches what PostgreSQL's first start runs.
        if not shutdown.asked:
            raise
    if shutdown.failure is not None:
        raise Unable(shutdown.failure)


def _serve(
    settings: Settings, shutdown: Shutdown, announce: Callable[[Addresses], None], stack: ExitStack, began: float
) -> None:
    listener = bind(settings.host, settings.port)
    stack.callback(listener.close)
    _make(settings.data_dir)
    database = _Database(settings)
    stack.callback(database.stop)
    database.start()
    bigquery = _BigQuery(settings, shutdown) if settings.embedded_bigquery else None
    if bigquery:
        stack.callback(bigquery.stop)
        bigquery.start()
    # These imports take about as long as PostgreSQL's start: they go on side by side.
    from adapters import roles  # noqa: PLC0415
    from adapters.presence import Presence  # noqa: PLC0415

    dsn = database.ready()
    if bigquery:
        bigquery.database_is_ready(dsn)
    if shutdown.is_due:
        return
    service = roles.built(settings, dsn)
    stack.callback(service.close)
    presence = stack.enter_context(Presence(service, list(roles.Role)))

    def answering() -> None:
        if shutdown.is_due:
            return
        RunningServe.here(url=_url(settings), dsn=dsn, emulator_url=settings.emulator_url).write(settings.data_dir)
        announce(_addresses(settings, dsn, time.monotonic() - began))

    front = [
        roles.api_part(service, listener, answering),
        roles.part(roles.Role.SCHEDULER, service, presence),
        roles.part(roles.Role.WORKER, service, presence),
    ]
    behind = [roles.part(roles.Role.PROJECTOR, service, presence)]
    stack.callback(RunningServe.remove, settings.data_dir)
    stack.callback(roles.end, [front, behind])
    for part in (*front, *behind):
        part.start(shutdown)
    logger.info("stopping (%s)", shutdown.wait())


class _Database:
    """The embedded PostgreSQL, or the one that DATABASE_URL names; brought to this version's schema."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url
        self._embedded = None if self._url else EmbeddedPostgres(settings.data_dir / "postgres")
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="postgresql start")
        self._started: Future[str] | None = None

    def start(self) -> None:
        """Begin to start it, without waiting."""
        if self._embedded:
            self._started = self._starting.submit(self._embedded.start)

    def ready(self) -> str:
        """The DSN, once the database answers and its schema is this version's. Raises `Unable`, `EmbeddedError`."""
        from adapters.database import migrate  # noqa: PLC0415

        dsn = self._started.result() if self._started else self._url.get_secret_value() if self._url else ""
        applied = migrate(dsn)
        if applied:
            logger.info("applied migrations: %s", ", ".join(applied))
        return dsn

    def stop(self) -> None:
        self._starting.shutdown()
        if self._embedded:
            self._embedded.stop()


class _BigQuery:
    """The local BigQuery. It starts beside everything else, and what needs it waits for it."""

    def __init__(self, settings: Settings, shutdown: Shutdown) -> None:
        self._emulator = EmbeddedBigQuery(
            settings.data_dir / "bigquery", settings.bigquery_emulator_port, on_empty=self._project_anew
        )
        self._shutdown = shutdown
        self._dsn: Future[str] = Future()
        self._thread = threading.Thread(target=self._start, name="bigquery start")

    def start(self) -> None:
        """Begin to start it, without waiting. What goes wrong ends the process."""
        self._thread.start()

    def database_is_ready(self, dsn: str) -> None:
        """From now on the projection that fills it can be put back to the beginning."""
        self._dsn.set_result(dsn)

    def _start(self) -> None:
        try:
            began = time.monotonic()
            self._emulator.start()
            logger.info("the local BigQuery answers after %.1f s", time.monotonic() - began)
        except EmbeddedError as error:
            self._shutdown.fail(str(error))
        except CancelledError:
            logger.debug("the local BigQuery was not started: the database is not ready")
        except BaseException as error:
            logger.exception("The local BigQuery could not be started")
            self._shutdown.fail(f"The local BigQuery could not be started: {type(error).__name__}.")

    def _project_anew(self) -> None:
        """It has no tables: the projection begins at the first event again."""
        from domain.projection import WAREHOUSE  # noqa: PLC0415 - what a command needs is imported inside it

        arguments = connection_arguments(self._dsn.result(), name="bigquery start")
        try:
            with psycopg.connect(**arguments) as connection:
                connection.execute(_FROM_THE_BEGINNING, (WAREHOUSE,))
        except psycopg.Error as error:
            raise EmbeddedError("The local BigQuery is empty, and the database does not answer.") from error

    def stop(self) -> None:
        self._dsn.cancel()
        if self._thread.ident is not None:
            self._thread.join()
        self._emulator.stop()


def _make(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unable(f"DATA_DIR: {data_dir} cannot be made ({error.strerror}).") from error


def _url(settings: Settings) -> str:
    return f"http://{reachable_host(settings.host)}:{settings.port}"


def _addresses(settings: Settings, dsn: str, seconds: float) -> Addresses:
    local = settings.admin_api_key.get_secret_value() == LOCAL_ADMIN_KEY
    return Addresses(
        url=_url(settings),
        docs=f"{_url(settings)}/docs",
        bigquery=settings.emulator_url or "Google BigQuery",
        project=settings.project,
        postgresql=without_password(dsn),
        mail=str((settings.data_dir / "outbox").resolve()) if settings.smtp_url is None else "SMTP_URL",
        data_dir=str(settings.data_dir.resolve()),
        admin_key=LOCAL_ADMIN_KEY if local else "ADMIN_API_KEY, as set",
        ready_after_s=round(seconds, 1),
    )


def without_password(dsn: str) -> str:
    """The database's address for people."""
    facts = {"host": "", "port": "5432", "dbname": "", "user": ""} | conninfo_to_dict(dsn)
    return "postgresql://{user}@{host}:{port}/{dbname}".format_map(facts)
