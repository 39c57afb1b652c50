"""The one place that knows everything: from settings to a service whose parts fit together."""

import os
import pwd
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from google.cloud import bigquery

from adapters.bigquery.client import connect
from adapters.bigquery.warehouse import EMULATED_CUSTOMERS_WRITERS, EMULATED_WRITERS, WRITERS, BigQueryWarehouse
from adapters.kms.cloud import CloudKms
from adapters.kms.guarded import GuardedVault
from adapters.kms.local import LocalKeyFile
from adapters.kms.vault import EnvelopeVault
from adapters.mail.outbox import OutboxMailer
from adapters.mail.smtp import SmtpMailer
from adapters.pipelines.engine import Engine
from adapters.pipelines.registry import Registry
from adapters.postgres import decryptions
from adapters.postgres.checkpoints import PostgresCheckpoints, PostgresLog
from adapters.postgres.credentials import SealedCredentials
from adapters.postgres.data_keys import PostgresDataKeys
from adapters.postgres.erasures import ErasedCustomers
from adapters.postgres.event_log import Datastore
from adapters.postgres.store import PostgresStore
from adapters.settings import Settings
from application.mapper import EventMapper
from application.platform import Platform
from application.ports import KeyWrapper, Mailer, PipelineRunner, Purpose
from domain.envelope import Origin

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.@-]")


def utc_now() -> datetime:
    return datetime.now(UTC)


def origin(actor: str, *, request_id: str | None = None, command_id: str | None = None) -> Origin:
    """Who starts something, stamped at the edge."""
    command = command_id or str(uuid4())
    return Origin(actor=actor, command_id=command, correlation_id=request_id or command, request_id=request_id)


def operator() -> str:
    """The actor of what is done at a command line: an operator, by the name that the machine has for the user."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"admin/cli:{_NO_NAME.sub('_', name)}"


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of one process."""

    settings: Settings
    dsn: str
    datastore: Datastore
    keys: KeyWrapper
    data_keys: PostgresDataKeys
    store: PostgresStore
    mapper: EventMapper
    platform: Platform
    log: PostgresLog
    checkpoints: PostgresCheckpoints
    vault: GuardedVault
    """Opens what this process is to open, but no credentials: those are opened by the engine alone."""
    bigquery: bigquery.Client
    warehouse: BigQueryWarehouse
    registry: Registry
    engine: PipelineRunner
    mailer: Mailer
    now: Callable[[], datetime]
    """This machine's clock. Nothing is decided by it alone: it may be wrong."""
    triggering: threading.Lock = field(default_factory=threading.Lock)
    """Held while this process triggers schedules: a second pass at the same time would only take its connections."""

    def forget(self, customer_id: str) -> None:
        """Drop what this process remembers under the customer's data keys; "" is everybody's."""
        self.vault.forget(customer_id)
        self.platform.forget(customer_id)

    def close(self) -> None:
        self.datastore.close()
        self.data_keys.close()
        self.warehouse.close()


def key_file(settings: Settings) -> Path:
    """Where the wrapping keys lie when there is no Cloud KMS."""
    return settings.data_dir / "keys" / "wrapping.key"


def key_wrapper(settings: Settings) -> KeyWrapper:
    """Cloud KMS where a key ring is configured, a key file under the data directory elsewhere."""
    if settings.kms_keyring is None:
        return LocalKeyFile(key_file(settings))
    return CloudKms(
        project=settings.kms_project_id or settings.project,
        location=settings.kms_location,
        keyring=settings.kms_keyring,
        api_key_name=settings.kms_api_key_name,
        credentials_key_name=settings.kms_credentials_key_name,
    )


def mailer(settings: Settings) -> Mailer:
    """SMTP where SMTP_URL is set, files in an outbox under the data directory elsewhere."""
    if settings.smtp_url is None:
        return OutboxMailer(settings.data_dir / "outbox", sender=settings.mail_from)
    return SmtpMailer(settings.smtp_url.get_secret_value(), sender=settings.mail_from)


def build(settings: Settings, dsn: str, **parts: Any) -> Service:  # noqa: ANN401 - any part may be given
    """A service on the database at `dsn`. Connects to nothing yet.

    `parts` replaces parts by name: `keys`, `mailer`, `engine`, `now`, and `opens`: what this process may open of
    customers' secrets, which is everything otherwise. Credentials are opened for a run that it holds, or not at all.
    """
    datastore = Datastore(dsn, size=settings.database_pool_size)
    store = PostgresStore(datastore)
    data_keys = PostgresDataKeys(dsn)
    keys = parts.get("keys") or key_wrapper(settings)
    opens = frozenset(parts.get("opens", Purpose))
    envelope, record = EnvelopeVault(keys, data_keys), partial(decryptions.record, data_keys.datastore)
    actor = f"service:{settings.worker_id}"
    vault = GuardedVault(envelope, opens - {Purpose.CREDENTIAL}, record, actor=actor)
    runs_vault = GuardedVault(envelope, opens & {Purpose.CREDENTIAL}, record, actor=actor)
    mapper = EventMapper(vault, ErasedCustomers(data_keys.datastore).__contains__)
    client = connect(settings.project, emulator_url=settings.emulator_url, location=settings.gcp_location)
    registry = Registry.load()
    post = parts.get("mailer") or mailer(settings)
    now = parts.get("now") or utc_now
    return Service(
        settings=settings,
        dsn=dsn,
        datastore=datastore,
        keys=keys,
        data_keys=data_keys,
        store=store,
        mapper=mapper,
        platform=Platform(store, mapper),
        log=PostgresLog(store.recorder, mapper),
        checkpoints=PostgresCheckpoints(datastore),
        vault=vault,
        bigquery=client,
        warehouse=BigQueryWarehouse(
            client,
            settings.project,
            settings.customers_dataset_id,
            settings.gcp_location,
            writers=WRITERS if settings.emulator_url is None else EMULATED_WRITERS,
            customers_writers=WRITERS if settings.emulator_url is None else EMULATED_CUSTOMERS_WRITERS,
            erased=ErasedCustomers(datastore).__contains__,
        ),
        registry=registry,
        engine=parts.get("engine")
        or Engine(
            registry=registry,
            client=client,
            central=settings.customers_dataset_id,
            credentials=SealedCredentials(datastore, runs_vault),
            mailer=post,
            now=now,
            endpoint=settings.emulator_url,
        ),
        mailer=post,
        now=now,
    )
