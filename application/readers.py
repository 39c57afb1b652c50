"""Who else may read a customer's data in BigQuery: granted and revoked."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints

from application.command import Command, Identifier, Request, new_id
from application.platform import Platform, Transaction
from domain.customer_events import BigQueryReaderGranted

# Google's own addresses, of service accounts too. Whatever else an address may hold, it is no part of a statement.
_EMAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,63}")
_LONGEST: Final = 254
_KINDS: Final = {kind.lower(): kind for kind in ("user", "group", "serviceAccount")}


def as_principal(text: str) -> str:
    """`user:`, `group:` or `serviceAccount:` and an e-mail in lower case, as IAM writes them.

    Raises `ValueError`. Nobody else is one: not `allUsers`, not a domain.
    """
    kind, colon, email = text.partition(":")
    if not colon or kind.lower() not in _KINDS:
        raise ValueError("must be user:, group: or serviceAccount: and an e-mail address")
    if len(email) > _LONGEST or not _EMAIL.fullmatch(email):
        raise ValueError("must end with an e-mail address of plain letters, digits and . _ % + -")
    return f"{_KINDS[kind.lower()]}:{email.lower()}"


class NewReader(Request):
    """Who is to read: a Google account, a group or a service account."""

    principal: Annotated[str, StringConstraints(max_length=300), AfterValidator(as_principal)] = Field(
        description="`user:`, `group:` or `serviceAccount:` and an e-mail address."
    )


class GrantReader(NewReader, Command):
    customer_id: str
    grant_id: Identifier = Field(default_factory=new_id)


def grant_reader(command: GrantReader, platform: Platform) -> str:
    """Let somebody read the customer's data in BigQuery; returns the grant's id. BigQuery learns of it soon after.

    Raises `Conflict` for one who may already, `Forbidden` beyond the number that a customer can have. Asking again
    with the same grant_id finds the same grant.
    """
    granted = BigQueryReaderGranted(grant_id=command.grant_id, principal=command.principal)

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        if command.grant_id not in state.readers:
            customer.append(state.grant_reader(granted))

    platform.once(command, work)
    return command.grant_id


class RevokeReader(Command):
    customer_id: str
    grant_id: str


def revoke_reader(command: RevokeReader, platform: Platform) -> None:
    """Nobody reads by this grant any more, as soon as BigQuery knows. Raises `NotFound` for one that there is not."""

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").revoke_reader(command.grant_id))

    platform.once(command, work)
