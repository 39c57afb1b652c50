"""Envelope encryption: a customer's secrets are sealed under data keys of its own, and only those are wrapped."""

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from adapters.kms import KeyGroup, associated_data, key_group
from application.ports import KeyDestroyed, KeyWrapper, Purpose, SealedFor

_FORMAT = b"\x01"
_KEY_BITS, _ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 256, 4, 12, 16
_HEADER_BYTES = len(_FORMAT) + _ID_BYTES
_BODY_AT = _HEADER_BYTES + _NONCE_BYTES
_WRAPPED_FOR = {KeyGroup.API_KEYS: Purpose.API_KEY, KeyGroup.CREDENTIALS: Purpose.CREDENTIAL}
_DESTROYED = "The customer does not have the data key (any more) that is needed here."


class DataKeyStore(Protocol):
    """Keeps wrapped data keys, beside the event log and never in it. Any method may raise `Away`."""

    def get(self, customer_id: str, purpose_group: str) -> bytes | None: ...

    def add(self, customer_id: str, purpose_group: str, wrapped: bytes) -> bytes:
        """Store the key if there is none. The one that stands, durable when this returns: all callers get the same."""

    def delete(self, customer_id: str) -> None:
        """Forget all keys of the customer. Idempotent."""


@dataclass(frozen=True, slots=True, repr=False)
class _DataKey:
    header: bytes
    aead: AESGCM
    wrapped: bytes
    stale_at: float


class EnvelopeVault:
    """A Vault with two data keys for each customer: one for API keys, one for credentials and personal data.

    The sealed form is one byte of format, four that name the data key, a random 96-bit nonce, and AES-256-GCM's
    ciphertext and tag: 33 bytes more than the plaintext. Header, customer, record and purpose are authenticated.
    Random nonces allow 2^32 seals under one data key.

    Unwrapped data keys are remembered for `cache_ttl_s` seconds, at most `cache_size` of them, so a process can read
    for that long what another one has erased. For as long, an erased customer's id must not be prepared again.
    Safe for threads: those that miss the same key wait for one unwrapping.
    """

    def __init__(
        self,
        wrapper: KeyWrapper,
        store: DataKeyStore,
        *,
        cache_ttl_s: float = 300,
        cache_size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wrapper = wrapper
        self._store = store
        self._ttl_s = cache_ttl_s
        self._size = cache_size
        self._clock = clock
        self._lock = Lock()
        self._keys: OrderedDict[tuple[str, KeyGroup], _DataKey] = OrderedDict()
        self._gone: OrderedDict[tuple[str, KeyGroup, bytes], float] = OrderedDict()
        self._loads: dict[tuple[str, KeyGroup], Future[_DataKey]] = {}
        self._forgotten = 0

    def prepare(self, customer_id: str) -> None:
        """Make the customer's data keys if there are none. Idempotent, also for concurrent callers. May be `Away`."""
        for group in KeyGroup:
            forgotten = self._forgotten
            standing = self._store.get(customer_id, group.value)
            if standing is None:
                key = AESGCM.generate_key(_KEY_BITS)
                wrapped = self._wrapper.wrap(key, _data_key_of(customer_id, group))
                standing = self._store.add(customer_id, group.value, wrapped)
                if standing == wrapped:
                    self._remember((customer_id, group), self._data_key(key, wrapped), forgotten)
            with self._lock:
                known = self._keys.get((customer_id, group))
                if known is not None and known.wrapped != standing:
                    del self._keys[customer_id, group]

    def seal(self, plaintext: bytes, owner: SealedFor) -> bytes:
        """Encrypt for `owner`. Raises `KeyDestroyed` for a customer without data keys, `Away` as `prepare` does."""
        key = self._key(owner.customer_id, key_group(owner.purpose))
        nonce = os.urandom(_NONCE_BYTES)
        return key.header + nonce + key.aead.encrypt(nonce, plaintext, key.header + associated_data(owner))

    def open(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        """Decrypt what `seal` returned for the same owner.

        Raises `KeyDestroyed` when the customer does not have its data key, another `ValueError` when it was altered or
        belongs to another record or purpose, `Away` when the wrapping key or the store is.
        """
        if len(ciphertext) < _BODY_AT + _TAG_BYTES or ciphertext[:1] != _FORMAT:
            raise ValueError("This is not a sealed secret.")
        header = ciphertext[:_HEADER_BYTES]
        key = self._key_named(header, owner.customer_id, key_group(owner.purpose))
        try:
            return key.aead.decrypt(
                ciphertext[_HEADER_BYTES:_BODY_AT], ciphertext[_BODY_AT:], header + associated_data(owner)
            )
        except InvalidTag:
            raise ValueError("The sealed secret was altered, or belongs to another owner.") from None

    def destroy(self, customer_id: str) -> None:
        """Delete the customer's data keys for ever: nothing sealed for it can be opened again. Idempotent."""
        self._store.delete(customer_id)
        self.forget(customer_id)

    def forget(self, customer_id: str) -> None:
        """Drop the customer's data keys from this process's memory, after the store has deleted them."""
        with self._lock:
            self._forgotten += 1  # a key that is being loaded now must not be remembered
            for group in KeyGroup:
                self._keys.pop((customer_id, group), None)
                self._loads.pop((customer_id, group), None)

    def _key_named(self, header: bytes, customer_id: str, group: KeyGroup) -> _DataKey:
        """The data key that the header names. One that is gone is not looked for every time: replay stays fast."""
        name = (customer_id, group, header)
        with self._lock:
            gone_until = self._gone.get(name)
            if gone_until is not None and self._clock() < gone_until:
                raise KeyDestroyed(_DESTROYED)
        key: _DataKey | None = None
        try:
            key = self._key(customer_id, group)
            if key.header != header and self._store.get(customer_id, group.value) != key.wrapped:
                with self._lock:  # another process made a new one
                    if self._keys.get((customer_id, group)) is key:
                        del self._keys[customer_id, group]
                key = self._key(customer_id, group)
        except KeyDestroyed:
            key = None
        if key is not None and key.header == header:
            return key
        with self._lock:
            self._gone[name] = self._clock() + self._ttl_s
            self._gone.move_to_end(name)
            if len(self._gone) > self._size:
                self._gone.popitem(last=False)
        raise KeyDestroyed(_DESTROYED)

    def _key(self, customer_id: str, group: KeyGroup) -> _DataKey:
        slot = (customer_id, group)
        with self._lock:
            key = self._keys.get(slot)
            if key is not None and self._clock() < key.stale_at:
                self._keys.move_to_end(slot)
                return key
            load, first = self._loads.get(slot), False
            if load is None:
                load, first = Future(), True
                self._loads[slot] = load
            forgotten = self._forgotten
        if first:
            try:
                key = self._load(customer_id, group)
                self._remember(slot, key, forgotten)
                load.set_result(key)
            except BaseException as error:  # noqa: BLE001 - those who wait get it from the future, as this thread does
                load.set_exception(error)
            finally:
                with self._lock:
                    if self._loads.get(slot) is load:
                        del self._loads[slot]
        return load.result()

    def _load(self, customer_id: str, group: KeyGroup) -> _DataKey:
        wrapped = self._store.get(customer_id, group.value)
        if wrapped is None:
            raise KeyDestroyed(_DESTROYED)
        key = self._wrapper.unwrap(wrapped, _data_key_of(customer_id, group))
        if len(key) * 8 != _KEY_BITS:
            raise ValueError("A stored data key has the wrong length.")
        return self._data_key(key, wrapped)

    def _data_key(self, key: bytes, wrapped: bytes) -> _DataKey:
        # Named by a digest of the key rather than by a count: a key made after an erasure never takes the old one's
        # name, and wrapping the same key anew does not change it.
        name = hmac.digest(key, b"convergence data key id", "sha256")[:_ID_BYTES]
        return _DataKey(_FORMAT + name, AESGCM(key), wrapped, self._clock() + self._ttl_s)

    def _remember(self, slot: tuple[str, KeyGroup], key: _DataKey, forgotten: int) -> None:
        with self._lock:
            if self._forgotten != forgotten:
                return
            self._keys[slot] = key
            self._keys.move_to_end(slot)
            if len(self._keys) > self._size:
                self._keys.popitem(last=False)


def _data_key_of(customer_id: str, group: KeyGroup) -> SealedFor:
    # Ids that differ only in case are one customer, and share its keys.
    return SealedFor(customer_id.lower(), "data-key", _WRAPPED_FOR[group])
