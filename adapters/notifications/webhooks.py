"""Outgoing webhooks: signed as Standard Webhooks says, and posted to public addresses only."""

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
from pydantic import SecretStr
from standardwebhooks import Webhook

from adapters.bootstrap import Service, origin, utc_now
from adapters.notifications.addresses import (
    Allow,
    PrivateAddress,
    Resolve,
    any_address,
    checked,
    is_public,
    resolve,
)
from adapters.notifications.courier import Failed, Needless, Refused
from adapters.notifications.deliveries import Claimed
from application.ports import KeyDestroyed, Purpose, SealedFor
from application.webhooks import RemoveWebhookEndpoint, remove_webhook_endpoint
from domain.refusals import NotFound

_GONE_STATUS: Final = 410
_TIMEOUT_S: Final = 10.0
_NO_ADDRESS: Final = "The endpoint's address is not one that can be posted to."
_REMOVED: Final = "The endpoint was removed."
_ENDPOINT: Final = (
    "SELECT url, encrypted_secret FROM customer_webhook_endpoints"
    " WHERE endpoint_id = %s AND customer_id = %s AND is_active AND deleted_at IS NULL"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said, as far as anybody looks at it."""

    status: int
    retry_after: str | None


class Poster:
    """Posts to endpoints: each host is looked up once per attempt, checked, and connected to at those very addresses.

    Redirects are not followed, proxies of the environment not used, bodies of answers not read. An attempt takes at
    most `timeout_s` once the host is looked up. `plain` lets it post without TLS; `tls` replaces the system's trusted
    authorities.
    """

    def __init__(
        self,
        *,
        allow: Allow = is_public,
        plain: bool = False,
        resolve: Resolve = resolve,
        timeout_s: float = _TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow = allow
        self._plain = plain
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._tls = tls or ssl.create_default_context()

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Raises `Failed` with a sentence, `PrivateAddress` where the host has one that is not allowed."""
        try:
            asked = httpx.URL(url)
        except httpx.InvalidURL:
            raise Refused(_NO_ADDRESS) from None
        if asked.scheme != "https" and not self._plain:
            raise Refused("The endpoint's address does not begin with https.")
        port = asked.port or (443 if asked.scheme == "https" else 80)
        try:
            addresses = checked(asked.raw_host.decode(), port, self._resolve, self._allow)
        except OSError:
            raise Failed("The endpoint's host is not known.") from None
        except UnicodeError:
            # The resolver's word for a label that is empty or too long; it quotes the host.
            raise Refused(_NO_ADDRESS) from None
        try:
            return asyncio.run(self._post(asked, addresses, body, headers))
        except (TimeoutError, httpx.TimeoutException):
            raise Failed(f"The endpoint did not answer within {self._timeout_s:g} s.") from None
        except httpx.HTTPError as error:
            # Its words may quote the address, which is a key itself more often than not.
            raise Failed(f"The endpoint could not be reached ({type(error).__name__}).") from None

    async def _post(self, asked: httpx.URL, addresses: Sequence[str], body: bytes, headers: dict[str, str]) -> Answer:
        sent = {"host": asked.netloc.decode("ascii"), "content-type": "application/json", **headers}
        named = {"sni_hostname": asked.raw_host.decode("ascii")}
        async with (
            asyncio.timeout(self._timeout_s),
            httpx.AsyncClient(
                verify=self._tls, trust_env=False, follow_redirects=False, timeout=self._timeout_s
            ) as client,
        ):
            *others, last = [asked.copy_with(host=address) for address in addresses]
            for url in others:
                # Who was not reached has not got anything yet.
                with suppress(httpx.ConnectError):
                    return await _answer(client, url, content=body, headers=sent, extensions=named)
            return await _answer(client, last, content=body, headers=sent, extensions=named)


async def _answer(client: httpx.AsyncClient, url: httpx.URL, **request: Any) -> Answer:  # noqa: ANN401 - the library's
    async with client.stream("POST", url, **request) as response:
        return Answer(response.status_code, response.headers.get("retry-after"))


class Webhooks:
    """The courier to endpoints. A notification that is sent again has the same webhook-id."""

    mailed = False
    at_once = 16
    each = 4

    def __init__(self, service: Service, poster: Poster | None = None, now: Callable[[], datetime] = utc_now) -> None:
        anywhere = service.settings.webhook_private_addresses
        self._service = service
        self._poster = poster or Poster(allow=any_address if anywhere else is_public, plain=anywhere)
        self._now = now

    def deliver(self, claimed: Claimed) -> None:
        """Post the notification. Raises `Failed` and `Away`. An endpoint that says it is gone (410) is removed."""
        url, secret = self._endpoint(claimed)
        body = content(claimed)
        headers = signed(claimed, body, secret, self._now())
        try:
            answer = self._poster.post(url, body, headers)
        except PrivateAddress:
            raise Refused("The endpoint's host has an address that is not public.") from None
        if httpx.codes.is_success(answer.status):
            return
        if answer.status == _GONE_STATUS:
            self._remove(claimed)
            raise Needless("The endpoint answered 410 Gone, and was removed.")
        after = retry_after(answer.retry_after, self._now())
        raise Failed(f"The endpoint answered with status {answer.status}.", after)

    def _endpoint(self, claimed: Claimed) -> tuple[str, SecretStr]:
        with self._service.datastore.reading() as cursor:
            row = cursor.execute(_ENDPOINT, (claimed.receiver, claimed.customer_id), prepare=True).fetchone()
        if row is None:
            raise Needless(_REMOVED)
        owner = SealedFor(claimed.customer_id, claimed.receiver, Purpose.WEBHOOK)
        try:
            return row["url"], SecretStr(self._service.vault.open(bytes(row["encrypted_secret"]), owner).decode())
        except KeyDestroyed:
            raise Needless(_REMOVED) from None

    def _remove(self, claimed: Claimed) -> None:
        by = origin(f"service:{self._service.settings.worker_id}")
        command = RemoveWebhookEndpoint(
            at=self._now(), by=by, customer_id=claimed.customer_id, endpoint_id=claimed.receiver
        )
        try:
            remove_webhook_endpoint(command, self._service.platform)
        except NotFound:
            return


def content(claimed: Claimed) -> bytes:
    """The body of a webhook: the same for every attempt, so that receivers can compare."""
    told: dict[str, Any] = {
        "type": claimed.kind.value,
        "timestamp": claimed.occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {"customer_id": claimed.customer_id, **claimed.about},
    }
    return json.dumps(told, separators=(",", ":")).encode()


def signed(claimed: Claimed, body: bytes, secret: SecretStr, at: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks: id, instant of the attempt, and signature."""
    at = at.astimezone(UTC)
    name = str(claimed.notification_id)
    return {
        "webhook-id": name,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret.get_secret_value()).sign(name, at, body.decode()),
        "user-agent": "Convergence-Webhooks",
    }


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """What a Retry-After header asks for: seconds, or an instant. None for anything else."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(int(value[:9]), 10**8))
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(timedelta(), (at if at.tzinfo else at.replace(tzinfo=UTC)) - now)
