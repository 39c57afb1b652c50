"""Wrapping and sealing secrets: which key guards what, and what every ciphertext is bound to."""

import struct
from enum import StrEnum

from application.ports import Purpose, SealedFor

_LENGTHS = struct.Struct(">III")

MOST_BYTES = 64 * 1024
"""The largest plaintext that a wrapping key takes, which is what Cloud KMS takes."""


class KeyGroup(StrEnum):
    """The two wrapping keys. A leak of one, or a mistake in who may use it, does not open what the other guards."""

    API_KEYS = "api-keys"
    CREDENTIALS = "credentials"


class DataKeyGroup(StrEnum):
    """What one data key of a customer guards. Those for personal data live as long as the customer does.

    The log holds what they sealed, and is never written anew. What the others sealed is sealed again under their
    successors.
    """

    API_KEYS = "api-keys"
    CREDENTIALS = "credentials"
    PERSONAL = "personal"


def key_group(purpose: Purpose) -> KeyGroup:
    """Which wrapping key guards a purpose. Personal data shares the key of the credentials."""
    return KeyGroup.API_KEYS if purpose is Purpose.API_KEY else KeyGroup.CREDENTIALS


def data_key_group(purpose: Purpose) -> DataKeyGroup:
    """Which of a customer's data keys seals for a purpose."""
    match purpose:
        case Purpose.API_KEY:
            return DataKeyGroup.API_KEYS
        case Purpose.PERSONAL:
            return DataKeyGroup.PERSONAL
    return DataKeyGroup.CREDENTIALS


def associated_data(owner: SealedFor) -> bytes:
    """The owner as bytes for AES-GCM: no two owners have the same ones, because the lengths of the fields come first.

    These bytes are for ever: changing them makes every ciphertext unreadable.
    """
    customer, record, purpose = owner.customer_id.encode(), owner.record_id.encode(), owner.purpose.encode()
    return _LENGTHS.pack(len(customer), len(record), len(purpose)) + customer + record + purpose
