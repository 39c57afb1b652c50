"""Envelope encryption: a customer's secrets are sealed under data keys of its own, and only those are wrapped."""

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from adapters.kms import DataKeyGroup, associated_data, data_key_group
from application.ports import KeyDestroyed, KeyWrapper, Opener, Purpose, SealedFor, Wrapped

_FORMAT = b"\x01"
_KEY_BITS, NAME_BYTES, _NONCE_BYTES, _TAG_BYTES = 256, 4, 12, 16
_HEADER_BYTES = len(_FORMAT) + NAME_BYTES
_BODY_AT = _HEADER_BYTES + _NONCE_BYTES
_WRAPPED_FOR = {
    DataKeyGroup.API_KEYS: Purpose.API_KEY,
    DataKeyGroup.CREDENTIALS: Purpose.CREDENTIAL,
    DataKeyGroup.PERSONAL: Purpose.PERSONAL,
}
_DESTROYED = "The customer does not have the data key (any more) that is needed here."
_CURRENT: Final = b""
"""In the place of a header: the key that seals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A data key as it is kept: wrapped, and `retired` once another one seals in its place.

    `name` is the one in the ciphertexts' headers, None where it was made before names were kept.
    """

    purpose: str
    wrapped: bytes = field(repr=False)
    name: bytes | None = None
    retired: bool = False
    seals_personal: bool = False


class DataKeyStore(Protocol):
    """Keeps wrapped data keys, beside the event log and never in it. Any method may raise `Away`."""

    def keys(self, customer_id: str) -> Sequence[StoredKey]:
        """All keys of the customer, the newest first."""

    def get(self, customer_id: str, purpose: str) -> bytes | None:
        """The wrapped key that seals for the purpose."""

    def add(
        self, customer_id: str, purpose: str, wrapped: Wrapped, name: bytes | None = None, *, personal: bool = False
    ) -> bytes:
        """Store the key if none seals. The one that stands, durable when this returns: all callers get the same.

        Raises `KeyDestroyed` for a customer who was erased.
        """

    def replace(
        self,
        customer_id: str,
        purpose: str,
        wrapped: Wrapped,
        name: bytes,
        *,
        instead_of: bytes | None,
        personal: bool = False,
    ) -> bool:
        """Have this key seal from now on, and retire the one before it, if that is (still) `instead_of`.

        Never for a customer that has no keys: what was erased stays erased. Tells all processes.
        """

    def delete(self, customer_id: str) -> None:
        """Forget all keys of the customer. Idempotent. Tells all processes."""


@dataclass(frozen=True, slots=True, repr=False)
class _DataKey:
    header: bytes
    aead: AESGCM
    wrapped: bytes
    stale_at: float


_Slot = tuple[DataKeyGroup, bytes]


class EnvelopeVault:
    """A Vault with data keys of three groups for each customer: API keys, credentials, personal data.

    In each group one seals; those before it open what they sealed. The sealed form is one byte of format, four that
    name the data key, a random 96-bit nonce, and AES-256-GCM's ciphertext and tag: 33 bytes more than the plaintext.
    Header, customer, record and purpose are authenticated. Random nonces allow 2^32 seals under one data key.

    Unwrapped data keys of at most `cache_size` customers are remembered for `cache_ttl_s` seconds, or until `forget`:
    where nobody calls that, a process can read for that long what another one has erased. For as long, an erased
    customer's id must not be prepared again. Safe for threads: those that miss the same key wait for one unwrapping.
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
        self._keys: OrderedDict[str, dict[_Slot, _DataKey]] = OrderedDict()
        self._gone: OrderedDict[tuple[str, _Slot], float] = OrderedDict()
        self._loads: dict[tuple[str, _Slot], Future[_DataKey]] = {}
        self._forgotten = 0

    def prepare(self, customer_id: str) -> None:
        """Make the customer's data keys if there are none. Idempotent, also for concurrent callers. May be `Away`.

        Raises `KeyDestroyed` for a customer who was erased, where the store knows who was.
        """
        standing = {stored.purpose: stored.wrapped for stored in self._store.keys(customer_id) if not stored.retired}
        for group in DataKeyGroup:
            forgotten = self._forgotten
            if group.value not in standing:
                key, wrapped = self._made(customer_id, group)
                personal = group is DataKeyGroup.PERSONAL
                stands = self._store.add(
                    customer_id, group.value, wrapped, key.header[len(_FORMAT) :], personal=personal
                )
                standing[group.value] = stands
                if stands == wrapped:
                    self._remember(customer_id, group, key, forgotten, current=True)
            with self._lock:
                mine = self._keys.get(_same(customer_id), {})
                known = mine.get((group, _CURRENT))
                if known is not None and known.wrapped != standing[group.value]:
                    del mine[group, _CURRENT]

    def renew(self, customer_id: str, group: DataKeyGroup) -> None:
        """Have a new data key seal for the group from now on; those before it go on opening.

        Raises `KeyDestroyed` for a customer without data keys, `Away` as `prepare` does.
        """
        while True:
            stored = self._store.keys(customer_id)
            if not stored:
                raise KeyDestroyed(_DESTROYED)
            standing = next((s.wrapped for s in stored if s.purpose == group.value and not s.retired), None)
            key, wrapped = self._made(customer_id, group)
            renewed = self._store.replace(
                customer_id,
                group.value,
                wrapped,
                key.header[len(_FORMAT) :],
                instead_of=standing,
                personal=group is DataKeyGroup.PERSONAL,
            )
            if renewed:
                self.forget(customer_id)
                return

    def sealed_now(self, ciphertext: bytes, owner: SealedFor) -> bool:
        """Whether it was sealed under the key that seals now."""
        return ciphertext[:_HEADER_BYTES] == self._key(owner.customer_id, data_key_group(owner.purpose)).header

    def seal(self, plaintext: bytes, owner: SealedFor) -> bytes:
        """Encrypt for `owner`. Raises `KeyDestroyed` for a customer without data keys, `Away` as `prepare` does."""
        key = self._key(owner.customer_id, data_key_group(owner.purpose))
        nonce = os.urandom(_NONCE_BYTES)
        return key.header + nonce + key.aead.encrypt(nonce, plaintext, key.header + associated_data(owner))

    def open(self, ciphertext: bytes, owner: SealedFor, by: Opener | None = None) -> bytes:  # noqa: ARG002 - the port's
        """Decrypt what `seal` returned for the same owner.

        Raises `KeyDestroyed` when the customer does not have its data key, another `ValueError` when it was altered or
        belongs to another record or purpose, `Away` when the wrapping key or the store is. Records nothing.
        """
        if len(ciphertext) < _BODY_AT + _TAG_BYTES or ciphertext[:1] != _FORMAT:
            raise ValueError("This is not a sealed secret.")
        header = ciphertext[:_HEADER_BYTES]
        key = self._key_named(header, owner.customer_id, data_key_group(owner.purpose))
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
        """Drop the customer's data keys from this process's memory, after the store has changed; "" drops all."""
        with self._lock:
            self._forgotten += 1  # a key that is being loaded now must not be remembered
            if not customer_id:
                self._keys.clear()
                self._loads.clear()
                return
            self._keys.pop(_same(customer_id), None)
            for load in [load for load in self._loads if load[0] == _same(customer_id)]:
                del self._loads[load]

    def _made(self, customer_id: str, group: DataKeyGroup) -> tuple[_DataKey, Wrapped]:
        key = AESGCM.generate_key(_KEY_BITS)
        wrapped = self._wrapper.wrap(key, data_key_of(customer_id, group))
        return self._data_key(key, wrapped), wrapped

    def _key_named(self, header: bytes, customer_id: str, group: DataKeyGroup) -> _DataKey:
        """The data key that the header names. One that is gone is not looked for every time: replay stays fast."""
        name = (_same(customer_id), (group, header))
        with self._lock:
            gone_until = self._gone.get(name)
            if gone_until is not None and self._clock() < gone_until:
                raise KeyDestroyed(_DESTROYED)
        try:
            return self._key(customer_id, group, header)
        except KeyDestroyed:
            with self._lock:
                self._gone[name] = self._clock() + self._ttl_s
                self._gone.move_to_end(name)
                if len(self._gone) > self._size:
                    self._gone.popitem(last=False)
            raise

    def _key(self, customer_id: str, group: DataKeyGroup, header: bytes = _CURRENT) -> _DataKey:
        same, slot = _same(customer_id), (group, header)
        with self._lock:
            key = self._keys.get(same, {}).get(slot)
            if key is not None and self._clock() < key.stale_at:
                self._keys.move_to_end(same)
                return key
            load, first = self._loads.get((same, slot)), False
            if load is None:
                load, first = Future(), True
                self._loads[same, slot] = load
            forgotten = self._forgotten
        if first:
            try:
                key, current = self._load(customer_id, group, header)
                self._remember(customer_id, group, key, forgotten, current=current)
                load.set_result(key)
            except BaseException as error:  # noqa: BLE001 - those who wait get it from the future, as this thread does
                load.set_exception(error)
            finally:
                with self._lock:
                    if self._loads.get((same, slot)) is load:
                        del self._loads[same, slot]
        return load.result()

    def _load(self, customer_id: str, group: DataKeyGroup, header: bytes) -> tuple[_DataKey, bool]:
        """The key, and whether it is the one that seals."""
        stored = self._store.keys(customer_id)
        sealing = _sealing(stored, group)
        candidates: Iterable[StoredKey] = _opening(stored, group, header[len(_FORMAT) :]) if header else sealing
        for candidate in candidates:
            key = self._unwrapped(customer_id, candidate)
            if header in (_CURRENT, key.header):
                return key, candidate in sealing
        raise KeyDestroyed(_DESTROYED)

    def _unwrapped(self, customer_id: str, stored: StoredKey) -> _DataKey:
        key = self._wrapper.unwrap(stored.wrapped, data_key_of(customer_id, DataKeyGroup(stored.purpose)))
        if len(key) * 8 != _KEY_BITS:
            raise ValueError("A stored data key has the wrong length.")
        return self._data_key(key, stored.wrapped)

    def _data_key(self, key: bytes, wrapped: bytes) -> _DataKey:
        return _DataKey(_FORMAT + name_of(key), AESGCM(key), wrapped, self._clock() + self._ttl_s)

    def _remember(self, customer_id: str, group: DataKeyGroup, key: _DataKey, forgotten: int, *, current: bool) -> None:
        with self._lock:
            if self._forgotten != forgotten:
                return
            same = _same(customer_id)
            mine = self._keys.setdefault(same, {})
            mine[group, key.header] = key
            if current:
                mine[group, _CURRENT] = key
            self._keys.move_to_end(same)
            if len(self._keys) > self._size:
                self._keys.popitem(last=False)


def name_of(key: bytes) -> bytes:
    """A data key's name in ciphertexts.

    A digest of the key rather than a count: a key made after an erasure never takes the old one's name, and wrapping
    the same key anew does not change it.
    """
    return hmac.digest(key, b"convergence data key id", "sha256")[:NAME_BYTES]


def data_key_of(customer_id: str, group: DataKeyGroup) -> SealedFor:
    """Whom a data key is wrapped for. Ids that differ only in case are one customer, and share its keys."""
    return SealedFor(_same(customer_id), "data-key", _WRAPPED_FOR[group])


def _same(customer_id: str) -> str:
    return customer_id.lower()


def _sealing(stored: Sequence[StoredKey], group: DataKeyGroup) -> Sequence[StoredKey]:
    """The key that seals for the group, if there is one.

    For personal data of a customer from before these had keys of their own, one of those that have sealed it then.
    """
    own = [s for s in stored if s.purpose == group.value and not s.retired]
    if own or group is not DataKeyGroup.PERSONAL:
        return own
    return [s for s in stored if s.purpose == DataKeyGroup.CREDENTIALS.value and s.seals_personal][:1]


def _opening(stored: Sequence[StoredKey], group: DataKeyGroup, name: bytes) -> Sequence[StoredKey]:
    """The keys that may have sealed for the group under this name: the one that has it, or any without a name."""
    purposes = {group.value}
    if group is DataKeyGroup.PERSONAL:
        purposes.add(DataKeyGroup.CREDENTIALS.value)
    fitting = [s for s in stored if s.purpose in purposes and (s.seals_personal or group is not DataKeyGroup.PERSONAL)]
    return [s for s in fitting if s.name == name] or [s for s in fitting if s.name is None]
