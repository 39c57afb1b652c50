"""A customer's secrets, sealed again under the data keys that seal now."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from application.command import Command
from application.platform import Platform, Transaction
from application.ports import Opener, Purpose, SealedFor, Vault
from domain.customer import Resealed
from domain.customer_events import ApiKeyResealed, CredentialResealed, WebhookSecretResealed


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret as its row has it."""

    record_id: str
    purpose: Purpose
    ciphertext: bytes = field(repr=False)


class Reseal(Command):
    customer_id: str


@dataclass(frozen=True, slots=True)
class Done:
    """How many secrets were sealed anew, and which could not be opened: their key is gone, or they were altered."""

    resealed: int
    closed: Sequence[str]


def reseal(command: Reseal, secrets: Sequence[Sealed], platform: Platform, vault: Vault) -> Done:
    """Seal these secrets of one customer anew, in one transaction. The secrets stay what they are.

    Those that were given up meanwhile are passed over, and those that cannot be opened hold up no others.
    """
    by = Opener(actor=command.by.actor, reason="reseal", request_id=command.by.request_id)
    resealed: list[Resealed] = []
    closed: list[str] = []
    for secret in secrets:
        try:
            resealed.append(_resealed(command.customer_id, secret, vault, by))
        except ValueError:
            closed.append(secret.record_id)

    def work(tx: Transaction) -> Done:
        customer = tx.held_customer(command.customer_id)
        events = customer.must("No such customer.").reseal(resealed)
        customer.append(events)
        return Done(len(events), closed)

    return platform.transact(command, work)


def _resealed(customer_id: str, secret: Sealed, vault: Vault, by: Opener) -> Resealed:
    owner = SealedFor(customer_id, secret.record_id, secret.purpose)
    sealed = vault.seal(vault.open(secret.ciphertext, owner, by), owner)
    match secret.purpose:
        case Purpose.API_KEY:
            return ApiKeyResealed(api_key_id=secret.record_id, sealed_key=sealed)
        case Purpose.CREDENTIAL:
            return CredentialResealed(credential_id=secret.record_id, sealed=sealed)
        case Purpose.WEBHOOK:
            return WebhookSecretResealed(endpoint_id=secret.record_id, sealed_secret=sealed)
    raise ValueError(f"What is sealed as {secret.purpose} lies in the log, and stays as it is.")
