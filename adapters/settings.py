"""Every setting, read once from the environment. A wrong value stops the start with a sentence that names it."""

import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LOCAL_ADMIN_KEY: Final = "admin_key_12345"
LOCAL_PROJECT: Final = "gac-prod-471220"
"""The project name that the emulator answers to when none is set."""


class Environment(StrEnum):
    LOCAL = "local"
    PRODUCTION = "production"


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=100)]
Port = Annotated[int, Field(ge=1, le=65535)]


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

    gcp_project_id: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9:.-]{2,61}[a-z0-9]$")] | None = None
    gcp_location: Name = "US"
    customers_dataset_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,300}$")] = "customers_metadata"
    bigquery_emulator_host: str | None = None
    bigquery_emulator_port: Port = 9050

    kms_project_id: str | None = None
    kms_location: Name = "us-central1"
    kms_keyring: Name | None = None
    kms_api_key_name: Name = "api-keys-key"
    kms_credentials_key_name: Name = "credentials-key"

    log_heads_file: Path | None = None
    log_heads_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0

    smtp_url: SecretStr | None = None
    mail_from: str = "Convergence <no-reply@convergence.invalid>"

    worker_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,80}$")] = (
        f"{socket.gethostname()}-{os.getpid()}"
    )
    worker_concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    poll_interval_seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0

    @property
    def production(self) -> bool:
        return self.environment is Environment.PRODUCTION

    @property
    def onboarding_is_open(self) -> bool:
        return not self.production if self.open_onboarding is None else self.open_onboarding

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
        problems = []
        for name, key in (("ADMIN_API_KEY", self.admin_api_key), ("ADMIN_API_KEY_NEXT", self.admin_api_key_next)):
            if key is not None and (len(key.get_secret_value()) < 32 or key.get_secret_value() == LOCAL_ADMIN_KEY):
                problems.append(f"{name} must be a secret of at least 32 characters")
        if self.database_url is None:
            problems.append("DATABASE_URL must name a PostgreSQL database")
        if self.gcp_project_id is None or self.bigquery_emulator_host is not None:
            problems.append("GCP_PROJECT_ID must be set, and BIGQUERY_EMULATOR_HOST must not")
        if self.kms_keyring is None:
            problems.append("KMS_KEYRING must name a Cloud KMS key ring")
        if self.public_url is None:
            problems.append("PUBLIC_URL must say where customers reach the service")
        if problems:
            raise ValueError("ENVIRONMENT=production: " + "; ".join(problems))
        return self


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
