"""Whether all is well here: each thing that the service needs, looked at, with what to do where it is not so."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from adapters.finding import Finding, Result
from adapters.process import Unable
from adapters.running import Place, locate
from adapters.settings import Settings, WrongSettings, read

_OLDEST_POSTGRES: Final = 140000
_PATIENCE_S: Final = 3.0
_LEAST_BYTES: Final = 1_000_000_000
_SKEW_WARN, _SKEW_FAIL = timedelta(seconds=2), timedelta(seconds=30)
_START: Final = "Start it: convergence serve."


def examine(*, whole_log: bool = False, tell: Callable[[str, int, int], None] | None = None) -> list[Finding]:
    """Look at everything, each check by itself: none stops the others, except that wrong settings stop all.

    With `whole_log` every event is decoded, and `tell` is told how far that is.
    """
    try:
        settings = read()
        place = locate(settings)
    except WrongSettings as error:
        return [Finding("settings", Result.FAIL, str(error), "Correct the environment variable.")]
    except OSError as error:
        why = f"{error.filename} cannot be read: {error.strerror}."
        return [Finding("data directory", Result.FAIL, why, "Run as the user that owns it, or set DATA_DIR.")]
    found = [_settings(settings), _data_directory(settings.data_dir), _library_settings()]
    found += _database(place, whole_log=whole_log, tell=tell)
    checks: list[tuple[str, Callable[[Place], Finding]]] = [
        ("BigQuery", _bigquery),
        ("wrapping keys", _keys),
        ("mail", _mail),
        ("API", _api),
        ("templates", _templates),
    ]
    return [*found, *(_guarded(name, check, place) for name, check in checks)]


def _guarded(name: str, check: Callable[[Place], Finding], place: Place) -> Finding:
    try:
        return check(place)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this check's finding
        return Finding(name, Result.FAIL, f"The check failed: {type(error).__name__}.", "Look at what it needs.")


def _settings(settings: Settings) -> Finding:
    facts = f"environment {settings.environment}, project {settings.project}"
    if (
        not settings.production
        and settings.host not in {"127.0.0.1", "localhost", "::1"}
        and settings.onboarding_is_open
    ):
        return Finding(
            "settings",
            Result.WARN,
            f"{facts}; anybody who reaches {settings.host} can make customers.",
            "Set ENVIRONMENT=production, or OPEN_ONBOARDING=false and another ADMIN_API_KEY.",
        )
    return Finding("settings", Result.OK, facts)


def _data_directory(directory: Path) -> Finding:
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(
            "data directory", Result.FAIL, f"{nearest} cannot be written.", "Set DATA_DIR to a directory of yours."
        )
    free = shutil.disk_usage(nearest).free
    detail = f"{directory.absolute()}, {free / 1e9:.1f} GB free" + ("" if directory.exists() else "; not made yet")
    if free < _LEAST_BYTES:
        return Finding("data directory", Result.WARN, detail, "Make room on the disk, or set DATA_DIR.")
    return Finding("data directory", Result.OK, detail)


def _library_settings() -> Finding:
    """The library's own switch that takes away the order of the event log."""
    if os.environ.get("POSTGRES_ENABLE_DB_FUNCTIONS"):
        why = "POSTGRES_ENABLE_DB_FUNCTIONS is set: appends would skip the lock that orders the log."
        return Finding("event log settings", Result.FAIL, why, "Unset it.")
    return Finding("event log settings", Result.OK, "no database functions")


def _database(place: Place, *, whole_log: bool, tell: Callable[[str, int, int], None] | None) -> list[Finding]:
    from adapters.database import connected  # noqa: PLC0415 - wrong settings are told without loading all of it
    from adapters.doctor_erasures import examine_erasures  # noqa: PLC0415
    from adapters.doctor_log import examine_log  # noqa: PLC0415
    from adapters.postgres.schema import is_current  # noqa: PLC0415
    from adapters.progress import untold  # noqa: PLC0415

    if place.dsn is None:
        return [Finding("PostgreSQL", Result.WARN, "No DATABASE_URL, and no serve runs here.", _START)]
    try:
        with connected(place.dsn, patience_s=_PATIENCE_S) as connection:
            return [
                *_database_findings(connection),
                *examine_log(connection, whole=whole_log, tell=tell or untold),
                *([examine_erasures(connection, place)] if is_current(connection) else []),
            ]
    except Unable as unable:
        return [Finding("PostgreSQL", Result.FAIL, str(unable), "Start the database, or correct DATABASE_URL.")]
    except psycopg.Error as error:
        return [Finding("PostgreSQL", Result.FAIL, f"It answers with {type(error).__name__}.", "Read its log.")]


def _database_findings(connection: Connection[DictRow]) -> Iterator[Finding]:
    from adapters.doctor_tenants import examine_tenants  # noqa: PLC0415
    from adapters.postgres.schema import is_current  # noqa: PLC0415

    version = connection.info.server_version
    result = Result.OK if version >= _OLDEST_POSTGRES else Result.FAIL
    remedy = "" if result is Result.OK else "Use PostgreSQL 14 or newer."
    yield Finding("PostgreSQL", result, f"version {version // 10000}.{version % 10000}", remedy)
    yield _durability(connection)
    yield _room(connection)
    yield _clock(connection)
    if not is_current(connection):
        yield Finding("schema", Result.FAIL, "not this version's", "Run: convergence migrate.")
        return
    yield Finding("schema", Result.OK, "current")
    yield examine_tenants(connection)
    yield from _projections(connection)
    yield _notifications(connection)


def _notifications(connection: Connection[DictRow]) -> Finding:
    from adapters.notifications.deliveries import counts_on  # noqa: PLC0415
    from adapters.problems import undelivered  # noqa: PLC0415

    counts = counts_on(connection)
    found = next(undelivered(counts.dead), None)
    if found is not None:
        return Finding("notifications", Result.WARN, found.problem, found.remedy)
    return Finding("notifications", Result.OK, f"{counts.pending} wait, none was given up")


def _durability(connection: Connection[DictRow]) -> Finding:
    wrong = [name for name in ("fsync", "synchronous_commit", "full_page_writes") if _shown(connection, name) == "off"]
    if wrong:
        why = f"{', '.join(wrong)} off: a crash loses acknowledged events."
        return Finding("durability", Result.FAIL, why, "Turn it on in PostgreSQL's configuration.")
    return Finding("durability", Result.OK, "commits are on disk before they are acknowledged")


def _room(connection: Connection[DictRow]) -> Finding:
    """Whether a megabyte finds room, which is then given back."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("CREATE TEMPORARY TABLE room AS SELECT repeat('x', 500) FROM generate_series(1, 2000)")
    except psycopg.errors.DiskFull:
        why = "Its disk is full: nothing can be stored."
        return Finding("room", Result.FAIL, why, "Make room on PostgreSQL's disk. All goes on by itself then.")
    return Finding("room", Result.OK, "there is room to store events")


def _shown(connection: Connection[DictRow], name: str) -> str:
    row = connection.execute("SELECT current_setting(%s) AS value", (name,)).fetchone()
    return str(row["value"]) if row else ""


def _clock(connection: Connection[DictRow]) -> Finding:
    before = datetime.now(UTC)
    row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
    after = datetime.now(UTC)
    skew = abs((row["now"] if row else after) - (before + (after - before) / 2))
    detail = f"{skew.total_seconds():.3f} s apart from the database's"
    if skew > _SKEW_WARN:
        result = Result.FAIL if skew > _SKEW_FAIL else Result.WARN
        return Finding("clock", result, detail, "Synchronise both machines' clocks (NTP).")
    return Finding("clock", Result.OK, detail)


def _projections(connection: Connection[DictRow]) -> Iterator[Finding]:
    from adapters.postgres.reads.projections import standings_on  # noqa: PLC0415
    from adapters.projection_views import problems_of, view  # noqa: PLC0415

    for shown in map(view, standings_on(connection)):
        name, detail = f"projection {shown.name}", f"{shown.behind} of {shown.log_end} events behind"
        found = next(problems_of([shown]), None)
        if found is not None:
            result = Result.FAIL if shown.stopped else Result.WARN
            yield Finding(name, result, found.problem, found.remedy)
        else:
            yield Finding(name, Result.OK, detail)


def _bigquery(place: Place) -> Finding:
    from adapters.bigquery.client import METADATA_SECONDS, RETRY, NotThere, connect, plain_errors  # noqa: PLC0415
    from application.ports import Away  # noqa: PLC0415

    settings = place.settings
    if settings.embedded_bigquery and place.serve is None:
        return Finding("BigQuery", Result.WARN, "The local one does not run.", _START)
    central = settings.customers_dataset_id
    where = settings.emulator_url or "Google"
    try:
        client = connect(settings.project, emulator_url=settings.emulator_url, location=settings.gcp_location)
        with plain_errors():
            tables = list(client.list_tables(central, retry=RETRY, timeout=METADATA_SECONDS))
    except NotThere:
        why = f"{where} answers; dataset {central} is not there."
        return Finding("BigQuery", Result.WARN, why, "The projector makes it: convergence serve, or projector.")
    except Away as away:
        return Finding("BigQuery", Result.FAIL, str(away), f"Is {where} reachable from here?")
    except (PermissionError, ValueError) as error:
        remedy = "Give the service roles/bigquery.dataEditor and roles/bigquery.jobUser, and credentials."
        return Finding("BigQuery", Result.FAIL, str(error), remedy)
    return Finding("BigQuery", Result.OK, f"{where}, dataset {central} with {len(tables)} tables")


def _keys(place: Place) -> Finding:
    from adapters.bootstrap import key_wrapper  # noqa: PLC0415
    from adapters.kms.local import KeyFileRefused  # noqa: PLC0415
    from application.ports import Away, Purpose, SealedFor  # noqa: PLC0415

    settings = place.settings
    file = settings.data_dir / "keys" / "wrapping.key"
    if settings.kms_keyring is None and not file.exists():
        return Finding("wrapping keys", Result.WARN, "No key file yet.", "The first start makes it; back it up.")
    where = "Cloud KMS" if settings.kms_keyring else str(file)
    secret = os.urandom(32)
    began = time.monotonic()
    try:
        wrapper = key_wrapper(settings)
        for purpose in (Purpose.API_KEY, Purpose.CREDENTIAL):
            owner = SealedFor("doctor", str(uuid4()), purpose)
            if wrapper.unwrap(wrapper.wrap(secret, owner), owner) != secret:
                return Finding("wrapping keys", Result.FAIL, f"{where} gives back something else.", "Do not use it.")
    except (Away, ValueError, KeyFileRefused) as error:
        return Finding("wrapping keys", Result.FAIL, str(error), "See the KMS_… settings and the service's roles.")
    return Finding("wrapping keys", Result.OK, f"{where} wraps and unwraps ({time.monotonic() - began:.2f} s)")


def _mail(place: Place) -> Finding:
    import smtplib  # noqa: PLC0415

    from adapters.bootstrap import mailer  # noqa: PLC0415
    from adapters.mail.smtp import SmtpServer  # noqa: PLC0415

    settings = place.settings
    try:
        mailer(settings)
        if settings.smtp_url is None:
            return Finding("mail", Result.OK, f"files in {(settings.data_dir / 'outbox').absolute()}")
        server = SmtpServer.at(settings.smtp_url.get_secret_value())
    except ValueError as error:
        return Finding("mail", Result.FAIL, str(error), "Correct SMTP_URL or MAIL_FROM.")
    opened = smtplib.SMTP_SSL if server.tls else smtplib.SMTP
    try:
        with opened(server.host, server.port, timeout=_PATIENCE_S) as connection:
            status, _ = connection.noop()
    except (OSError, smtplib.SMTPException) as error:
        return Finding("mail", Result.FAIL, f"{server} does not answer ({type(error).__name__}).", "Check SMTP_URL.")
    return Finding("mail", Result.OK, f"{server} answers ({status})")


def _api(place: Place) -> Finding:
    try:
        answer = httpx.get(f"{place.url}/readyz", timeout=_PATIENCE_S, trust_env=False)
    except httpx.HTTPError:
        if place.serve is None:
            return Finding(
                "API", Result.WARN, f"Nobody answers at {place.url}.", "Start it: convergence serve, or api."
            )
        return Finding("API", Result.FAIL, f"{place.url} does not answer.", "Read the log of serve, or start it again.")
    problems = " ".join(_problems(answer))
    if answer.is_success and not problems:
        return Finding("API", Result.OK, f"{place.url} is ready")
    if answer.is_success:
        return Finding("API", Result.WARN, f"{place.url} is ready. {problems}", "Read the log of the projector.")
    detail = f"{place.url}/readyz answers {answer.status_code}. {problems}".strip()
    return Finding("API", Result.FAIL, detail, "Is it this service, and its database there?")


def _problems(answer: httpx.Response) -> list[str]:
    try:
        body = answer.json()
    except ValueError:
        return ["It does not answer as this service does."]
    return [str(problem) for problem in body.get("problems", [])] if isinstance(body, dict) else []


def _templates(_: Place) -> Finding:
    from adapters.pipelines.registry import Registry, TemplateError  # noqa: PLC0415

    try:
        templates = Registry.load().all()
    except TemplateError as error:
        return Finding("templates", Result.FAIL, str(error), "Correct the template.")
    if not templates:
        return Finding("templates", Result.FAIL, "There are none.", "Install again: make install.")
    return Finding("templates", Result.OK, ", ".join(template.pipeline_id for template in templates))
