"""The names under which events are stored: for ever, whatever happens to modules and classes.

When the shape of an event changes, its version goes up here and an upcaster carries the old data over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from domain import billing_events, customer_events, run_events, subscription_events
from domain.projection import EventSkipped

Event = (
    customer_events.CustomerEvent
    | subscription_events.SubscriptionEvent
    | run_events.RunEvent
    | billing_events.BillingEvent
    | EventSkipped
)

TOPICS: Final[Mapping[str, type[Event]]] = {
    "customer.onboarded@1": customer_events.Onboarded,
    "customer.stripe-linked@1": customer_events.StripeLinked,
    "customer.dataset-provisioned@1": customer_events.DatasetProvisioned,
    "customer.api-key-issued@2": customer_events.ApiKeyIssued,
    "customer.api-key-retired@1": customer_events.ApiKeyRetired,
    "customer.api-key-revoked@2": customer_events.ApiKeyRevoked,
    "customer.api-key-resealed@1": customer_events.ApiKeyResealed,
    "customer.credential-added@1": customer_events.CredentialAdded,
    "customer.credential-revoked@1": customer_events.CredentialRevoked,
    "customer.credential-resealed@1": customer_events.CredentialResealed,
    "customer.provider-configured@1": customer_events.ProviderConfigured,
    "customer.provider-config-removed@1": customer_events.ProviderConfigRemoved,
    "customer.pipeline-configured@2": customer_events.PipelineConfigured,
    "customer.pipeline-changed@2": customer_events.PipelineChanged,
    "customer.pipeline-removed@1": customer_events.PipelineRemoved,
    "customer.team-member-added@1": customer_events.TeamMemberAdded,
    "customer.team-member-removed@1": customer_events.TeamMemberRemoved,
    "customer.suspended@1": customer_events.Suspended,
    "customer.reactivated@1": customer_events.Reactivated,
    "customer.schedules-paused@1": customer_events.SchedulesPaused,
    "customer.schedules-resumed@1": customer_events.SchedulesResumed,
    "customer.company-renamed@1": customer_events.CompanyRenamed,
    "customer.admin-email-changed@1": customer_events.AdminEmailChanged,
    "customer.webhook-endpoint-added@1": customer_events.WebhookEndpointAdded,
    "customer.webhook-endpoint-removed@1": customer_events.WebhookEndpointRemoved,
    "customer.webhook-secret-resealed@1": customer_events.WebhookSecretResealed,
    "customer.bigquery-reader-granted@1": customer_events.BigQueryReaderGranted,
    "customer.bigquery-reader-revoked@1": customer_events.BigQueryReaderRevoked,
    "customer.erased@1": customer_events.Erased,
    "subscription.opened@1": subscription_events.Opened,
    "subscription.plan-changed@1": subscription_events.PlanChanged,
    "subscription.limits-overridden@1": subscription_events.LimitsOverridden,
    "subscription.runs-admitted@1": subscription_events.RunsAdmitted,
    "subscription.admissions-returned@1": subscription_events.AdmissionsReturned,
    "subscription.run-refused@1": subscription_events.RunRefused,
    "subscription.slot-taken@2": subscription_events.SlotTaken,
    "subscription.slot-released@1": subscription_events.SlotReleased,
    "subscription.usage-reset@1": subscription_events.UsageReset,
    "subscription.suspended@1": subscription_events.Suspended,
    "subscription.reactivated@1": subscription_events.Reactivated,
    "subscription.cancelled@1": subscription_events.Cancelled,
    "run.scheduled@2": run_events.RunScheduled,
    "run.claimed@1": run_events.RunClaimed,
    "run.step-finished@1": run_events.StepFinished,
    "run.completed@1": run_events.RunCompleted,
    "run.failed@1": run_events.RunFailed,
    "run.requeued@2": run_events.RunRequeued,
    "run.cancel-requested@1": run_events.CancelRequested,
    "run.cancelled@1": run_events.RunCancelled,
    "run.skipped@1": run_events.RunSkipped,
    "billing.account-opened@1": billing_events.AccountOpened,
    "billing.account-closed@1": billing_events.AccountClosed,
    "billing.subscription-reported@1": billing_events.SubscriptionReported,
    "billing.invoice-reported@1": billing_events.InvoiceReported,
    "billing.checkout-reported@1": billing_events.CheckoutReported,
    "billing.event-noted@1": billing_events.EventNoted,
    "billing.linked@1": billing_events.Linked,
    "billing.assessed@1": billing_events.Assessed,
    "billing.access-suspended@1": billing_events.AccessSuspended,
    "billing.access-restored@1": billing_events.AccessRestored,
    "billing.problem-found@1": billing_events.ProblemFound,
    "billing.problem-solved@1": billing_events.ProblemSolved,
    "projection.event-skipped@1": EventSkipped,
}

Data = dict[str, Any]
Upcaster = Callable[[Data], Sequence[tuple[str, Data]]]
"""Takes the data of an old topic and gives the newer topics with their data, in the order in which they count.

Usually that is one. Each may be old itself: they are carried on until all are current. See docs/evolution.md.
"""


def _as(newer: str) -> Upcaster:
    """It goes by another name or version now, whose new fields are, where they are missing, what was true before."""

    def upcast(data: Data) -> Sequence[tuple[str, Data]]:
        return ((newer, data),)

    return upcast


def _contact_changed(data: Data) -> Sequence[tuple[str, Data]]:
    """One event said both, whichever of them had changed."""
    return (
        ("customer.company-renamed@1", {"company_name": data["company_name"]}),
        ("customer.admin-email-changed@1", {"admin_email": data["admin_email"]}),
    )


UPCASTERS: Final[Mapping[str, Upcaster]] = {
    # Keys got names and scopes: without them they may do everything.
    "customer.api-key-issued@1": _as("customer.api-key-issued@2"),
    # Keys came to be revoked for reasons of the service's own.
    "customer.api-key-revoked@1": _as("customer.api-key-revoked@2"),
    # Pipelines got jitter.
    "customer.pipeline-configured@1": _as("customer.pipeline-configured@2"),
    "customer.pipeline-changed@1": _as("customer.pipeline-changed@2"),
    # Who reads the trail wants to see what changed.
    "customer.contact-changed@1": _contact_changed,
    # Beside a customer's paused schedules the same word meant something else.
    "subscription.paused@1": _as("subscription.suspended@1"),
    "subscription.resumed@1": _as("subscription.reactivated@1"),
    # Places came to be shared with back-fill, and the runs of one pipeline to go one after another.
    "subscription.slot-taken@1": _as("subscription.slot-taken@2"),
    # Attempts that were never executed came to be told apart.
    "run.requeued@1": _as("run.requeued@2"),
    # Runs got an instant before which they wait, and back-fill.
    "run.scheduled@1": _as("run.scheduled@2"),
}
