"""Rows of customers: profiles, keys, credentials, configurations, team."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import singledispatch
from typing import Any, Final

from domain.customer_events import (
    AdminEmailChanged,
    ApiKeyIssued,
    ApiKeyResealed,
    ApiKeyRetired,
    ApiKeyRevoked,
    BigQueryReaderGranted,
    BigQueryReaderRevoked,
    CompanyRenamed,
    CredentialAdded,
    CredentialResealed,
    CredentialRevoked,
    CustomerEvent,
    DatasetProvisioned,
    Erased,
    Onboarded,
    PipelineChanged,
    PipelineConfigured,
    PipelineRemoved,
    ProviderConfigRemoved,
    ProviderConfigured,
    Reactivated,
    SchedulesPaused,
    SchedulesResumed,
    StripeLinked,
    Suspended,
    TeamMemberAdded,
    TeamMemberRemoved,
    WebhookEndpointAdded,
    WebhookEndpointRemoved,
    WebhookSecretResealed,
)
from domain.envelope import Envelope
from projections.rows import Forget, Put, RowChange, Set, Table
from projections.tables import (
    CUSTOMER,
    CUSTOMER_API_KEYS,
    CUSTOMER_BIGQUERY_READERS,
    CUSTOMER_CLOUD_CREDENTIALS,
    CUSTOMER_PIPELINE_CONFIGS,
    CUSTOMER_PROFILES,
    CUSTOMER_PROVIDER_CONFIGS,
    CUSTOMER_SUBSCRIPTIONS,
    CUSTOMER_TEAM_MEMBERS,
    CUSTOMER_WEBHOOK_ENDPOINTS,
    OWN,
    PIPELINE_EXECUTION_QUEUE,
)

# In the order in which commands take their rows: whoever deletes them in another one meets them head-on.
_FIRST: Final = (PIPELINE_EXECUTION_QUEUE, CUSTOMER_SUBSCRIPTIONS, CUSTOMER_PIPELINE_CONFIGS)
FORGOTTEN: Final = (
    *_FIRST,
    *(table for table in OWN if table not in (CUSTOMER_PROFILES, *_FIRST)),
)
"""The central tables that keep no row of a customer who was erased: all of its own but the profile."""


@singledispatch
def rows(event: CustomerEvent, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - what every case takes
    """The rows of one customer event."""
    raise TypeError(f"No rows are defined for {type(event).__name__}.")


def _profile(at: Envelope, **values: Any) -> Set:  # noqa: ANN401 - a column's value
    return Set(CUSTOMER_PROFILES, {"customer_id": at.customer_id, **values, "updated_at": at.at})


def _gone(table: Table, key: str, value: str, at: Envelope) -> Set:
    return Set(table, {key: value, "is_active": False, "updated_at": at.at, "deleted_at": at.at})


@rows.register
def _(event: Onboarded, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_PROFILES,
        {
            "customer_id": event.customer_id,
            "tenant_id": event.customer_id,
            "tenant_dataset_id": event.customer_id,
            "company_name": event.company_name,
            "admin_email": event.admin_email,
            "status": "ACTIVE",
            "subscription_plan": event.plan,
            "stripe_customer_id": event.stripe_customer_id,
            "dataset_created": False,
            "schedules_paused": False,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: StripeLinked, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, stripe_customer_id=event.stripe_customer_id)
    paid_by = {"stripe_subscription_id": event.stripe_subscription_id, "updated_at": at.at}
    yield Set(CUSTOMER_SUBSCRIPTIONS, {"customer_id": at.customer_id, **paid_by})


@rows.register
def _(event: DatasetProvisioned, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the tables are not in the row
    yield _profile(at, dataset_created=True)


@rows.register
def _(event: CompanyRenamed, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, company_name=event.company_name)


@rows.register
def _(event: AdminEmailChanged, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, admin_email=event.admin_email)


@rows.register
def _(event: Suspended, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, status="SUSPENDED")
    yield from _slots(dict.fromkeys(event.resting))


@rows.register
def _(event: Reactivated, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, status="ACTIVE")
    yield from _slots(event.next_run_times)


def _slots(next_run_times: Mapping[str, datetime | None]) -> Iterator[RowChange]:
    for config_id, slot in next_run_times.items():
        yield Set(CUSTOMER_PIPELINE_CONFIGS, {"config_id": config_id, "next_run_time": slot})


@rows.register
def _(event: SchedulesPaused, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, schedules_paused=True)
    yield from _slots(dict.fromkeys(event.resting))


@rows.register
def _(event: SchedulesResumed, at: Envelope) -> Iterator[RowChange]:
    yield _profile(at, schedules_paused=False)
    yield from _slots(event.next_run_times)


@rows.register
def _(event: ApiKeyIssued, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_API_KEYS,
        {
            "api_key_id": event.api_key_id,
            "customer_id": at.customer_id,
            "api_key_hash": event.key_hash,
            "encrypted_api_key": event.sealed_key,
            "last4": event.last4,
            "name": event.name or None,
            "scopes": None if event.scopes is None else list(event.scopes),
            "is_active": True,
            "created_at": at.at,
            "expires_at": event.expires_at,
            "revoked_at": None,
            "revoked_reason": None,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: ApiKeyRetired, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the key keeps its other columns
    yield Set(CUSTOMER_API_KEYS, {"api_key_id": event.api_key_id, "expires_at": event.expires_at})


@rows.register
def _(event: ApiKeyRevoked, at: Envelope) -> Iterator[RowChange]:
    revoked = {"is_active": False, "revoked_at": at.at, "revoked_reason": event.reason}
    yield Set(CUSTOMER_API_KEYS, {"api_key_id": event.api_key_id, **revoked})


@rows.register
def _(event: ApiKeyResealed, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - the key keeps its other columns
    yield Set(CUSTOMER_API_KEYS, {"api_key_id": event.api_key_id, "encrypted_api_key": event.sealed_key})


@rows.register
def _(event: CredentialAdded, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_CLOUD_CREDENTIALS,
        {
            "credential_id": event.credential_id,
            "customer_id": at.customer_id,
            "provider": event.provider,
            "credential_type": event.credential_type,
            "credential_name": event.credential_name,
            "encrypted_credentials": event.sealed,
            "project_id": event.project_id,
            "is_active": True,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: CredentialRevoked, at: Envelope) -> Iterator[RowChange]:
    yield _gone(CUSTOMER_CLOUD_CREDENTIALS, "credential_id", event.credential_id, at)


@rows.register
def _(event: CredentialResealed, at: Envelope) -> Iterator[RowChange]:
    resealed = {"encrypted_credentials": event.sealed, "updated_at": at.at}
    yield Set(CUSTOMER_CLOUD_CREDENTIALS, {"credential_id": event.credential_id, **resealed})


@rows.register
def _(event: ProviderConfigured, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_PROVIDER_CONFIGS,
        {
            "config_id": event.config_id,
            "customer_id": at.customer_id,
            "provider": event.provider,
            "domain": event.domain,
            "source_project_id": event.source_project_id,
            "source_dataset": event.source_dataset,
            "notification_emails": list(event.notification_emails),
            "is_active": True,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: ProviderConfigRemoved, at: Envelope) -> Iterator[RowChange]:
    yield _gone(CUSTOMER_PROVIDER_CONFIGS, "config_id", event.config_id, at)


def _pipeline(event: PipelineConfigured | PipelineChanged) -> dict[str, Any]:
    pipeline = event.pipeline
    return {
        "config_id": event.config_id,
        "provider": pipeline.provider,
        "domain": pipeline.domain,
        "pipeline_template": pipeline.template,
        "schedule_cron": pipeline.cron,
        "timezone": pipeline.timezone,
        "is_active": pipeline.is_active,
        "parameters": dict(pipeline.parameters),
        "date_offset_days": pipeline.date_offset_days,
        "catch_up": pipeline.catch_up,
        "overlap": pipeline.overlap,
        "jitter_seconds": pipeline.jitter_seconds,
        "next_run_time": event.next_run_time,
    }


@rows.register
def _(event: PipelineConfigured, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_PIPELINE_CONFIGS,
        {
            **_pipeline(event),
            "customer_id": at.customer_id,
            "last_run_time": None,
            "last_run_state": None,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: PipelineChanged, at: Envelope) -> Iterator[RowChange]:
    yield Set(CUSTOMER_PIPELINE_CONFIGS, {**_pipeline(event), "updated_at": at.at})


@rows.register
def _(event: PipelineRemoved, at: Envelope) -> Iterator[RowChange]:
    yield _gone(CUSTOMER_PIPELINE_CONFIGS, "config_id", event.config_id, at)


@rows.register
def _(event: TeamMemberAdded, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_TEAM_MEMBERS,
        {
            "member_id": event.member_id,
            "customer_id": at.customer_id,
            "email": event.email,
            "name": event.name,
            "role": event.role,
            "is_active": True,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: TeamMemberRemoved, at: Envelope) -> Iterator[RowChange]:
    yield _gone(CUSTOMER_TEAM_MEMBERS, "member_id", event.member_id, at)


@rows.register
def _(event: WebhookEndpointAdded, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_WEBHOOK_ENDPOINTS,
        {
            "endpoint_id": event.endpoint_id,
            "customer_id": at.customer_id,
            "url": event.url,
            "encrypted_secret": event.sealed_secret,
            "kinds": list(event.kinds),
            "is_active": True,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: WebhookEndpointRemoved, at: Envelope) -> Iterator[RowChange]:
    yield _gone(CUSTOMER_WEBHOOK_ENDPOINTS, "endpoint_id", event.endpoint_id, at)


@rows.register
def _(event: WebhookSecretResealed, at: Envelope) -> Iterator[RowChange]:
    resealed = {"encrypted_secret": event.sealed_secret, "updated_at": at.at}
    yield Set(CUSTOMER_WEBHOOK_ENDPOINTS, {"endpoint_id": event.endpoint_id, **resealed})


@rows.register
def _(event: BigQueryReaderGranted, at: Envelope) -> Iterator[RowChange]:
    yield Put(
        CUSTOMER_BIGQUERY_READERS,
        {
            "grant_id": event.grant_id,
            "customer_id": at.customer_id,
            "principal": event.principal,
            "is_active": True,
            "created_at": at.at,
            "updated_at": at.at,
            "deleted_at": None,
        },
    )


@rows.register
def _(event: BigQueryReaderRevoked, at: Envelope) -> Iterator[RowChange]:
    yield _gone(CUSTOMER_BIGQUERY_READERS, "grant_id", event.grant_id, at)


@rows.register
def _(event: Erased, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - its reason is not in the row
    gone = {"company_name": None, "admin_email": None, "stripe_customer_id": None, "dataset_created": False}
    yield _profile(at, **gone, status="ERASED", deleted_at=at.at)
    yield from (Forget(table, at.customer_id) for table in FORGOTTEN)


def own_rows(event: Erased, at: Envelope) -> Iterator[RowChange]:  # noqa: ARG001 - whatever its reason
    """What becomes of the customer's own tables: their rows go with the dataset."""
    yield from (Forget(table, at.customer_id) for table in CUSTOMER)
