"""Every setting, read once from the environment. A wrong value stops the start with a sentence that names it."""

import json
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from application.readers import as_principal
from domain.billing import Terms
from domain.plans import Plan

LOCAL_ADMIN_KEY: Final = "admin_key_12345"
_STRONG_LENGTH: Final = 32
_STRONG_LETTERS: Final = 10
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
LOCAL_PROJECT: Final = "gac-prod-471220"
"""The project name that the emulator answers to when none is set."""


class Environment(StrEnum):
    LOCAL = "local"
    PRODUCTION = "production"


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=100)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _prices(given: Any) -> Any:  # noqa: ANN401 - a text or a mapping
    """A map in JSON; the sentence says what it should have been, and repeats nothing."""
    try:
        prices = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        prices = None
    if not isinstance(prices, Mapping) or not all(plan in tuple(Plan) for plan in prices.values()):
        raise ValueError(f"must be a JSON object from Stripe's price ids to {', '.join(Plan)}")
    return prices


def _networks(given: Any) -> Any:  # noqa: ANN401 - a text or networks
    """Addresses and networks separated by commas; not everybody: then the caller itself would be believed."""
    try:
        parts = (part.strip() for part in given.split(",")) if isinstance(given, str) else given
        networks = [ip_network(part) for part in parts if part]
    except (TypeError, ValueError):
        networks = None
    if networks is None or any(network.prefixlen == 0 for network in networks):
        raise ValueError("must be addresses or networks separated by commas, such as 10.0.0.0/8, and not all addresses")
    return networks


def _principals(given: Any) -> Any:  # noqa: ANN401 - a text or a sequence
    """Principals, parted by commas."""
    return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given


class WrongSettings(Exception):  # noqa: N818 - it is a sentence for the operator
    """The settings cannot work; the text names each wrong one and never its value."""


class Settings(BaseSettings):
    """How this process is to work. Names are the environment variables', in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True)

    environment: Environment = Environment.LOCAL
    data_dir: Path = Path("var")
    host: str = "127.0.0.1"
    port: Port = 8080
    public_url: str | None = None
    database_url: SecretStr | None = None
    database_pool_size: Annotated[int, Field(ge=2, le=200)] = 10
    admin_api_key: SecretStr = SecretStr(LOCAL_ADMIN_KEY)
    admin_api_key_next: SecretStr | None = None
    open_onboarding: bool | None = None
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)] = ()
    rate_limit_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 600
    source_rate_limit_per_minute: Annotated[int, Field(ge=0, le=100_000)] = 60
    failed_keys_per_minute: Annotated[int, Field(ge=0, le=100_000)] = 20

    gcp_project_id: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9:.-]{2,61}[a-z0-9]$")] | None = None
    gcp_location: Name = "US"
    customers_dataset_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,300}$")] = "customers_metadata"
    bigquery_emulator_host: str | None = None
    bigquery_emulator_port: Port = 9050
    bigquery_whole_readers: Annotated[
        tuple[Annotated[str, AfterValidator(as_principal)], ...], NoDecode, BeforeValidator(_principals)
    ] = ()

    kms_project_id: str | None = None
    kms_location: Name = "us-central1"
    kms_keyring: Name | None = None
    kms_api_key_name: Name = "api-keys-key"
    kms_credentials_key_name: Name = "credentials-key"

    log_heads_file: Path | None = None
    erasures_file: Path | None = None
    log_heads_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0

    smtp_url: SecretStr | None = None
    mail_from: str = "Convergence <no-reply@convergence.invalid>"
    webhook_private_addresses: bool = False

    stripe_webhook_secret: SecretStr | None = None
    stripe_live: bool | None = None
    stripe_prices: Annotated[dict[str, Plan], NoDecode, BeforeValidator(_prices)] = Field(default_factory=dict)
    billing_grace_days: Annotated[int, Field(ge=0, le=90)] = 7

    worker_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,80}$")] = (
        f"{socket.gethostname()}-{os.getpid()}"
    )
    worker_concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    poll_interval_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0

    @property
    def production(self) -> bool:
        return self.environment is Environment.PRODUCTION

    @property
    def admin_keys_are_random(self) -> bool:
        """Whether nobody can guess them: long enough, and of many letters."""
        following = self.admin_api_key_next
        return _is_strong(self.admin_api_key) and (following is None or _is_strong(following))

    @property
    def onboarding_is_open(self) -> bool:
        return not self.production if self.open_onboarding is None else self.open_onboarding

    @property
    def stripe_secrets(self) -> tuple[str, ...]:
        """What Stripe may sign with: two secrets while one follows upon the other."""
        given = self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else ""
        return tuple(secret for part in given.split(",") if (secret := part.strip()))

    @property
    def takes_live(self) -> bool:
        """Whether real money counts here, or that of Stripe's test mode."""
        return self.production if self.stripe_live is None else self.stripe_live

    @property
    def terms(self) -> Terms:
        return Terms(prices=self.stripe_prices, grace=timedelta(days=self.billing_grace_days))

    @property
    def project(self) -> str:
        """The Google Cloud project, or the name that stands for it on the emulator."""
        return self.gcp_project_id or LOCAL_PROJECT

    @property
    def embedded_bigquery(self) -> bool:
        """Whether `serve` runs its own BigQuery: nothing else is configured."""
        return self.bigquery_emulator_host is None and self.gcp_project_id is None

    @property
    def heads_file(self) -> Path:
        """Where the signed heads of the log are kept, outside the database."""
        return self.log_heads_file or self.data_dir / "log-heads.jsonl"

    @property
    def ledger_file(self) -> Path:
        """Where it is kept, outside the database, who was erased."""
        return self.erasures_file or self.data_dir / "erasures.jsonl"

    @property
    def emulator_url(self) -> str | None:
        """Where the emulator answers, None for Google."""
        if self.bigquery_emulator_host is not None:
            host = self.bigquery_emulator_host
            return host if "://" in host else f"http://{host}"
        return f"http://127.0.0.1:{self.bigquery_emulator_port}" if self.embedded_bigquery else None

    @property
    def base_url(self) -> str:
        """Where people reach the service, for links in mails."""
        return (self.public_url or f"http://localhost:{self.port}").rstrip("/")

    @model_validator(mode="after")
    def _production(self) -> "Settings":
        if not self.production:
            return self
        strong = "must be a random secret of at least 32 characters"
        following, database = self.admin_api_key_next, self.database_url
        rules = (
            (_is_strong(self.admin_api_key), f"ADMIN_API_KEY {strong}"),
            (following is None or _is_strong(following), f"ADMIN_API_KEY_NEXT {strong}"),
            (database is not None, "DATABASE_URL must name a PostgreSQL database"),
            (
                database is None or _is_private_way(database),
                "DATABASE_URL must say sslmode=require or more, or lead to this machine",
            ),
            (
                self.gcp_project_id is not None and self.bigquery_emulator_host is None,
                "GCP_PROJECT_ID must be set, and BIGQUERY_EMULATOR_HOST must not",
            ),
            (self.kms_keyring is not None, "KMS_KEYRING must name a Cloud KMS key ring"),
            (
                (self.public_url or "").startswith("https://"),
                "PUBLIC_URL must say where customers reach the service, by https://: their keys travel there",
            ),
            (
                not self.webhook_private_addresses,
                "WEBHOOK_PRIVATE_ADDRESSES must be off: customers' endpoints would reach the inside",
            ),
            (
                all(len(secret) >= _STRONG_LENGTH for secret in self.stripe_secrets),
                "STRIPE_WEBHOOK_SECRET must hold secrets as Stripe makes them (whsec_…)",
            ),
            (
                bool(self.stripe_prices) or not self.stripe_secrets,
                "STRIPE_PRICES must say which plan each of Stripe's prices is",
            ),
        )
        if problems := [sentence for is_kept, sentence in rules if not is_kept]:
            raise ValueError("ENVIRONMENT=production: " + "; ".join(problems))
        return self


def _is_strong(key: SecretStr) -> bool:
    text = key.get_secret_value()
    return len(text) >= _STRONG_LENGTH and len(set(text)) >= _STRONG_LETTERS and text != LOCAL_ADMIN_KEY


def _is_private_way(database_url: SecretStr) -> bool:
    """Whether nobody in between can read along: TLS, or no way at all."""
    try:
        place = conninfo_to_dict(database_url.get_secret_value())
    except ProgrammingError:
        return False
    hosts = str(place.get("hostaddr") or place.get("host") or "/").split(",")
    near = all(host.startswith(("/", "@")) or host in _THIS_MACHINE for host in hosts)
    return near or place.get("sslmode") in {"require", "verify-ca", "verify-full"}


def read(**overrides: Any) -> Settings:  # noqa: ANN401 - any setting
    """The settings of this process; raises `WrongSettings` with a sentence."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        sentences = []
        for problem in error.errors(include_input=False, include_url=False, include_context=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            sentences.append(f"{name}: {message}" if name else message)
        raise WrongSettings("Wrong setting: " + "; ".join(sentences) + ".") from None
