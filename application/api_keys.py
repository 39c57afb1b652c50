"""API keys: issued, replaced, revoked, reported as leaked."""

import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from application.command import Command, Line, new_id
from application.customers import Issued, issued_before, random_key_part, replaced_by, sealed_key
from application.platform import Platform, Transaction
from application.ports import Vault
from domain.refusals import Conflict
from domain.scopes import Scope, must_cover

Scopes = Annotated[tuple[Scope, ...], Field(min_length=1, max_length=len(Scope))]


class IssueApiKey(Command):
    """`scopes` are what the key may be used for, None for everything; `held` are those of the key that asks for it."""

    customer_id: str
    name: Line | None = None
    scopes: Scopes | None = None
    held: frozenset[str] | None = None
    key_part: SecretStr = Field(default_factory=random_key_part)
    api_key_id: str = Field(default_factory=new_id)


def issue_api_key(command: IssueApiKey, platform: Platform, vault: Vault) -> Issued:
    """Another key for the customer, good for 90 days; the one before of the same name goes on for 24 hours.

    Refused with `Conflict` while two keys of that name are active, and with `Forbidden` when it could do more than the
    one that asks for it. Sent again by whoever named it, it answers without the key.
    """
    must_cover(command.held, command.scopes)
    customer_id = command.customer_id
    vault.prepare(customer_id)
    issued = sealed_key(
        customer_id,
        command.api_key_id,
        command.key_part,
        command,
        vault,
        name=command.name or "",
        scopes=command.scopes,
    )
    key = SecretStr(f"{customer_id}_api_{command.key_part.get_secret_value()}")

    def work(tx: Transaction) -> Issued:
        customer, subscription = tx.held_account(customer_id)
        state = customer.must("No such customer.")
        if command.api_key_id in state.api_keys:
            raise Conflict("This API key was issued before, and is shown only once.")
        customer.append(state.issue_key(issued, command.at, replace_oldest=False))
        plan = subscription.must("No such customer.").plan
        return Issued(
            api_key_id=command.api_key_id,
            api_key=key,
            expires_at=issued.expires_at,
            customer_id=customer_id,
            plan=plan,
            company_name=state.company_name,
            new_customer=False,
            replaced=replaced_by(customer.must("No such customer."), command.api_key_id, command.at),
        )

    return platform.once(command, work, lambda tx: issued_before(tx, customer_id, command.api_key_id, command.at))


class RevokeApiKey(Command):
    customer_id: str
    api_key_id: str
    reason: Line | None = None


def revoke_api_key(command: RevokeApiKey, platform: Platform) -> None:
    """The key stops working with the end of this call, and within a second in every other process."""

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        customer.append(state.revoke_key(command.api_key_id, command.at, command.reason))

    platform.once(command, work)


LEAKED: Final = "reported as leaked"
"""How the reason of a revocation begins that somebody's find has brought about."""
_HOST: Final = re.compile(r"[a-z0-9.-]{1,100}")


class ReportLeak(Command):
    """Somebody has found the key, at `url` if they say so."""

    customer_id: str
    api_key_id: str
    url: Line | None = None


def report_leak(command: ReportLeak, platform: Platform) -> None:
    """The key stops working as after `revoke_api_key`; nothing happens to one that has stopped before."""
    place = _place(command.url)
    reason = LEAKED if place is None else f"{LEAKED}: found at {place}"

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        customer.append(state.revoke_leaked_key(command.api_key_id, command.at, reason))

    platform.once(command, work)


def _place(url: str | None) -> str | None:
    """The host of an address. The rest is a stranger's text, may hold the key itself, and is for people to read."""
    if url is None:
        return None
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return None
    return host if _HOST.fullmatch(host) else None
