"""What the vault promises: secrets bound to their owner, keys shared by all callers, and erasure that is one."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from adapters.kms.cloud import CloudKms
from adapters.kms.local import LocalKeyFile
from adapters.kms.vault import EnvelopeVault
from application.ports import Away, KeyDestroyed, Purpose, SealedFor
from tests.contracts.kms_server import KmsServer

CANARY = b"canary-9d27-plaintext-of-32-byte"
OWNER = SealedFor("acme", "credential-1", Purpose.CREDENTIAL)
OVERHEAD = 33


class MemoryStore:
    """A DataKeyStore in memory, which counts what it is asked."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], bytes] = {}
        self.gets = 0
        self.deletes = 0
        self._lock = threading.Lock()

    def get(self, customer_id: str, purpose_group: str) -> bytes | None:
        with self._lock:
            self.gets += 1
            return self.keys.get((customer_id, purpose_group))

    def add(self, customer_id: str, purpose_group: str, wrapped: bytes) -> bytes:
        with self._lock:
            return self.keys.setdefault((customer_id, purpose_group), wrapped)

    def delete(self, customer_id: str) -> None:
        with self._lock:
            self.deletes += 1
            for slot in [slot for slot in self.keys if slot[0] == customer_id]:
                del self.keys[slot]


class Gate:
    """A wrapper around a real one that counts, can be away, and can be held up in the middle of an unwrapping."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.away = False
        self.wraps = 0
        self.unwraps = 0
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()

    def wrap(self, plaintext: bytes, owner: SealedFor) -> bytes:
        if self.away:
            raise Away("the wrapping key is away")
        with self._lock:
            self.wraps += 1
        return self.inner.wrap(plaintext, owner)

    def unwrap(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        with self._lock:
            self.unwraps += 1
        self.entered.release()
        assert self.open.wait(30)
        if self.away:
            raise Away("the wrapping key is away")
        return self.inner.unwrap(ciphertext, owner)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def gate(tmp_path):
    return Gate(LocalKeyFile(tmp_path / "wrapping.key"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def vault(gate, store, clock):
    vault = EnvelopeVault(gate, store, clock=clock)
    vault.prepare("acme")
    return vault


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


class TestSealing:
    @pytest.mark.parametrize("purpose", Purpose)
    @pytest.mark.parametrize("plaintext", [b"", b"\0", CANARY, bytes(1_000_000)], ids=len)
    def test_round_trip(self, vault, purpose, plaintext):
        owner = replace(OWNER, purpose=purpose)
        sealed = vault.seal(plaintext, owner)
        assert vault.open(sealed, owner) == plaintext
        assert len(sealed) == len(plaintext) + OVERHEAD
        assert CANARY not in sealed

    def test_two_seals_differ(self, vault):
        assert len({vault.seal(CANARY, OWNER) for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        "foreign",
        [
            replace(OWNER, customer_id="other"),
            replace(OWNER, record_id="credential-2"),
            replace(OWNER, purpose=Purpose.PERSONAL),
            replace(OWNER, purpose=Purpose.API_KEY),
            SealedFor("acm", "ecredential-1", Purpose.CREDENTIAL),
        ],
    )
    def test_opens_for_its_owner_only(self, vault, foreign):
        vault.prepare(foreign.customer_id)
        sealed = vault.seal(CANARY, OWNER)
        with pytest.raises(ValueError) as refusal:
            vault.open(sealed, foreign)
        assert CANARY.decode() not in repr(refusal.value)
        assert vault.open(sealed, OWNER) == CANARY

    def test_a_stored_key_does_not_open_under_another_customers_name(self, vault, store, gate):
        sealed = vault.seal(CANARY, OWNER)
        store.keys["thief", "credentials"] = store.keys["acme", "credentials"]
        with pytest.raises(ValueError):
            EnvelopeVault(gate, store).open(sealed, replace(OWNER, customer_id="thief"))

    def test_every_altered_bit_is_refused(self, vault):
        sealed = vault.seal(CANARY, OWNER)
        for place in range(len(sealed)):
            with pytest.raises(ValueError):
                vault.open(flipped(sealed, place), OWNER)
        for torn in (b"", sealed[:1], sealed[:32], sealed[:-1], sealed + b"\0", CANARY * 2):
            with pytest.raises(ValueError):
                vault.open(torn, OWNER)

    def test_an_altered_secret_is_not_taken_for_an_erased_one(self, vault):
        sealed = vault.seal(CANARY, OWNER)
        for altered, owner in ((flipped(sealed, len(sealed) - 1), OWNER), (sealed, replace(OWNER, record_id="2"))):
            with pytest.raises(ValueError, match="was altered") as refusal:
                vault.open(altered, owner)
            assert not isinstance(refusal.value, KeyDestroyed)

    def test_another_process_opens_it(self, vault, gate, store):
        sealed = vault.seal(CANARY, OWNER)
        assert EnvelopeVault(gate, store).open(sealed, OWNER) == CANARY

    def test_on_cloud_kms(self, store):
        ring = "projects/p/locations/l/keyRings/r/cryptoKeys"
        with (
            KmsServer(frozenset({f"{ring}/api", f"{ring}/credentials"})).running() as server,
            server.client() as client,
        ):
            vault = EnvelopeVault(CloudKms("p", "l", "r", "api", "credentials", client=client), store)
            vault.prepare("acme")
            assert vault.open(vault.seal(CANARY, OWNER), OWNER) == CANARY
            assert server.calls == ["Encrypt", "Encrypt"]


class TestDataKeys:
    def test_two_for_each_customer_and_none_in_clear(self, vault, store, gate):
        vault.prepare("other")
        assert set(store.keys) == {
            (customer, group) for customer in ("acme", "other") for group in ("api-keys", "credentials")
        }
        clear = gate.inner.unwrap(store.keys["acme", "credentials"], SealedFor("acme", "data-key", Purpose.CREDENTIAL))
        assert len(clear) == 32
        assert all(clear not in wrapped for wrapped in store.keys.values())
        assert len(set(store.keys.values())) == 4
        assert clear.hex() not in repr(vault) + repr(vars(vault))
        assert repr(clear) not in repr(vault) + repr(vars(vault))

    def test_prepare_is_idempotent(self, vault, store, gate):
        before = dict(store.keys)
        vault.prepare("acme")
        EnvelopeVault(gate, store).prepare("acme")
        assert store.keys == before
        assert gate.wraps == 2

    def test_concurrent_callers_agree(self, gate, store):
        vaults = [EnvelopeVault(gate, store) for _ in range(4)]
        barrier = threading.Barrier(16)

        def onboard(number: int) -> tuple[bytes, SealedFor]:
            vault, owner = vaults[number % 4], replace(OWNER, customer_id="new", record_id=str(number))
            barrier.wait(30)
            vault.prepare("new")
            return vault.seal(CANARY, owner), owner

        with ThreadPoolExecutor(16) as pool:
            sealed = list(pool.map(onboard, range(16)))
        reader = EnvelopeVault(gate, store)
        assert {reader.open(ciphertext, owner) for ciphertext, owner in sealed} == {CANARY}
        assert len(store.keys) == 2

    def test_sealing_never_makes_a_key(self, vault, store):
        with pytest.raises(KeyDestroyed):
            vault.seal(CANARY, replace(OWNER, customer_id="unknown"))
        assert ("unknown", "credentials") not in store.keys

    def test_a_stored_key_of_the_wrong_length_is_refused(self, vault, store, gate):
        data_key_of = SealedFor("short", "data-key", Purpose.CREDENTIAL)
        store.keys["short", "credentials"] = gate.inner.wrap(bytes(16), data_key_of)
        with pytest.raises(ValueError, match="wrong length"):
            vault.seal(CANARY, replace(OWNER, customer_id="short"))


class TestErasure:
    def test_what_was_sealed_is_gone(self, vault, store):
        sealed = vault.seal(CANARY, OWNER)
        vault.destroy("acme")
        vault.destroy("acme")
        with pytest.raises(KeyDestroyed):
            vault.open(sealed, OWNER)
        with pytest.raises(KeyDestroyed):
            vault.seal(CANARY, OWNER)
        assert not store.keys

    def test_other_customers_keep_theirs(self, vault):
        vault.prepare("other")
        other = replace(OWNER, customer_id="other")
        sealed = vault.seal(CANARY, other)
        vault.destroy("acme")
        assert vault.open(sealed, other) == CANARY

    def test_it_stays_gone_when_the_customer_gets_new_keys(self, vault):
        sealed = vault.seal(CANARY, OWNER)
        vault.destroy("acme")
        vault.prepare("acme")
        with pytest.raises(KeyDestroyed):
            vault.open(sealed, OWNER)
        assert vault.open(vault.seal(b"new", OWNER), OWNER) == b"new"

    def test_another_process_follows_when_its_memory_ends(self, vault, gate, store, clock):
        elsewhere = EnvelopeVault(gate, store, cache_ttl_s=300, clock=clock)
        sealed = vault.seal(CANARY, OWNER)
        assert elsewhere.open(sealed, OWNER) == CANARY
        vault.destroy("acme")
        clock.now += 299.9
        assert elsewhere.open(sealed, OWNER) == CANARY  # the price of the cache, as documented
        clock.now += 0.2
        with pytest.raises(KeyDestroyed):
            elsewhere.open(sealed, OWNER)

    def test_another_process_takes_up_new_keys_at_once(self, vault, gate, store, clock):
        elsewhere = EnvelopeVault(gate, store, clock=clock)
        elsewhere.open(vault.seal(CANARY, OWNER), OWNER)
        vault.destroy("acme")
        vault.prepare("acme")
        sealed = vault.seal(b"new", OWNER)
        assert elsewhere.open(sealed, OWNER) == b"new"
        vault.destroy("acme")
        vault.prepare("acme")
        elsewhere.prepare("acme")
        assert vault.open(elsewhere.seal(b"newer", OWNER), OWNER) == b"newer"

    def test_a_key_being_loaded_meanwhile_is_not_remembered(self, vault, gate, store):
        sealed = vault.seal(CANARY, OWNER)
        vault.forget("acme")
        gate.open.clear()
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(vault.open, sealed, OWNER)
            assert gate.entered.acquire(timeout=30)
            vault.destroy("acme")
            gate.open.set()
            assert reading.result(30) == CANARY  # it began before
        with pytest.raises(KeyDestroyed):
            vault.open(sealed, OWNER)

    def test_replay_asks_once_for_a_key_that_is_gone(self, vault, store):
        sealed = [vault.seal(CANARY, replace(OWNER, record_id=str(number))) for number in range(1000)]
        vault.destroy("acme")
        before = store.gets
        for number, ciphertext in enumerate(sealed):
            with pytest.raises(KeyDestroyed):
                vault.open(ciphertext, replace(OWNER, record_id=str(number)))
        assert store.gets - before == 1

    def test_what_was_taken_for_gone_is_looked_for_again(self, vault, store, clock):
        sealed, kept = vault.seal(CANARY, OWNER), dict(store.keys)
        vault.destroy("acme")
        with pytest.raises(KeyDestroyed):
            vault.open(sealed, OWNER)
        store.keys = kept  # an operator restored a backup
        clock.now += 301
        assert vault.open(sealed, OWNER) == CANARY


class TestCache:
    def test_one_unwrapping_serves_many(self, vault, gate, store):
        reader = EnvelopeVault(gate, store)
        sealed = [vault.seal(CANARY, OWNER) for _ in range(100)]
        assert {reader.open(ciphertext, OWNER) for ciphertext in sealed} == {CANARY}
        assert gate.unwraps == 1

    def test_threads_that_miss_together_unwrap_once(self, vault, gate, store):
        reader, sealed = EnvelopeVault(gate, store), vault.seal(CANARY, OWNER)
        gate.open.clear()
        with ThreadPoolExecutor(16) as pool:
            readings = [pool.submit(reader.open, sealed, OWNER) for _ in range(16)]
            assert gate.entered.acquire(timeout=30)
            gate.open.set()
            assert {reading.result(30) for reading in readings} == {CANARY}
        assert gate.unwraps == 1

    def test_away_reaches_all_that_wait_and_passes(self, vault, gate, store):
        reader, sealed = EnvelopeVault(gate, store), vault.seal(CANARY, OWNER)
        gate.open.clear()
        gate.away = True
        with ThreadPoolExecutor(8) as pool:
            readings = [pool.submit(reader.open, sealed, OWNER) for _ in range(8)]
            assert gate.entered.acquire(timeout=30)
            gate.open.set()
            for reading in readings:
                with pytest.raises(Away):
                    reading.result(30)
        gate.away = False
        assert reader.open(sealed, OWNER) == CANARY

    def test_prepare_is_away_with_the_wrapping_key(self, vault, gate, store):
        gate.away = True
        with pytest.raises(Away):
            vault.prepare("new")
        assert ("new", "api-keys") not in store.keys

    def test_holds_no_more_than_its_size_and_drops_the_least_used(self, gate, store):
        vault = EnvelopeVault(gate, store, cache_size=4)
        owners = [SealedFor(customer, "r", Purpose.CREDENTIAL) for customer in ("a", "b", "c")]
        for owner in owners:
            vault.prepare(owner.customer_id)
        vault.seal(CANARY, owners[1])
        for _ in range(3):
            vault.seal(CANARY, owners[2])
        assert len(vault._keys) == 4
        before = gate.unwraps
        vault.seal(CANARY, owners[0])
        assert gate.unwraps == before + 1
        assert len(vault._keys) == 4
        for number in range(20):
            with pytest.raises(KeyDestroyed):
                vault.open(bytes([1]) + number.to_bytes(4, "big") + bytes(28), owners[0])
        assert len(vault._gone) == 4

    def test_a_cached_seal_takes_microseconds(self, vault):
        plaintext = bytes(100)

        def fastest_us(call: Callable[[], object]) -> float:
            best = float("inf")
            for _ in range(20):
                started = time.perf_counter()
                for _ in range(500):
                    call()
                best = min(best, time.perf_counter() - started)
            return best / 500 * 1e6

        sealed = vault.seal(plaintext, OWNER)
        seal_us, open_us = (
            fastest_us(lambda: vault.seal(plaintext, OWNER)),
            fastest_us(lambda: vault.open(sealed, OWNER)),
        )
        print(f"seal {seal_us:.1f} µs, open {open_us:.1f} µs")  # noqa: T201 - shown by pytest -s
        assert max(seal_us, open_us) < 50  # ten times what an idle machine needs
