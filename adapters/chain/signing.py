"""The key that signs the log's heads: Ed25519, its private half wrapped as customers' data keys are."""

import base64
import binascii
import hashlib
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adapters.kms.vault import DataKeyStore
from application.chain import Head, signed
from application.ports import KeyWrapper, Purpose, SealedFor

_KEPT_UNDER: Final = ":log"
"""Among the data keys, an id that no customer can have: theirs are letters, digits and underscores."""
_SLOT: Final = "log-heads"
_WRAPPED_FOR: Final = SealedFor(_KEPT_UNDER, "signing-key", Purpose.LOG_HEAD)
_KEY_BYTES: Final = 32

SIGNING_KEY_OF: Final = {(_KEPT_UNDER, _SLOT): _WRAPPED_FOR}
"""Where among the data keys the signing key is, and whom it is wrapped for."""


class Signer:
    """Signs heads. Its repr shows no key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        public = private.public_key().public_bytes_raw()
        self.public_key = base64.b64encode(public).decode()
        self.key_id = key_id(public)

    def sign(self, *, position: int, events: int, log_hash: bytes, at: datetime) -> Head:
        """The head that says what the log was up to this position."""
        text = signed(position=position, events=events, log_hash=log_hash.hex(), sealed_at=at, key_id=self.key_id)
        return Head(
            position=position,
            events=events,
            hash=log_hash.hex(),
            sealed_at=at,
            key_id=self.key_id,
            public_key=self.public_key,
            signature=base64.b64encode(self._private.sign(text)).decode(),
        )


def signer(keys: KeyWrapper, store: DataKeyStore) -> Signer:
    """The service's own, made on first use: once, also for concurrent callers.

    Raises `Away` when the wrapping key or the store is, `ValueError` when the stored key was altered.
    """
    wrapped = store.get(_KEPT_UNDER, _SLOT)
    if wrapped is None:
        fresh = Ed25519PrivateKey.generate().private_bytes_raw()
        wrapped = store.add(_KEPT_UNDER, _SLOT, keys.wrap(fresh, _WRAPPED_FOR))
    return _unwrapped(keys, wrapped)


def own_public_key(keys: KeyWrapper, store: DataKeyStore) -> str | None:
    """The public key of the service's own signer, None while nothing was ever signed. Raises as `signer` does."""
    wrapped = store.get(_KEPT_UNDER, _SLOT)
    return None if wrapped is None else _unwrapped(keys, wrapped).public_key


def key_id(public_key: bytes) -> str:
    """A public key's name: the beginning of its SHA-256, in hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def public_key_of(text: str) -> bytes:
    """The bytes of a public key as heads show it. Raises `ValueError` with a sentence."""
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error:
        found = b""
    if len(found) != _KEY_BYTES:
        raise ValueError("A public key is 32 bytes in base64, as each signed head shows it.")
    return found


def canonical(text: str) -> str:
    """A public key in the one way that heads show it. Raises `ValueError` with a sentence."""
    return base64.b64encode(public_key_of(text.strip())).decode()


def genuine(head: Head) -> bool:
    """Whether the key that the head shows has signed exactly this head."""
    try:
        public = public_key_of(head.public_key)
        text = signed(
            position=head.position,
            events=head.events,
            log_hash=head.hash,
            sealed_at=head.sealed_at,
            key_id=key_id(public),
        )
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(head.signature, validate=True), text)
    except (ValueError, InvalidSignature):
        return False
    return head.key_id == key_id(public)


def _unwrapped(keys: KeyWrapper, wrapped: bytes) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(keys.unwrap(wrapped, _WRAPPED_FOR)))
