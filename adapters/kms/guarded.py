"""A vault that opens what its process is to open, and has every opening of a secret recorded before."""

from collections.abc import Callable, Collection
from typing import Final

from adapters.kms.vault import EnvelopeVault
from application.ports import NotToBeOpened, Opener, Purpose, SealedFor

RECORDED: Final = frozenset({Purpose.API_KEY, Purpose.CREDENTIAL, Purpose.WEBHOOK})
"""Secrets. Personal data are opened with every event that is read, and not recorded one by one."""

Record = Callable[[SealedFor, Opener], None]
"""Keeps who has what opened, durably when it returns. Raises `Away` when it cannot."""


class GuardedVault:
    """A Vault over an EnvelopeVault. `actor` is who opens where the caller names nobody else."""

    def __init__(self, vault: EnvelopeVault, opens: Collection[Purpose], record: Record, *, actor: str) -> None:
        self._vault = vault
        self._opens = frozenset(opens)
        self._record = record
        self._actor = actor

    def prepare(self, customer_id: str) -> None:
        """Make the customer's data keys if there are none. Idempotent, also for concurrent callers. May be `Away`."""
        self._vault.prepare(customer_id)

    def seal(self, plaintext: bytes, owner: SealedFor) -> bytes:
        """Encrypt for `owner`, as the vault does: whatever it is for."""
        return self._vault.seal(plaintext, owner)

    def open(self, ciphertext: bytes, owner: SealedFor, by: Opener | None = None) -> bytes:
        """Decrypt as the vault does, once it is recorded who asked. What does not open then is recorded as well.

        Raises `NotToBeOpened` for a purpose that is not this process's.
        """
        if owner.purpose not in self._opens:
            raise NotToBeOpened(f"This process opens no {owner.purpose} of a customer.")
        if owner.purpose in RECORDED:
            self._record(owner, by or Opener(actor=self._actor))
        return self._vault.open(ciphertext, owner)

    def destroy(self, customer_id: str) -> None:
        """Delete the customer's data keys for ever: nothing sealed for it can be opened again. Idempotent."""
        self._vault.destroy(customer_id)

    def forget(self, customer_id: str) -> None:
        """Drop the customer's data keys from this process's memory; "" drops those of all."""
        self._vault.forget(customer_id)
