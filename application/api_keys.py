"""API keys: issued, replaced, revoked."""

from pydantic import Field, SecretStr

from application.command import Command, new_id
from application.customers import Issued, issued_before, random_key_part, sealed_key
from application.platform import Platform, Transaction
from application.ports import Vault
from domain.refusals import Conflict


class IssueApiKey(Command):
    customer_id: str
    key_part: SecretStr = Field(default_factory=random_key_part)
    api_key_id: str = Field(default_factory=new_id)


def issue_api_key(command: IssueApiKey, platform: Platform, vault: Vault) -> Issued:
    """A second key for the customer, good for 90 days; the first one goes on for 24 hours.

    Refused with `Conflict` while two keys are active. Sent again by whoever named it, it answers without the key.
    """
    customer_id = command.customer_id
    vault.prepare(customer_id)
    issued = sealed_key(customer_id, command.api_key_id, command.key_part, command, vault)
    key = SecretStr(f"{customer_id}_api_{command.key_part.get_secret_value()}")

    def work(tx: Transaction) -> Issued:
        tx.lock([customer_id])
        customer, subscription = tx.customer(customer_id), tx.subscription(customer_id)
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
        )

    return platform.once(command, work, lambda tx: issued_before(tx, customer_id, command.api_key_id, command.at))


class RevokeApiKey(Command):
    customer_id: str
    api_key_id: str


def revoke_api_key(command: RevokeApiKey, platform: Platform) -> None:
    """The key stops working with the end of this call."""

    def work(tx: Transaction) -> None:
        tx.lock([command.customer_id])
        customer = tx.customer(command.customer_id)
        customer.append(customer.must("No such customer.").revoke_key(command.api_key_id, command.at))

    platform.once(command, work)
