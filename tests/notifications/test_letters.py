"""Mails: one template for each kind, whom they go to, and that nobody is told twice."""

import email
from datetime import UTC, datetime
from email.policy import default

import pytest
from jinja2 import UndefinedError

from adapters.notifications.letters import Letters, render
from application.ports import RunReport, StepReport
from application.provider_configs import ConfigureProvider, configure_provider
from domain.notification import DeliveryState, Kind
from tests.notifications.past import deliver, failing_run, follow, states

ABOUT = {
    "customer_id": "acme",
    "company_name": "ACME & Söhne",
    "plan": "STARTER",
    "base_url": "https://convergence.example",
    "occurred_at": datetime(2025, 11, 17, 2, tzinfo=UTC),
    "expires_at": datetime(2025, 12, 1, 2, tzinfo=UTC),
    "until": datetime(2025, 12, 1, 2, tzinfo=UTC),
    "link": "https://convergence.example/reveal/x",
    "api_key_id": "4f0c",
    "last4": "vYt9",
    "limit": "daily",
    "period": "2025-11-17",
    "used": 5,
    "allowed": 6,
    "run": {
        "run_id": "9a55",
        "provider": "gcp",
        "domain": "cost",
        "pipeline_template": "cost_billing",
        "run_date": "2025-11-16",
        "attempt": 3,
        "error_message": "The table is not there.",
        "trigger_type": "scheduled",
    },
}
MAILED = [kind for kind in Kind if kind is not Kind.TEST]


def mails(service) -> list[email.message.EmailMessage]:
    files = sorted(service.settings.data_dir.glob("outbox/*.eml"))
    return [email.message_from_bytes(file.read_bytes(), policy=default) for file in files]


@pytest.mark.parametrize("kind", MAILED)
def test_each_kind_has_a_text(kind):
    subject, text = render(kind, **ABOUT)
    assert "\n" not in subject
    assert 10 < len(subject) < 100
    assert text.endswith("\n")
    assert "{" not in text
    assert "acme" in subject + text
    with pytest.raises(UndefinedError):
        render(kind)


def test_a_welcome_has_a_link_and_its_repeat_the_same_message_id(world, service):
    follow(world)
    deliver(service, Letters(service))
    world.execute("UPDATE notification_deliveries SET state = 'PENDING', due_at = clock_timestamp()")
    deliver(service, Letters(service))
    first, second = mails(service)
    assert first["Subject"] == "Welcome to Convergence"
    assert first["To"] == "admin@acmecorp.com"
    assert "/reveal/" in first.get_content()
    assert first["Message-ID"] == second["Message-ID"]
    [notification_id] = [str(world.scalar("SELECT notification_id FROM notifications"))]
    assert first["Message-ID"].startswith(f"<{notification_id}@")
    assert world.scalar("SELECT count(*) FROM key_reveals") == 2


def configured(world, *people) -> None:
    given = {"provider": "GCP", "domain": "EXAMPLE", "source_project_id": "acme-gcp-project", "source_dataset": "b"}
    command = ConfigureProvider(**world.stamp(), customer_id="acme", **given, notification_emails=people)
    configure_provider(command, world.platform)


def test_a_failed_run_is_told_to_those_whom_its_configuration_names(world, service):
    configured(world, "ops@acmecorp.com", "boss@acmecorp.com")
    run_id = failing_run(world)
    follow(world)
    deliver(service, Letters(service))
    [mail] = [m for m in mails(service) if "failed" in m["Subject"]]
    assert mail["To"] == "ops@acmecorp.com, boss@acmecorp.com"
    assert run_id in mail.get_content()


def test_and_to_the_account_where_it_names_nobody(world, service):
    failing_run(world)
    follow(world)
    deliver(service, Letters(service))
    [mail] = [m for m in mails(service) if "failed" in m["Subject"]]
    assert mail["To"] == "admin@acmecorp.com"


@pytest.mark.parametrize(("sent", "told"), [(True, 0), (False, 1)])
def test_a_run_whose_notify_step_has_told_it_is_not_told_again(world, service, sent, told):
    run_id = world.request()
    [order] = world.claim()
    at = world.at
    step = StepReport(0, "tell", "notify", "COMPLETED", at, at, metadata={"recipients": 1, "sent": sent})
    world.report([order], steps=(step,), report=RunReport(succeeded=False, error="The table is not there."))
    assert world.run(run_id)["state"] == "FAILED"
    follow(world)
    outcomes = deliver(service, Letters(service))
    assert len([m for m in mails(service) if "failed" in m["Subject"]]) == told
    assert [state for state, *_ in outcomes].count(DeliveryState.DROPPED) == 1 - told


def test_nobody_is_written_to_who_is_gone(world, service):
    follow(world)
    world.execute("UPDATE customer_profiles SET admin_email = NULL, deleted_at = clock_timestamp()")
    [(state, text, _)] = deliver(service, Letters(service))
    assert (state, text) == (DeliveryState.DROPPED, "There is nobody to write to any more.")
    assert mails(service) == []
    assert states(world) == [("welcome", "DROPPED", 1)]
