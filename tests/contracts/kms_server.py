"""A key management service over real gRPC, with the faults of a real one behind switches."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.cloud.kms_v1 import (
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    KeyManagementServiceClient,
)
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport
from google_crc32c import value as crc32c


@dataclass
class Faults:
    """What goes wrong from now on. `remaining` counts the calls it goes wrong for; None means all of them."""

    status: grpc.StatusCode | None = None
    """Refuse with this status, in words that quote the request, as a careless server might."""
    silent: bool = False
    """Take the call and never answer."""
    damages_request: bool = False
    """Flip a bit of the plaintext or ciphertext before it is read."""
    damages_bound: bool = False
    """Flip a bit of the additional authenticated data before it is read."""
    damages_answer: bool = False
    """Flip a bit of the ciphertext or plaintext after its checksum was made."""
    drops_checksum: bool = False
    """Lose the checksum of the plaintext or ciphertext, so that it is not verified."""
    drops_bound_checksum: bool = False
    """The same for the additional authenticated data."""
    drops_answer_checksum: bool = False
    other_key: bool = False
    """Encrypt under a key that was not asked for."""
    remaining: int | None = None


@dataclass
class KmsServer:
    """Encrypts and decrypts with AES-256-GCM under the keys that it has, and checks what Cloud KMS checks."""

    keys: frozenset[str]
    faults: Faults = field(default_factory=Faults)
    calls: list[str] = field(default_factory=list)
    port: int = 0
    primary: int = 1
    _aead: dict[tuple[str, int], AESGCM] = field(default_factory=dict)
    _disabled: set[int] = field(default_factory=set)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._aead = {(key, 1): AESGCM(AESGCM.generate_key(256)) for key in self.keys}

    def rotate(self) -> None:
        """Give each key another version, which is its primary one from now on."""
        self.primary += 1
        self._aead |= {(key, self.primary): AESGCM(AESGCM.generate_key(256)) for key in self.keys}

    def disable(self, version: int) -> None:
        self._disabled.add(version)

    @contextmanager
    def running(self) -> Iterator["KmsServer"]:
        """Serve on loopback: on a free port the first time, on the same one when it is started again."""
        self._stopping.clear()
        server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
        service = grpc.method_handlers_generic_handler(
            "google.cloud.kms.v1.KeyManagementService",
            {
                "Encrypt": grpc.unary_unary_rpc_method_handler(
                    self._encrypt, EncryptRequest.deserialize, EncryptResponse.serialize
                ),
                "Decrypt": grpc.unary_unary_rpc_method_handler(
                    self._decrypt, DecryptRequest.deserialize, DecryptResponse.serialize
                ),
            },
        )
        server.add_generic_rpc_handlers((service,))
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        try:
            yield self
        finally:
            self._stopping.set()
            server.stop(grace=None).wait()

    @contextmanager
    def client(self) -> Iterator[KeyManagementServiceClient]:
        """The real client, connected without TLS."""
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            yield KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))

    def _encrypt(self, request: EncryptRequest, context: grpc.ServicerContext) -> EncryptResponse:
        faults = self._begin("Encrypt", request, context)
        plaintext, bound, verified, bound_verified = self._read(
            "plaintext", request.plaintext_crc32c, request, context, faults
        )
        nonce = os.urandom(12)
        primary = self.primary
        sealed = self._key(request.name, primary, context).encrypt(nonce, plaintext, bound)
        ciphertext = bytes([primary]) + nonce + sealed
        version = f"{request.name}{'-other' if faults.other_key else ''}/cryptoKeyVersions/{primary}"
        checksum = None if faults.drops_answer_checksum else crc32c(ciphertext)
        return EncryptResponse(
            name=version,
            ciphertext=_flipped(ciphertext) if faults.damages_answer else ciphertext,
            ciphertext_crc32c=checksum,
            verified_plaintext_crc32c=verified,
            verified_additional_authenticated_data_crc32c=bound_verified,
        )

    def _decrypt(self, request: DecryptRequest, context: grpc.ServicerContext) -> DecryptResponse:
        faults = self._begin("Decrypt", request, context)
        ciphertext, bound, _, _ = self._read("ciphertext", request.ciphertext_crc32c, request, context, faults)
        self._key(request.name, 1, context)
        version = ciphertext[0] if ciphertext else 0
        if version in self._disabled:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"Version {version} is disabled.")
        try:
            plaintext = self._aead[request.name, version].decrypt(ciphertext[1:13], ciphertext[13:], bound)
        except (InvalidTag, ValueError, KeyError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Decryption failed: the ciphertext is invalid.")
        checksum = None if faults.drops_answer_checksum else crc32c(plaintext)
        return DecryptResponse(
            plaintext=_flipped(plaintext) if faults.damages_answer else plaintext,
            plaintext_crc32c=checksum,
            used_primary=version == self.primary,
        )

    def _begin(self, call: str, request: EncryptRequest | DecryptRequest, context: grpc.ServicerContext) -> Faults:
        with self._lock:
            self.calls.append(call)
            faults = self.faults
            if faults.remaining == 0:
                return Faults()
            if faults.remaining is not None:
                faults.remaining -= 1
        if faults.silent:
            self._stopping.wait()
            context.abort(grpc.StatusCode.CANCELLED, "stopping")
        if faults.status is not None:
            context.abort(faults.status, f"refused: {request}")
        return faults

    def _read(self, field_name, checksum, request, context, faults):
        data = getattr(request, field_name)
        bound, bound_checksum = request.additional_authenticated_data, request.additional_authenticated_data_crc32c
        if faults.damages_request:
            data = _flipped(data)
        if faults.damages_bound:
            bound = _flipped(bound)
        if faults.drops_checksum:
            checksum = None
        if faults.drops_bound_checksum:
            bound_checksum = None
        for name, value, expected in (
            (field_name, data, checksum),
            ("additional_authenticated_data", bound, bound_checksum),
        ):
            if expected is not None and crc32c(value) != expected:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"The checksum in field {name}_crc32c did not match the data in field {name}.",
                )
        return data, bound, checksum is not None, bound_checksum is not None

    def _key(self, name: str, version: int, context: grpc.ServicerContext) -> AESGCM:
        if name not in self.keys:
            context.abort(grpc.StatusCode.NOT_FOUND, f"CryptoKey {name} not found.")
        return self._aead[name, version]


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]
