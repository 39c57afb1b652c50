"""What happens to a customer. These shapes are the storage format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from domain.personal import PersonalText, PersonalTexts


@dataclass(frozen=True, slots=True, kw_only=True)
class Onboarded:
    customer_id: str
    company_name: PersonalText
    admin_email: PersonalText
    plan: str
    stripe_customer_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeLinked:
    """Stripe's customer of that id pays for this one, by that subscription as far as one is known."""

    stripe_customer_id: str
    stripe_subscription_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetProvisioned:
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyIssued:
    """A key exists: its SHA-256, its ciphertext, its last four characters. Never the key.

    `scopes` are what it may be used for, None for everything that there is.
    """

    api_key_id: str
    key_hash: str
    sealed_key: bytes
    last4: str
    expires_at: datetime
    name: str = ""
    scopes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRetired:
    """Another key took over; this one works until `expires_at`."""

    api_key_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRevoked:
    """The key does not work any more; `reason` is given where nobody asked for it by its id."""

    api_key_id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyResealed:
    """The same key under another data key."""

    api_key_id: str
    sealed_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialAdded:
    credential_id: str
    provider: str
    credential_type: str
    credential_name: str
    sealed: bytes
    project_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRevoked:
    credential_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialResealed:
    """The same credential under another data key."""

    credential_id: str
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfigured:
    config_id: str
    provider: str
    domain: str
    source_project_id: str
    source_dataset: str
    notification_emails: PersonalTexts = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfigRemoved:
    config_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a scheduled pipeline runs, and when."""

    provider: str
    domain: str
    template: str
    cron: str
    timezone: str
    is_active: bool = True
    date_offset_days: int = 1
    catch_up: str = "latest"
    overlap: str = "queue"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    jitter_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfigured:
    """`next_run_time` is the first slot after the command, None while the pipeline rests."""

    config_id: str
    pipeline: Pipeline
    next_run_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineChanged:
    config_id: str
    pipeline: Pipeline
    next_run_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRemoved:
    config_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamMemberAdded:
    member_id: str
    email: PersonalText
    name: PersonalText
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamMemberRemoved:
    member_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """The customer may do nothing until reactivated; `resting` are the pipelines that had a next slot."""

    reason: str
    resting: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactivated:
    """`next_run_times` are the first slots after the command: what was missed stays missed."""

    reason: str
    next_run_times: Mapping[str, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulesPaused:
    """No pipeline has a next slot until the schedules are resumed; `resting` are those that had one."""

    reason: str
    resting: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulesResumed:
    """`next_run_times` are the first slots after the command: what was missed stays missed."""

    reason: str
    next_run_times: Mapping[str, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanyRenamed:
    company_name: PersonalText


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminEmailChanged:
    admin_email: PersonalText


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpointAdded:
    """`kinds` of notifications are posted to `url`, signed with the secret that is sealed here.

    The address is personal: such addresses are keys themselves more often than not.
    """

    endpoint_id: str
    url: PersonalText
    sealed_secret: bytes
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpointRemoved:
    endpoint_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecretResealed:
    """The same secret under another data key."""

    endpoint_id: str
    sealed_secret: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQueryReaderGranted:
    """`principal` (`user:`, `group:` or `serviceAccount:` and an e-mail) may read the customer's dataset and rows."""

    grant_id: str
    principal: PersonalText


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQueryReaderRevoked:
    grant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """The customer is gone for ever: its data keys are destroyed, and with them every name and secret in the log."""

    reason: str


CustomerEvent = (
    Onboarded
    | StripeLinked
    | DatasetProvisioned
    | ApiKeyIssued
    | ApiKeyRetired
    | ApiKeyRevoked
    | ApiKeyResealed
    | CredentialAdded
    | CredentialRevoked
    | CredentialResealed
    | ProviderConfigured
    | ProviderConfigRemoved
    | PipelineConfigured
    | PipelineChanged
    | PipelineRemoved
    | TeamMemberAdded
    | TeamMemberRemoved
    | Suspended
    | Reactivated
    | SchedulesPaused
    | SchedulesResumed
    | CompanyRenamed
    | AdminEmailChanged
    | WebhookEndpointAdded
    | WebhookEndpointRemoved
    | WebhookSecretResealed
    | BigQueryReaderGranted
    | BigQueryReaderRevoked
    | Erased
)
