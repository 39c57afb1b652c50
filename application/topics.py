"""The names under which events are stored: for ever, whatever happens to modules and classes.

When the shape of an event changes, its version goes up here and an upcaster carries the old data over.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from domain import customer, pipeline_run, subscription

Event = customer.CustomerEvent | subscription.SubscriptionEvent | pipeline_run.RunEvent

TOPICS: Final[Mapping[str, type[Event]]] = {
    "customer.onboarded@1": customer.Onboarded,
    "customer.dataset-provisioned@1": customer.DatasetProvisioned,
    "customer.api-key-issued@1": customer.ApiKeyIssued,
    "customer.api-key-retired@1": customer.ApiKeyRetired,
    "customer.api-key-revoked@1": customer.ApiKeyRevoked,
    "customer.credential-added@1": customer.CredentialAdded,
    "customer.credential-revoked@1": customer.CredentialRevoked,
    "customer.provider-configured@1": customer.ProviderConfigured,
    "customer.provider-config-removed@1": customer.ProviderConfigRemoved,
    "customer.pipeline-configured@2": customer.PipelineConfigured,
    "customer.pipeline-changed@2": customer.PipelineChanged,
    "customer.pipeline-removed@1": customer.PipelineRemoved,
    "customer.team-member-added@1": customer.TeamMemberAdded,
    "customer.team-member-removed@1": customer.TeamMemberRemoved,
    "customer.suspended@1": customer.Suspended,
    "customer.reactivated@1": customer.Reactivated,
    "customer.schedules-paused@1": customer.SchedulesPaused,
    "customer.schedules-resumed@1": customer.SchedulesResumed,
    "customer.contact-changed@1": customer.ContactChanged,
    "subscription.opened@1": subscription.Opened,
    "subscription.plan-changed@1": subscription.PlanChanged,
    "subscription.limits-overridden@1": subscription.LimitsOverridden,
    "subscription.runs-admitted@1": subscription.RunsAdmitted,
    "subscription.admissions-returned@1": subscription.AdmissionsReturned,
    "subscription.run-refused@1": subscription.RunRefused,
    "subscription.slot-taken@2": subscription.SlotTaken,
    "subscription.slot-released@1": subscription.SlotReleased,
    "subscription.usage-reset@1": subscription.UsageReset,
    "subscription.paused@1": subscription.Paused,
    "subscription.resumed@1": subscription.Resumed,
    "subscription.cancelled@1": subscription.Cancelled,
    "run.scheduled@2": pipeline_run.RunScheduled,
    "run.claimed@1": pipeline_run.RunClaimed,
    "run.step-finished@1": pipeline_run.StepFinished,
    "run.completed@1": pipeline_run.RunCompleted,
    "run.failed@1": pipeline_run.RunFailed,
    "run.requeued@2": pipeline_run.RunRequeued,
    "run.cancel-requested@1": pipeline_run.CancelRequested,
    "run.cancelled@1": pipeline_run.RunCancelled,
    "run.skipped@1": pipeline_run.RunSkipped,
}

Upcaster = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]
"""Takes the data of an old topic and gives the newer topic with its data; chains until a current one is reached."""


def _with_defaults(newer: str) -> Upcaster:
    """The newer version only has more fields, and what they are when they are missing is what was true before."""

    def upcast(data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return newer, data

    return upcast


UPCASTERS: Final[Mapping[str, Upcaster]] = {
    # Pipelines got jitter.
    "customer.pipeline-configured@1": _with_defaults("customer.pipeline-configured@2"),
    "customer.pipeline-changed@1": _with_defaults("customer.pipeline-changed@2"),
    # Places came to be shared with back-fill, and the runs of one pipeline to go one after another.
    "subscription.slot-taken@1": _with_defaults("subscription.slot-taken@2"),
    # Attempts that were never executed came to be told apart.
    "run.requeued@1": _with_defaults("run.requeued@2"),
    # Runs got an instant before which they wait, and back-fill.
    "run.scheduled@1": _with_defaults("run.scheduled@2"),
}
