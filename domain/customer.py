"""A customer of the platform: identity, keys, credentials, configurations, team."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

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
    Pipeline,
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
from domain.refusals import Conflict, Forbidden, NotFound

Value = TypeVar("Value")

KEY_LIFE: Final = timedelta(days=90)
KEY_WARNING: Final = timedelta(days=14)
"""How long before its end a key is warned about: from its 76th day on."""
KEY_OVERLAP: Final = timedelta(hours=24)
MAX_ACTIVE_KEYS: Final = 2
"""Of one name."""
MAX_KEYS: Final = 50
"""Of all names."""
MAX_PIPELINES: Final = 200
MAX_PROVIDER_CONFIGS: Final = 100
MAX_CREDENTIALS: Final = 100
MAX_WEBHOOKS: Final = 10
MAX_READERS: Final = 20


Resealed = ApiKeyResealed | CredentialResealed | WebhookSecretResealed


class Status(StrEnum):
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    ERASED = "ERASED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    expires_at: datetime
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """One customer, with everything that decides what it may add or change."""

    customer_id: str
    company_name: str
    admin_email: str
    status: Status = Status.ACTIVE
    provisioned: bool = False
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)
    provider_configs: Mapping[str, ProviderConfigured] = field(default_factory=dict)
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    team: Mapping[str, str] = field(default_factory=dict)
    schedules_paused: bool = False
    webhooks: frozenset[str] = frozenset()
    readers: Mapping[str, str] = field(default_factory=dict)
    """Who else may read the customer's data in BigQuery: the principal of each grant."""
    stripe_customer_id: str | None = None
    stripe_subscription_id: str | None = None
    suspensions: int = 0
    """How often it was suspended: by this one tells its own suspension from another's."""
    suspended_for: str | None = None

    def _there(self) -> None:
        if self.status is Status.ERASED:
            raise NotFound("No such customer.")

    def _active(self) -> None:
        self._there()
        if self.status is Status.SUSPENDED:
            raise Forbidden("Account suspended")

    def active_keys(self, now: datetime) -> list[str]:
        """Keys that work at `now`, the oldest first."""
        return [key_id for key_id, key in self.api_keys.items() if key.expires_at > now]

    def provisioned_with(self, tables: tuple[str, ...]) -> tuple[CustomerEvent, ...]:
        self._there()
        return () if self.provisioned else (DatasetProvisioned(tables=tables),)

    def keys_named(self, name: str, now: datetime) -> list[str]:
        """Those that work at `now` and replace each other, the oldest first."""
        return [key_id for key_id in self.active_keys(now) if self.api_keys[key_id].name == name]

    def issue_key(self, issued: ApiKeyIssued, now: datetime, *, replace_oldest: bool) -> tuple[CustomerEvent, ...]:
        """A new key. The one before of its name works for another day; of two, the oldest is revoked if so asked."""
        self._active()
        active = self.keys_named(issued.name, now)
        events: list[CustomerEvent] = []
        if not replace_oldest and len(self.active_keys(now)) >= MAX_KEYS:
            raise Conflict(f"{MAX_KEYS} API keys are active already. Revoke one first.")
        if len(active) >= MAX_ACTIVE_KEYS:
            if not replace_oldest:
                of_that_name = " of that name" if issued.name else ""
                raise Conflict(f"{MAX_ACTIVE_KEYS} API keys{of_that_name} are active already. Revoke one first.")
            events += [ApiKeyRevoked(api_key_id=k) for k in active[: 1 - MAX_ACTIVE_KEYS]]
            active = active[1 - MAX_ACTIVE_KEYS :]
        until = now + KEY_OVERLAP
        events += [ApiKeyRetired(api_key_id=k, expires_at=until) for k in active if self.api_keys[k].expires_at > until]
        return (*events, issued)

    def revoke_key(self, api_key_id: str, now: datetime, reason: str | None = None) -> tuple[CustomerEvent, ...]:
        self._there()
        if api_key_id not in self.active_keys(now):
            raise NotFound("No such active API key.")
        return (ApiKeyRevoked(api_key_id=api_key_id, reason=reason),)

    def revoke_leaked_key(self, api_key_id: str, now: datetime, reason: str) -> tuple[CustomerEvent, ...]:
        """The key stops working. One that does so already is nothing to tell anybody about."""
        return self.revoke_key(api_key_id, now, reason) if api_key_id in self.active_keys(now) else ()

    def add_credential(self, added: CredentialAdded, max_providers: int) -> tuple[CustomerEvent, ...]:
        """Distinct providers stay within the plan's limit; several credentials of one provider count once."""
        self._active()
        self._provider_fits(added.provider, max_providers)
        if len(self.credentials) >= MAX_CREDENTIALS:
            raise Forbidden(f"A customer can hold {MAX_CREDENTIALS} credentials. Revoke one first.")
        return (added,)

    def _provider_fits(self, provider: str, max_providers: int) -> None:
        known = set(self.credentials.values())
        if provider not in known and len(known) >= max_providers:
            raise Forbidden(f"The plan allows {max_providers} providers, and {len(known)} have credentials already.")

    def revoke_credential(self, credential_id: str) -> tuple[CustomerEvent, ...]:
        self._there()
        if credential_id not in self.credentials:
            raise NotFound("No such credential.")
        return (CredentialRevoked(credential_id=credential_id),)

    def reseal(self, resealed: Iterable[Resealed]) -> tuple[CustomerEvent, ...]:
        """The same secrets under another data key, but for those that were given up meanwhile."""
        held = {*self.api_keys, *self.credentials, *self.webhooks}
        return tuple(event for event in resealed if _secret(event) in held)

    def configure_provider(self, configured: ProviderConfigured) -> tuple[CustomerEvent, ...]:
        """Say where the source of one provider and domain lies; saying it again replaces what was said."""
        self._active()
        if len(self.provider_configs) >= MAX_PROVIDER_CONFIGS:
            raise Forbidden(f"A customer can hold {MAX_PROVIDER_CONFIGS} provider configurations. Delete one first.")
        return (configured,)

    def remove_provider_config(self, config_id: str) -> tuple[CustomerEvent, ...]:
        self._there()
        if config_id not in self.provider_configs:
            raise NotFound("No such provider configuration.")
        return (ProviderConfigRemoved(config_id=config_id),)

    def configuration(self, provider: str, domain: str) -> ProviderConfigured | None:
        """The newest configuration of that provider and domain."""
        fitting = [c for c in self.provider_configs.values() if (c.provider, c.domain) == (provider, domain)]
        return fitting[-1] if fitting else None

    def configure_pipeline(
        self, config_id: str, pipeline: Pipeline, next_run_time: datetime
    ) -> tuple[CustomerEvent, ...]:
        self._active()
        if len(self.pipelines) >= MAX_PIPELINES:
            raise Forbidden(f"A customer can have {MAX_PIPELINES} scheduled pipelines. Delete one first.")
        slot = self._slot(pipeline, next_run_time)
        return (PipelineConfigured(config_id=config_id, pipeline=pipeline, next_run_time=slot),)

    def _slot(self, pipeline: Pipeline, next_run_time: datetime) -> datetime | None:
        """A pipeline that rests, by itself or with all of them, has no next slot."""
        return next_run_time if pipeline.is_active and not self.schedules_paused else None

    def pipeline(self, config_id: str) -> Pipeline:
        self._there()
        if config_id not in self.pipelines:
            raise NotFound("No such pipeline.")
        return self.pipelines[config_id]

    def change_pipeline(self, config_id: str, pipeline: Pipeline, next_run_time: datetime) -> tuple[CustomerEvent, ...]:
        """Another schedule, zone, state or parameters; `next_run_time` is the slot that it then waits for."""
        self._active()
        if self.pipeline(config_id) == pipeline:
            return ()
        slot = self._slot(pipeline, next_run_time)
        return (PipelineChanged(config_id=config_id, pipeline=pipeline, next_run_time=slot),)

    def remove_pipeline(self, config_id: str) -> tuple[CustomerEvent, ...]:
        self.pipeline(config_id)
        return (PipelineRemoved(config_id=config_id),)

    def add_team_member(self, added: TeamMemberAdded, max_team_members: int) -> tuple[CustomerEvent, ...]:
        self._active()
        if added.email.lower() in {email.lower() for email in self.team.values()}:
            raise Conflict("This person is a team member already.")
        if len(self.team) >= max_team_members:
            raise Forbidden(f"The plan allows {max_team_members} team members, and all places are taken.")
        return (added,)

    def remove_team_member(self, member_id: str) -> tuple[CustomerEvent, ...]:
        self._there()
        if member_id not in self.team:
            raise NotFound("No such team member.")
        return (TeamMemberRemoved(member_id=member_id),)

    def link_stripe(self, stripe_customer_id: str, stripe_subscription_id: str | None) -> tuple[CustomerEvent, ...]:
        """Who pays for it, once and for all, and by which subscription now."""
        self._there()
        if self.stripe_customer_id not in {None, stripe_customer_id}:
            raise Conflict("Another customer of Stripe's pays for this one.")
        if (self.stripe_customer_id, self.stripe_subscription_id) == (stripe_customer_id, stripe_subscription_id):
            return ()
        return (StripeLinked(stripe_customer_id=stripe_customer_id, stripe_subscription_id=stripe_subscription_id),)

    def add_webhook(self, added: WebhookEndpointAdded) -> tuple[CustomerEvent, ...]:
        self._active()
        if len(self.webhooks) >= MAX_WEBHOOKS:
            raise Forbidden(f"A customer can have {MAX_WEBHOOKS} webhook endpoints. Remove one first.")
        return (added,)

    def remove_webhook(self, endpoint_id: str) -> tuple[CustomerEvent, ...]:
        self._there()
        if endpoint_id not in self.webhooks:
            raise NotFound("No such webhook endpoint.")
        return (WebhookEndpointRemoved(endpoint_id=endpoint_id),)

    def grant_reader(self, granted: BigQueryReaderGranted) -> tuple[CustomerEvent, ...]:
        self._active()
        if granted.principal in self.readers.values():
            raise Conflict("This principal may read already.")
        if len(self.readers) >= MAX_READERS:
            raise Forbidden(f"A customer can have {MAX_READERS} BigQuery readers. Revoke one first.")
        return (granted,)

    def revoke_reader(self, grant_id: str) -> tuple[CustomerEvent, ...]:
        self._there()
        if grant_id not in self.readers:
            raise NotFound("No such BigQuery reader.")
        return (BigQueryReaderRevoked(grant_id=grant_id),)

    def suspend(self, reason: str) -> tuple[CustomerEvent, ...]:
        """A customer may be suspended for several reasons, one after another; for the same one it is only once."""
        self._there()
        if self.status is Status.SUSPENDED and self.suspended_for == reason:
            return ()
        return (Suspended(reason=reason, resting=self._scheduled()),)

    def _scheduled(self) -> tuple[str, ...]:
        """The pipelines that have a next slot."""
        if self.schedules_paused or self.status is Status.SUSPENDED:
            return ()
        return tuple(config_id for config_id, pipeline in self.pipelines.items() if pipeline.is_active)

    def pause_schedules(self, reason: str) -> tuple[CustomerEvent, ...]:
        """No slot becomes a run until the schedules are resumed; runs that wait or run go on."""
        self._active()
        return () if self.schedules_paused else (SchedulesPaused(reason=reason, resting=self._scheduled()),)

    def resume_schedules(self, reason: str, next_run_times: Mapping[str, datetime]) -> tuple[CustomerEvent, ...]:
        """`next_run_times` holds the next slot of every active pipeline."""
        self._active()
        if not self.schedules_paused:
            return ()
        return (SchedulesResumed(reason=reason, next_run_times=dict(next_run_times)),)

    def reactivate(self, reason: str, next_run_times: Mapping[str, datetime]) -> tuple[CustomerEvent, ...]:
        """`next_run_times` holds the next slot of every active pipeline; paused schedules stay paused."""
        self._there()
        if self.status is Status.ACTIVE:
            return ()
        return (Reactivated(reason=reason, next_run_times={} if self.schedules_paused else dict(next_run_times)),)

    def change_contact(self, company_name: str | None, admin_email: str | None) -> tuple[CustomerEvent, ...]:
        self._there()
        events: list[CustomerEvent] = []
        if company_name and company_name != self.company_name:
            events.append(CompanyRenamed(company_name=company_name))
        if admin_email and admin_email != self.admin_email:
            events.append(AdminEmailChanged(admin_email=admin_email))
        return tuple(events)

    def erase(self, reason: str) -> tuple[CustomerEvent, ...]:
        """The customer goes for ever, whatever its status; nothing can be decided about it afterwards."""
        return () if self.status is Status.ERASED else (Erased(reason=reason),)


def _secret(event: Resealed) -> str:
    match event:
        case ApiKeyResealed(api_key_id=secret) | CredentialResealed(credential_id=secret):
            return secret
        case WebhookSecretResealed(endpoint_id=secret):
            return secret


# --- fold ---------------------------------------------------------------------------------------------------------


def _without(mapping: Mapping[str, Value], key: str) -> dict[str, Value]:
    return {k: v for k, v in mapping.items() if k != key}


def evolve(state: Customer | None, event: CustomerEvent) -> Customer:  # noqa: C901, PLR0911, PLR0912 - one case an event
    """What the customer is after `event`."""
    if isinstance(event, Onboarded):
        return Customer(
            customer_id=event.customer_id,
            company_name=event.company_name,
            admin_email=event.admin_email,
            stripe_customer_id=event.stripe_customer_id,
        )
    assert state is not None, "a customer begins with Onboarded"  # noqa: S101 - the store keeps the order
    match event:
        case DatasetProvisioned():
            return replace(state, provisioned=True)
        case ApiKeyIssued(api_key_id=key_id, expires_at=until, name=name):
            return replace(state, api_keys={**state.api_keys, key_id: ApiKey(expires_at=until, name=name)})
        case ApiKeyRetired(api_key_id=key_id, expires_at=until):
            retired = replace(state.api_keys[key_id], expires_at=until)
            return replace(state, api_keys={**state.api_keys, key_id: retired})
        case ApiKeyRevoked(api_key_id=key_id):
            return replace(state, api_keys=_without(state.api_keys, key_id))
        case CredentialAdded(credential_id=credential_id, provider=provider):
            return replace(state, credentials={**state.credentials, credential_id: provider})
        case CredentialRevoked(credential_id=credential_id):
            return replace(state, credentials=_without(state.credentials, credential_id))
        case ProviderConfigured(config_id=config_id):
            return replace(state, provider_configs={**state.provider_configs, config_id: event})
        case ProviderConfigRemoved(config_id=config_id):
            return replace(state, provider_configs=_without(state.provider_configs, config_id))
        case (
            PipelineConfigured(config_id=config_id, pipeline=pipeline)
            | PipelineChanged(config_id=config_id, pipeline=pipeline)
        ):
            return replace(state, pipelines={**state.pipelines, config_id: pipeline})
        case PipelineRemoved(config_id=config_id):
            return replace(state, pipelines=_without(state.pipelines, config_id))
        case TeamMemberAdded(member_id=member_id, email=email):
            return replace(state, team={**state.team, member_id: email})
        case TeamMemberRemoved(member_id=member_id):
            return replace(state, team=_without(state.team, member_id))
        case Suspended(reason=reason):
            return replace(state, status=Status.SUSPENDED, suspensions=state.suspensions + 1, suspended_for=reason)
        case Reactivated():
            return replace(state, status=Status.ACTIVE, suspended_for=None)
        case StripeLinked(stripe_customer_id=payer, stripe_subscription_id=subscription_id):
            return replace(state, stripe_customer_id=payer, stripe_subscription_id=subscription_id)
        case SchedulesPaused():
            return replace(state, schedules_paused=True)
        case SchedulesResumed():
            return replace(state, schedules_paused=False)
        case WebhookEndpointAdded(endpoint_id=endpoint_id):
            return replace(state, webhooks=state.webhooks | {endpoint_id})
        case WebhookEndpointRemoved(endpoint_id=endpoint_id):
            return replace(state, webhooks=state.webhooks - {endpoint_id})
        case BigQueryReaderGranted(grant_id=grant_id, principal=principal):
            return replace(state, readers={**state.readers, grant_id: principal})
        case BigQueryReaderRevoked(grant_id=grant_id):
            return replace(state, readers=_without(state.readers, grant_id))
        case ApiKeyResealed() | CredentialResealed() | WebhookSecretResealed():
            return state
        case Erased():
            return Customer(customer_id=state.customer_id, company_name="", admin_email="", status=Status.ERASED)
        case CompanyRenamed(company_name=company_name):
            return replace(state, company_name=company_name)
        case AdminEmailChanged(admin_email=admin_email):
            return replace(state, admin_email=admin_email)
