"""The welcome mail: sent for every customer that was onboarded, with a link that shows the first key once."""

import hashlib
import logging
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from adapters.bootstrap import Service, utc_now
from adapters.mail.smtp import Undeliverable
from application.ports import Mail
from domain.customer_events import ApiKeyIssued
from projections.follow import Placed

logger = logging.getLogger(__name__)

LINK_LIFE: Final = timedelta(days=7)
FIRST_KEY_VERSION: Final = 2
"""A customer's stream begins with Onboarded and the first key, appended together."""


class Welcomer:
    """Handles pages of the log by welcoming the customers that were onboarded in them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        templates = Environment(
            loader=PackageLoader("adapters", "mail/templates"),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,  # noqa: S701 - plain text
        )
        self._template = templates.get_template("welcome.txt.j2")

    def handle(self, events: Sequence[Placed]) -> None:
        """Send a mail per onboarding; raises `Away` when mail or database are away. A repeat is a second mail."""
        for placed in events:
            if isinstance(placed.event, ApiKeyIssued) and placed.at.version == FIRST_KEY_VERSION:
                self._welcome(placed.at.customer_id, placed.event.api_key_id)

    def _welcome(self, customer_id: str, api_key_id: str) -> None:
        token = secrets.token_urlsafe(32)
        until = utc_now() + LINK_LIFE
        with self._service.datastore.reading() as cursor:
            customer = cursor.execute(
                "SELECT company_name, admin_email, subscription_plan FROM customer_profiles WHERE customer_id = %s",
                (customer_id,),
            ).fetchone()
            if customer is None:
                logger.warning("no welcome mail for %s: the profile is gone", customer_id)
                return
            cursor.execute(
                "INSERT INTO key_reveals (token_hash, customer_id, api_key_id, expires_at) VALUES (%s, %s, %s, %s)",
                (hashlib.sha256(token.encode()).hexdigest(), customer_id, api_key_id, until),
            )
        base_url = self._service.settings.base_url
        text = self._template.render(
            company_name=customer["company_name"],
            customer_id=customer_id,
            plan=customer["subscription_plan"],
            link=f"{base_url}/reveal/{token}",
            until=until,
            base_url=base_url,
        )
        mail = Mail(to=(customer["admin_email"],), subject="Welcome to Convergence", text=text)
        try:
            logger.info("welcome mail of %s: %s", customer_id, self._service.mailer.send(mail))
        except (Undeliverable, ValueError) as error:
            # Trying again would not help, and would hold up the mails behind it.
            logger.warning("welcome mail of %s cannot be delivered: %s", customer_id, error)
