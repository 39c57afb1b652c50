"""Mails: whom a notification is for and what it says are looked up when it is sent."""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from jinja2 import Environment, PackageLoader, StrictUndefined

from adapters.bootstrap import Service
from adapters.mail.smtp import Undeliverable
from adapters.notifications.courier import Needless, Refused
from adapters.notifications.deliveries import Claimed
from application.ports import Mail
from domain.notification import Kind
from domain.run_events import StepFinished

LINK_LIFE: Final = timedelta(days=7)
"""For how long the link of a welcome mail shows the first key."""

_OF_RUNS: Final = frozenset({Kind.RUN_FAILED, Kind.RUN_SKIPPED})
_GONE: Final = "There is nobody to write to any more."
_TOLD: Final = "The run's own notify step has sent a mail."

_PROFILE: Final = (
    "SELECT company_name, admin_email, subscription_plan FROM customer_profiles"
    " WHERE customer_id = %s AND deleted_at IS NULL AND admin_email IS NOT NULL"
)
_RUN: Final = (
    "SELECT run_id, provider, domain, pipeline_template, run_date, attempt, error_message, trigger_type"
    " FROM scheduled_pipeline_runs WHERE run_id = %s AND customer_id = %s"
)
_PEOPLE: Final = (
    "SELECT notification_emails FROM customer_provider_configs WHERE customer_id = %s AND lower(provider) = lower(%s)"
    " AND lower(domain) = lower(%s) AND is_active AND deleted_at IS NULL"
    " ORDER BY created_at DESC, config_id DESC LIMIT 1"
)
_REVEAL: Final = (
    "INSERT INTO key_reveals (token_hash, customer_id, api_key_id, expires_at)"
    " VALUES (%s, %s, %s, clock_timestamp() + %s) RETURNING expires_at"
)

_TEMPLATES: Final = Environment(
    loader=PackageLoader("adapters", "mail/templates"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # noqa: S701 - plain text
)


def render(kind: Kind, **about: Any) -> tuple[str, str]:  # noqa: ANN401 - whatever the template names
    """Subject and text of a mail: the first line of the template, and what follows the blank one after it."""
    subject, _, text = _TEMPLATES.get_template(f"{kind}.txt.j2").render(**about).partition("\n\n")
    return subject, text


class Letters:
    """The courier of mails. A mail that is sent again has the same Message-ID."""

    mailed = True
    at_once = 4
    each = 2

    def __init__(self, service: Service) -> None:
        self._service = service

    def deliver(self, claimed: Claimed) -> None:
        """Send the mail. Raises `Failed` and `Away`."""
        customer = self._one(_PROFILE, claimed.customer_id)
        if customer is None:
            raise Needless(_GONE)
        people, facts = [customer["admin_email"]], {**claimed.about}
        if claimed.kind is Kind.WELCOME:
            facts |= self._link(claimed)
        elif claimed.kind is Kind.KEY_EXPIRING:
            facts["expires_at"] = datetime.fromisoformat(facts["expires_at"])
        elif claimed.kind in _OF_RUNS:
            run = self._run(claimed)
            facts["run"] = run
            people = self._people(claimed.customer_id, run) or people
        subject, text = render(
            claimed.kind,
            **facts,
            customer_id=claimed.customer_id,
            company_name=customer["company_name"],
            plan=customer["subscription_plan"],
            occurred_at=claimed.occurred_at,
            base_url=self._service.settings.base_url,
        )
        mail = Mail(to=people, subject=subject, text=text, reference=str(claimed.notification_id))
        try:
            self._service.mailer.send(mail)
        except Undeliverable as refused:
            raise Refused(str(refused)) from None
        except ValueError:
            raise Refused("An address is not one that mail can be sent to.") from None

    def _link(self, claimed: Claimed) -> dict[str, Any]:
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        until = self._one(_REVEAL, digest, claimed.customer_id, claimed.about["api_key_id"], LINK_LIFE)
        return {
            "link": f"{self._service.settings.base_url}/reveal/{token}",
            "until": until["expires_at"] if until else None,
        }

    def _run(self, claimed: Claimed) -> dict[str, Any]:
        run_id = claimed.about["run_id"]
        run = self._one(_RUN, run_id, claimed.customer_id)
        if run is None:
            raise Needless(_GONE)
        if claimed.kind is Kind.RUN_FAILED and self._was_told(UUID(run_id)):
            raise Needless(_TOLD)
        return run

    def _was_told(self, run_id: UUID) -> bool:
        events = [recorded.event for recorded in self._service.platform.history(run_id)]
        steps = [event for event in events if isinstance(event, StepFinished) and event.type == "notify"]
        return any(step.metadata.get("sent") for step in steps)

    def _people(self, customer_id: str, run: dict[str, Any]) -> list[str]:
        found = self._one(_PEOPLE, customer_id, run["provider"], run["domain"])
        return list(found["notification_emails"] or []) if found else []

    def _one(self, query: str, *values: Any) -> dict[str, Any] | None:  # noqa: ANN401 - what columns hold
        with self._service.datastore.reading() as cursor:
            return cursor.execute(query.encode(), values, prepare=True).fetchone()
