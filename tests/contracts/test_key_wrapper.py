"""What every key wrapper promises, checked on the key file and on the Cloud KMS client against a gRPC server."""

import concurrent.futures
import logging
import multiprocessing
import os
import stat
import time
import traceback
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.auth.credentials import AnonymousCredentials
from google.cloud.kms_v1 import DecryptRequest

from adapters.kms import KeyGroup, associated_data
from adapters.kms.cloud import CloudKms, connect
from adapters.kms.local import KeyFileRefused, LocalKeyFile
from application.ports import Away, Purpose, SealedFor
from tests.contracts.kms_server import Faults, KmsServer

CANARY = b"canary-5f1c-plaintext-of-32-byte"
OWNER = SealedFor("acme", "credential-1", Purpose.CREDENTIAL)
RING = "projects/p/locations/l/keyRings/r/cryptoKeys"
FOREIGN = [
    replace(OWNER, customer_id="acmf"),
    replace(OWNER, record_id="credential-2"),
    replace(OWNER, purpose=Purpose.PERSONAL),
    replace(OWNER, purpose=Purpose.API_KEY),
    SealedFor("acmec", "redential-1", Purpose.CREDENTIAL),
    SealedFor("acm", "ecredential-1", Purpose.CREDENTIAL),
    SealedFor("", "acmecredential-1", Purpose.CREDENTIAL),
]


@pytest.fixture
def server():
    with KmsServer(frozenset({f"{RING}/api", f"{RING}/credentials"})).running() as running:
        yield running


@pytest.fixture
def cloud(server):
    with server.client() as client:
        yield CloudKms("p", "l", "r", "api", "credentials", client=client, timeout_s=1.0)


@pytest.fixture
def local(tmp_path):
    return LocalKeyFile(tmp_path / "keys" / "wrapping.key")


@pytest.fixture(params=["cloud", "local"])
def wrapper(request):
    return request.getfixturevalue(request.param)


def says(error: BaseException) -> str:
    """Everything that a log could print of an exception and of those behind it."""
    seen, text = error, ""
    while seen is not None:
        text += f"{seen!r} {seen} {vars(seen)!r} {seen.args!r}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return text + "".join(traceback.format_exception(error))


def assert_silent(error: BaseException) -> None:
    text = says(error)
    for form in (CANARY.decode(), CANARY.hex(), repr(CANARY)):
        assert form not in text


# The checks are functions, so that they can be shown to fail on wrappers that are broken on purpose.


def check_round_trip(wrapper) -> None:
    for plaintext in (b"", b"\0", CANARY, os.urandom(64 * 1024)):
        for purpose in Purpose:
            owner = replace(OWNER, purpose=purpose)
            assert wrapper.unwrap(wrapper.wrap(plaintext, owner), owner) == plaintext
    unicode = SealedFor("ärger\0", "", Purpose.PERSONAL)
    assert wrapper.unwrap(wrapper.wrap(CANARY, unicode), unicode) == CANARY


def check_foreign_owners_are_refused(wrapper) -> None:
    ciphertext = wrapper.wrap(CANARY, OWNER)
    for foreign in FOREIGN:
        with pytest.raises(ValueError) as refusal:
            wrapper.unwrap(ciphertext, foreign)
        assert_silent(refusal.value)


def check_altered_bits_are_refused(wrapper) -> None:
    ciphertext = wrapper.wrap(CANARY, OWNER)
    for place in range(len(ciphertext)):
        altered = bytearray(ciphertext)
        altered[place] ^= 1 << place % 8
        with pytest.raises(ValueError) as refusal:
            wrapper.unwrap(bytes(altered), OWNER)
        assert_silent(refusal.value)
    for torn in (b"", ciphertext[:1], ciphertext[:20], ciphertext[:-1], ciphertext + b"\0", CANARY):
        with pytest.raises(ValueError):
            wrapper.unwrap(torn, OWNER)


def check_two_wraps_differ(wrapper) -> None:
    assert len({wrapper.wrap(CANARY, OWNER) for _ in range(20)}) == 20


def check_ciphertext_hides_plaintext(wrapper) -> None:
    assert CANARY not in wrapper.wrap(CANARY, OWNER)


CHECKS = [
    check_round_trip,
    check_foreign_owners_are_refused,
    check_altered_bits_are_refused,
    check_two_wraps_differ,
    check_ciphertext_hides_plaintext,
]


class TestEveryWrapper:
    @pytest.mark.parametrize("check", CHECKS)
    def test_keeps(self, wrapper, check):
        check(wrapper)

    def test_takes_64_kib_and_no_more(self, wrapper):
        with pytest.raises(ValueError, match="at most 65536 bytes") as refusal:
            wrapper.wrap(CANARY * 3000, OWNER)
        assert_silent(refusal.value)

    def test_repr_shows_no_key(self, wrapper, tmp_path):
        wrapper.wrap(CANARY, OWNER)
        root = (tmp_path / "keys" / "wrapping.key").read_text() if isinstance(wrapper, LocalKeyFile) else CANARY.hex()
        secret = root.split(":")[1] if ":" in root else root
        assert secret not in repr(wrapper)
        assert repr(bytes.fromhex(secret)) not in f"{wrapper!r} {wrapper}"

    def test_threads_share_one(self, wrapper):
        def trip(number: int) -> bool:
            owner, plaintext = replace(OWNER, record_id=str(number)), str(number).encode()
            return wrapper.unwrap(wrapper.wrap(plaintext, owner), owner) == plaintext

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(trip, range(100)))


class Broken:
    """A working wrapper with one mistake, which the checks must find."""

    def __init__(self, mistake: str) -> None:
        self.mistake = mistake
        self.aead = AESGCM(AESGCM.generate_key(256))

    def bound(self, owner: SealedFor) -> bytes | None:
        match self.mistake:
            case "no owner":
                return None
            case "fields run together":
                return (owner.customer_id + owner.record_id + owner.purpose).encode()
            case "no purpose":
                return associated_data(replace(owner, purpose=Purpose.CREDENTIAL))
            case _:
                return associated_data(owner)

    def wrap(self, plaintext: bytes, owner: SealedFor) -> bytes:
        if self.mistake == "no encryption":
            return plaintext
        nonce = bytes(12) if self.mistake == "one nonce" else os.urandom(12)
        return nonce + self.aead.encrypt(nonce, plaintext, self.bound(owner))

    def unwrap(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        if self.mistake == "no encryption":
            return ciphertext
        try:
            return self.aead.decrypt(ciphertext[:12], ciphertext[12:], self.bound(owner))
        except (InvalidTag, ValueError):
            raise ValueError(CANARY if self.mistake == "tells" else "altered") from None


class TestTheChecksFind:
    """The negative control: a check that cannot fail is none."""

    @pytest.mark.parametrize(
        ("mistake", "check"),
        [
            ("no owner", check_foreign_owners_are_refused),
            ("fields run together", check_foreign_owners_are_refused),
            ("no purpose", check_foreign_owners_are_refused),
            ("tells", check_foreign_owners_are_refused),
            ("tells", check_altered_bits_are_refused),
            ("no encryption", check_altered_bits_are_refused),
            ("no encryption", check_ciphertext_hides_plaintext),
            ("one nonce", check_two_wraps_differ),
        ],
    )
    def test_a_wrapper_with(self, mistake, check):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(Broken(mistake))

    @pytest.mark.parametrize("check", CHECKS)
    def test_nothing_in_one_without_mistake(self, check):
        check(Broken(""))


class TestCloudKms:
    def test_uses_the_key_that_the_purpose_names(self, server):
        with server.client() as client:
            only_api = CloudKms("p", "l", "r", "api", "absent", client=client, timeout_s=1.0)
            only_api.wrap(CANARY, replace(OWNER, purpose=Purpose.API_KEY))
            for purpose in (Purpose.CREDENTIAL, Purpose.PERSONAL):
                with pytest.raises(Away, match=f"has no key {RING}/absent") as away:
                    only_api.wrap(CANARY, replace(OWNER, purpose=purpose))
                assert_silent(away.value)

    @pytest.mark.parametrize(
        ("status", "sentence"),
        [
            (grpc.StatusCode.UNAVAILABLE, "did not answer within 1 s"),
            (grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer within 1 s"),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "did not answer within 1 s"),
            (grpc.StatusCode.INTERNAL, "did not answer within 1 s"),
            (grpc.StatusCode.CANCELLED, "did not answer within 1 s"),
            (grpc.StatusCode.PERMISSION_DENIED, f"does not let this service use {RING}/credentials"),
            (grpc.StatusCode.UNAUTHENTICATED, f"does not let this service use {RING}/credentials"),
            (grpc.StatusCode.NOT_FOUND, f"has no key {RING}/credentials"),
            (grpc.StatusCode.FAILED_PRECONDITION, f"cannot use {RING}/credentials now"),
        ],
    )
    def test_is_away_and_says_why(self, cloud, server, status, sentence):
        ciphertext = cloud.wrap(CANARY, OWNER)
        server.faults = Faults(status=status)
        for call in (lambda: cloud.wrap(CANARY, OWNER), lambda: cloud.unwrap(ciphertext, OWNER)):
            started = time.monotonic()
            with pytest.raises(Away, match=sentence) as away:
                call()
            assert time.monotonic() - started < 5
            assert status.name in str(away.value)
            assert_silent(away.value)

    def test_refusals_are_not_tried_again(self, cloud, server):
        server.faults = Faults(status=grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(Away):
            cloud.wrap(CANARY, OWNER)
        assert server.calls == ["Encrypt"]

    def test_an_invalid_request_to_encrypt_is_the_operators(self, cloud, server):
        server.faults = Faults(status=grpc.StatusCode.INVALID_ARGUMENT)
        with pytest.raises(Away, match="is it a symmetric key") as away:
            cloud.wrap(CANARY, OWNER)
        assert_silent(away.value)

    def test_silence_ends_within_the_timeout(self, cloud, server):
        ciphertext = cloud.wrap(CANARY, OWNER)
        server.faults = Faults(silent=True)
        for call in (lambda: cloud.wrap(CANARY, OWNER), lambda: cloud.unwrap(ciphertext, OWNER)):
            started = time.monotonic()
            with pytest.raises(Away, match="DEADLINE_EXCEEDED"):
                call()
            assert time.monotonic() - started < 5

    @pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
    def test_a_passing_fault_is_not_seen(self, cloud, server, status):
        server.faults = Faults(status=status, remaining=2)
        ciphertext = cloud.wrap(CANARY, OWNER)
        server.faults = Faults(status=status, remaining=2)
        assert cloud.unwrap(ciphertext, OWNER) == CANARY
        assert server.calls == ["Encrypt"] * 3 + ["Decrypt"] * 3

    def test_one_lost_answer_is_not_seen(self, cloud, server):
        server.faults = Faults(silent=True, remaining=1)
        assert cloud.unwrap(cloud.wrap(CANARY, OWNER), OWNER) == CANARY

    def test_is_back_when_the_server_is(self):
        server = KmsServer(frozenset({f"{RING}/api", f"{RING}/credentials"}))
        with server.running():
            pass  # takes a port that nobody listens on now
        with server.client() as client:
            cloud = CloudKms("p", "l", "r", "api", "credentials", client=client, timeout_s=5.0)
            quick = CloudKms("p", "l", "r", "api", "credentials", client=client, timeout_s=0.3)
            with pytest.raises(Away, match="UNAVAILABLE"):
                quick.wrap(CANARY, OWNER)
            for _ in range(2):
                with server.running():
                    assert cloud.unwrap(cloud.wrap(CANARY, OWNER), OWNER) == CANARY

    @pytest.mark.parametrize(
        "damage",
        [
            "damages_request",
            "damages_bound",
            "damages_answer",
            "drops_checksum",
            "drops_bound_checksum",
            "drops_answer_checksum",
            "other_key",
        ],
    )
    def test_bytes_damaged_on_their_way_are_refused(self, cloud, server, damage):
        ciphertext = cloud.wrap(CANARY, OWNER)
        calls = [lambda: cloud.wrap(CANARY, OWNER)]
        if damage not in {"drops_checksum", "drops_bound_checksum", "other_key"}:  # a decrypt answer tells neither
            calls.append(lambda: cloud.unwrap(ciphertext, OWNER))
        for call in calls:
            server.faults = Faults(**{damage: True})
            with pytest.raises(Away, match="arrived damaged") as away:
                call()
            assert_silent(away.value)
            server.faults = Faults(**{damage: True}, remaining=1)
            call()

    def test_the_server_does_damage(self, cloud, server):
        """The control: a client that checks nothing takes altered bytes for the plaintext."""
        ciphertext = cloud.wrap(CANARY, OWNER)
        server.faults = Faults(damages_answer=True)
        with server.client() as careless:
            answer = careless.decrypt(
                DecryptRequest(
                    name=f"{RING}/credentials",
                    ciphertext=ciphertext,
                    additional_authenticated_data=associated_data(OWNER),
                )
            )
        assert answer.plaintext != CANARY
        assert answer.plaintext[1:] == CANARY[1:]

    def test_debug_logs_carry_no_plaintext(self, cloud):
        records: list[logging.LogRecord] = []

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record)

        google, keep = logging.getLogger("google"), Keep(logging.DEBUG)
        before = google.level
        google.addHandler(keep)
        google.setLevel(logging.DEBUG)
        try:
            cloud.unwrap(cloud.wrap(CANARY, OWNER), OWNER)
            quiet = len(records)
            transport = logging.getLogger("google.cloud.kms_v1.services.key_management_service.transports.grpc")
            transport.setLevel(logging.NOTSET)
            try:
                cloud.wrap(CANARY, OWNER)  # the control: this is what the client logs when it is let
            finally:
                transport.setLevel(logging.INFO)
        finally:
            google.removeHandler(keep)
            google.setLevel(before)
        assert not [record for record in records[:quiet] if "request" in vars(record) or "response" in vars(record)]
        assert [record for record in records[quiet:] if "plaintext" in str(vars(record))]

    def test_connects_with_credentials_of_its_own(self):
        client = connect(AnonymousCredentials())
        cloud = CloudKms("p", "l", "r", "api", "credentials", client=client)
        assert "cryptoKeys" not in repr(cloud)
        cloud.close()


def make_key_files(directory: Path, count: int, gate, answers) -> None:
    for number in range(count):
        gate.wait(60)
        answers.put((number, LocalKeyFile(directory / str(number)).wrap(CANARY, OWNER)))


class TestLocalKeyFile:
    def test_is_readable_by_its_owner_only_also_with_an_open_umask(self, tmp_path):
        before = os.umask(0)
        try:
            LocalKeyFile(tmp_path / "a" / "wrapping.key")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a" / "wrapping.key").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
        assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["wrapping.key"]

    def test_opens_again_what_an_earlier_process_wrapped(self, tmp_path):
        ciphertext = LocalKeyFile(tmp_path / "k").wrap(CANARY, OWNER)
        before = (tmp_path / "k").read_bytes()
        assert LocalKeyFile(tmp_path / "k").unwrap(ciphertext, OWNER) == CANARY
        assert (tmp_path / "k").read_bytes() == before

    def test_processes_that_start_together_make_one_key(self, tmp_path):
        files, processes = 20, 4
        spawn = multiprocessing.get_context("spawn")
        gate, answers = spawn.Barrier(processes), spawn.Queue()
        starters = [
            spawn.Process(target=make_key_files, args=(tmp_path, files, gate, answers)) for _ in range(processes)
        ]
        for starter in starters:
            starter.start()
        wrapped = [answers.get(timeout=120) for _ in range(files * processes)]
        for starter in starters:
            starter.join(60)
        ones = [LocalKeyFile(tmp_path / str(number)) for number in range(files)]
        assert {ones[number].unwrap(ciphertext, OWNER) for number, ciphertext in wrapped} == {CANARY}

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
    def test_refuses_a_file_that_others_can_use(self, tmp_path, mode):
        LocalKeyFile(tmp_path / "k")
        (tmp_path / "k").chmod(mode)
        with pytest.raises(KeyFileRefused, match=r"Others can use the key file .*chmod 600"):
            LocalKeyFile(tmp_path / "k")

    def test_refuses_a_damaged_file_and_leaves_it_alone(self, tmp_path):
        path = tmp_path / "k"
        LocalKeyFile(path)
        whole = path.read_bytes()
        flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
        for damaged in (b"", whole[:40], whole[:-1], whole + b"\n", *flipped):
            path.write_bytes(damaged)
            with pytest.raises(KeyFileRefused, match="is damaged: restore it") as refusal:
                LocalKeyFile(path)
            assert whole.decode().split(":")[1] not in says(refusal.value)
            assert path.read_bytes() == damaged

    def test_refuses_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe", 0o600)
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(KeyFileRefused, match="is not a file"):
                LocalKeyFile(path)

    def test_has_two_keys_as_the_cloud_has(self, tmp_path):
        local = LocalKeyFile(tmp_path / "k")
        named = {purpose: local.wrap(CANARY, replace(OWNER, purpose=purpose))[:5] for purpose in Purpose}
        assert named[Purpose.CREDENTIAL] == named[Purpose.PERSONAL] != named[Purpose.API_KEY]
        keys = {group: key.aead for group, key in local._read.newest.items()}
        sealed = keys[KeyGroup.API_KEYS].encrypt(bytes(12), CANARY, None)
        with pytest.raises(InvalidTag):
            keys[KeyGroup.CREDENTIALS].decrypt(bytes(12), sealed, None)

    def test_names_the_file_when_a_ciphertext_is_anothers(self, tmp_path):
        ciphertext = LocalKeyFile(tmp_path / "a").wrap(CANARY, OWNER)
        with pytest.raises(ValueError, match=r"under another key than those from .*/b\."):
            LocalKeyFile(tmp_path / "b").unwrap(ciphertext, OWNER)
