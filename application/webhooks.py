"""Webhook endpoints: where a customer's notifications are posted, and the secret that signs them."""

import base64
import re
import secrets
from ipaddress import IPv6Address
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from application.command import Command, Identifier, Line, Request, new_id
from application.platform import Platform, Transaction
from application.ports import Purpose, SealedFor, Vault
from domain.customer_events import WebhookEndpointAdded
from domain.notification import POSTED, Kind

_SECRET_BYTES: Final = 32
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("must be an address such as https://hooks.example.com/convergence") from None
    if not url.isascii() or parts.scheme not in {"https", "http"} or port == 0 or not _is_host(parts):
        raise ValueError("must be an address such as https://hooks.example.com/convergence")
    if parts.username is not None or parts.password is not None or parts.fragment or " " in url or "\\" in url:
        raise ValueError("must have no user, password, fragment or spaces")
    return url


def _is_host(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if "[" not in parts.netloc:
        return _NAME.fullmatch(host) is not None
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def _wanted(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    chosen = tuple(kind for kind in POSTED if kind in kinds)
    if len(chosen) < len(set(kinds)):
        raise ValueError(f"must be some of {', '.join(POSTED)}")
    return chosen


class NewWebhookEndpoint(Request):
    """An endpoint as its owner names it."""

    url: Annotated[Line, AfterValidator(_address)] = Field(repr=False)
    kinds: Annotated[tuple[Kind, ...], AfterValidator(_wanted)] = Field(POSTED, min_length=1, max_length=len(Kind))


def new_secret() -> SecretStr:
    """A signing secret in the form of Standard Webhooks."""
    return SecretStr("whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode())


class AddWebhookEndpoint(NewWebhookEndpoint, Command):
    customer_id: str
    endpoint_id: Identifier = Field(default_factory=new_id)
    secret: SecretStr = Field(default_factory=new_secret)


def add_webhook_endpoint(command: AddWebhookEndpoint, platform: Platform, vault: Vault) -> SecretStr | None:
    """Have notifications of these kinds posted to an address; the secret that signs them, which is shown once.

    Asking again with the same endpoint_id finds the same endpoint, and answers None.

    Refused with `Forbidden` while the customer has as many as it can.
    """
    owner = SealedFor(command.customer_id, command.endpoint_id, Purpose.WEBHOOK)
    added = WebhookEndpointAdded(
        endpoint_id=command.endpoint_id,
        url=command.url,
        sealed_secret=vault.seal(command.secret.get_secret_value().encode(), owner),
        kinds=tuple(kind.value for kind in command.kinds),
    )

    def work(tx: Transaction) -> SecretStr | None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        if command.endpoint_id in state.webhooks:
            return None
        customer.append(state.add_webhook(added))
        return command.secret

    return platform.once(command, work, lambda _: None)


class RemoveWebhookEndpoint(Command):
    customer_id: str
    endpoint_id: str


def remove_webhook_endpoint(command: RemoveWebhookEndpoint, platform: Platform) -> None:
    """Nothing is posted there any more, also not what waits to be."""

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").remove_webhook(command.endpoint_id))

    platform.once(command, work)
