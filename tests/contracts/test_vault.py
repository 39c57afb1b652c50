"""What the vault promises: secrets bound to their owner, keys shared by all callers, and erasure that is one."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from adapters.kms import DataKeyGroup
from adapters.kms.cloud import CloudKms
from adapters.kms.guarded import GuardedVault
from adapters.kms.local import LocalKeyFile
from adapters.kms.vault import EnvelopeVault, StoredKey, data_key_of
from application.ports import Away, KeyDestroyed, NotToBeOpened, Opener, Purpose, SealedFor
from tests.contracts.kms_server import KmsServer

CANARY = b"canary-9d27-plaintext-of-32-byte"
OWNER = SealedFor("acme", "credential-1", Purpose.CREDENTIAL)
OVERHEAD = 33


class MemoryStore:
    """A DataKeyStore in memory, which counts what it is asked."""

    def __init__(self) -> None:
        self.stored: dict[str, list[StoredKey]] = {}
        self.gets = 0
        self.deletes = 0
        self._lock = threading.Lock()

    def keys(self, customer_id: str) -> list[StoredKey]:
        with self._lock:
            self.gets += 1
            return list(self.stored.get(customer_id.lower(), []))

    def get(self, customer_id: str, purpose: str) -> bytes | None:
        return next((k.wrapped for k in self.keys(customer_id) if k.purpose == purpose and not k.retired), None)

    def add(self, customer_id, purpose, wrapped, name=None, *, personal=False) -> bytes:
        with self._lock:
            mine = self.stored.setdefault(customer_id.lower(), [])
            for key in mine:
                if key.purpose == purpose and not key.retired:
                    return key.wrapped
            mine.insert(0, StoredKey(purpose=purpose, wrapped=wrapped, name=name, seals_personal=personal))
            return wrapped

    def replace(self, customer_id, purpose, wrapped, name, *, instead_of, personal=False) -> bool:
        if self.get(customer_id, purpose) != instead_of or customer_id.lower() not in self.stored:
            return False
        retired = [replace(k, retired=k.retired or k.purpose == purpose) for k in self.stored[customer_id.lower()]]
        self.stored[customer_id.lower()] = retired
        self.add(customer_id, purpose, wrapped, name, personal=personal)
        return True

    def delete(self, customer_id: str) -> None:
        with self._lock:
            self.deletes += 1
            self.stored.pop(customer_id.lower(), None)

    @property
    def wrapped(self) -> list[bytes]:
        return [key.wrapped for keys in self.stored.values() for key in keys]


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
        store.stored["thief"] = store.stored["acme"]
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
            assert server.calls == ["Encrypt"] * 3


class TestDataKeys:
    def test_three_for_each_customer_and_none_in_clear(self, vault, store, gate):
        vault.prepare("other")
        for customer in ("acme", "other"):
            assert {key.purpose for key in store.stored[customer]} == {"api-keys", "credentials", "personal"}
        wrapped = store.get("acme", "credentials")
        clear = gate.inner.unwrap(wrapped, data_key_of("acme", DataKeyGroup.CREDENTIALS))
        assert len(clear) == 32
        assert all(clear not in wrapped for wrapped in store.wrapped)
        assert len(set(store.wrapped)) == 6
        assert clear.hex() not in repr(vault) + repr(vars(vault))
        assert repr(clear) not in repr(vault) + repr(vars(vault))

    def test_prepare_is_idempotent(self, vault, store, gate):
        before = dict(store.stored)
        vault.prepare("acme")
        EnvelopeVault(gate, store).prepare("acme")
        assert store.stored == before
        assert gate.wraps == 3

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
        assert len(store.stored["new"]) == 3

    def test_sealing_never_makes_a_key(self, vault, store):
        with pytest.raises(KeyDestroyed):
            vault.seal(CANARY, replace(OWNER, customer_id="unknown"))
        assert "unknown" not in store.stored

    def test_a_stored_key_of_the_wrong_length_is_refused(self, vault, store, gate):
        short = gate.inner.wrap(bytes(16), data_key_of("short", DataKeyGroup.CREDENTIALS))
        store.add("short", "credentials", short, b"1234")
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
        assert not store.stored

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
        sealed, kept = vault.seal(CANARY, OWNER), dict(store.stored)
        vault.destroy("acme")
        with pytest.raises(KeyDestroyed):
            vault.open(sealed, OWNER)
        store.stored = kept  # an operator restored a backup
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
        assert "new" not in store.stored

    def test_holds_no_more_than_its_size_and_drops_the_least_used(self, gate, store):
        vault = EnvelopeVault(gate, store, cache_size=2)
        owners = [SealedFor(customer, "r", Purpose.CREDENTIAL) for customer in ("a", "b", "c")]
        for owner in owners:
            vault.prepare(owner.customer_id)
        vault.seal(CANARY, owners[1])
        for _ in range(3):
            vault.seal(CANARY, owners[2])
        assert set(vault._keys) == {"b", "c"}
        before = gate.unwraps
        vault.seal(CANARY, owners[0])
        assert gate.unwraps == before + 1
        assert set(vault._keys) == {"a", "c"}
        for number in range(20):
            with pytest.raises(KeyDestroyed):
                vault.open(bytes([1]) + number.to_bytes(4, "big") + bytes(28), owners[0])
        assert len(vault._gone) == 2

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


class TestRenewal:
    def test_a_new_key_seals_and_the_old_one_opens(self, vault, gate, store):
        sealed = vault.seal(CANARY, OWNER)
        vault.renew("acme", DataKeyGroup.CREDENTIALS)
        again = vault.seal(CANARY, OWNER)
        assert again[:5] != sealed[:5]
        for reader in (vault, EnvelopeVault(gate, store)):
            assert reader.open(sealed, OWNER) == reader.open(again, OWNER) == CANARY
            assert (reader.sealed_now(sealed, OWNER), reader.sealed_now(again, OWNER)) == (False, True)

    def test_other_groups_keep_theirs(self, vault):
        personal = replace(OWNER, purpose=Purpose.PERSONAL)
        before = vault.seal(CANARY, personal)
        vault.renew("acme", DataKeyGroup.CREDENTIALS)
        assert vault.seal(CANARY, personal)[:5] == before[:5]

    def test_another_process_reads_at_once_and_seals_so_when_it_is_told(self, vault, gate, store):
        elsewhere = EnvelopeVault(gate, store)
        old = elsewhere.seal(CANARY, OWNER)
        vault.renew("acme", DataKeyGroup.CREDENTIALS)
        sealed = vault.seal(CANARY, OWNER)
        assert elsewhere.open(sealed, OWNER) == CANARY
        elsewhere.forget("ACME")
        assert elsewhere.seal(CANARY, OWNER)[:5] == sealed[:5]
        assert elsewhere.open(old, OWNER) == CANARY

    def test_only_the_key_that_is_named_is_unwrapped(self, vault, gate, store):
        for _ in range(5):
            sealed = vault.seal(CANARY, OWNER)
            vault.renew("acme", DataKeyGroup.CREDENTIALS)
        before = gate.unwraps
        assert EnvelopeVault(gate, store).open(sealed, OWNER) == CANARY
        assert gate.unwraps == before + 1

    def test_an_erased_customer_gets_none(self, vault, store):
        vault.destroy("acme")
        with pytest.raises(KeyDestroyed):
            vault.renew("acme", DataKeyGroup.CREDENTIALS)
        assert not store.stored

    def test_a_wrapping_that_changed_meanwhile_is_no_obstacle(self, vault, gate, store):
        inner = store.replace

        def rewrapped_first(customer_id, purpose, wrapped, name, *, instead_of, personal=False):
            store.replace = inner
            clear = gate.inner.unwrap(instead_of, data_key_of(customer_id, DataKeyGroup(purpose)))
            anew = gate.inner.wrap(clear, data_key_of(customer_id, DataKeyGroup(purpose)))
            keys = store.stored[customer_id]
            store.stored[customer_id] = [replace(k, wrapped=anew) if k.wrapped == instead_of else k for k in keys]
            return inner(customer_id, purpose, wrapped, name, instead_of=instead_of, personal=personal)

        store.replace = rewrapped_first
        sealed = vault.seal(CANARY, OWNER)
        vault.renew("acme", DataKeyGroup.CREDENTIALS)
        assert not vault.sealed_now(sealed, OWNER)
        assert vault.open(sealed, OWNER) == CANARY


class TestCustomersFromBeforePersonalDataHadKeysOfTheirOwn:
    @pytest.fixture
    def early(self, vault, store):
        """`acme` as it was: two keys without names, of which the one for credentials has sealed personal data too."""
        kept = [k for k in store.stored["acme"] if k.purpose != "personal"]
        store.stored["acme"] = [replace(k, name=None, seals_personal=k.purpose == "credentials") for k in kept]
        vault.forget("acme")
        return vault

    def test_their_personal_data_are_sealed_and_opened_as_before(self, early, store):
        personal = replace(OWNER, purpose=Purpose.PERSONAL)
        sealed = early.seal(CANARY, personal)
        assert sealed[:5] == early.seal(CANARY, OWNER)[:5]
        early.forget("acme")
        assert early.open(sealed, personal) == CANARY

    def test_and_open_after_a_rotation(self, early, gate, store):
        personal = replace(OWNER, purpose=Purpose.PERSONAL)
        sealed, credential = early.seal(CANARY, personal), early.seal(CANARY, OWNER)
        for group in DataKeyGroup:
            early.renew("acme", group)
        reader = EnvelopeVault(gate, store)
        assert reader.open(sealed, personal) == reader.open(credential, OWNER) == CANARY
        assert reader.seal(CANARY, personal)[:5] not in {sealed[:5], reader.seal(CANARY, OWNER)[:5]}

    def test_no_credentials_key_of_today_opens_personal_data(self, vault, store):
        """The control: such a key is destroyed one day, and must not have sealed what the log keeps."""
        store.stored["acme"] = [k for k in store.stored["acme"] if k.purpose != "personal"]
        vault.forget("acme")
        with pytest.raises(KeyDestroyed):
            vault.seal(CANARY, replace(OWNER, purpose=Purpose.PERSONAL))


class TestGuarded:
    @pytest.fixture
    def told(self):
        return []

    def guarded(self, vault, told, *purposes: Purpose) -> GuardedVault:
        return GuardedVault(vault, purposes, lambda owner, by: told.append((owner, by)), actor="service:1")

    def test_opens_what_it_is_to_and_tells_before(self, vault, told):
        guarded, by = self.guarded(vault, told, Purpose.CREDENTIAL), Opener(actor="worker:1", run_id="r", attempt=1)
        sealed = guarded.seal(CANARY, OWNER)
        assert guarded.open(sealed, OWNER, by) == CANARY
        guarded.open(sealed, OWNER)
        assert told == [(OWNER, by), (OWNER, Opener(actor="service:1"))]

    @pytest.mark.parametrize("purpose", [Purpose.CREDENTIAL, Purpose.API_KEY, Purpose.WEBHOOK, Purpose.PERSONAL])
    def test_seals_everything_and_opens_nothing_else(self, vault, told, purpose):
        owner = replace(OWNER, purpose=purpose)
        guarded = self.guarded(vault, told, *({*Purpose} - {purpose}))
        sealed = guarded.seal(CANARY, owner)
        with pytest.raises(NotToBeOpened):
            guarded.open(sealed, owner)
        assert told == []
        assert self.guarded(vault, told, purpose).open(sealed, owner) == CANARY  # the control

    def test_hands_nothing_out_that_could_not_be_recorded(self, vault):
        def away(*_: object) -> None:
            raise Away("the database is away")

        guarded = GuardedVault(vault, {Purpose.CREDENTIAL, Purpose.PERSONAL}, away, actor="service:1")
        with pytest.raises(Away):
            guarded.open(guarded.seal(CANARY, OWNER), OWNER)
        personal = replace(OWNER, purpose=Purpose.PERSONAL)
        assert guarded.open(guarded.seal(CANARY, personal), personal) == CANARY
