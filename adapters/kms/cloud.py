"""Wrapping keys held by Google Cloud KMS."""

import logging
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from google.api_core.exceptions import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Forbidden,
    GoogleAPICallError,
    InternalServerError,
    InvalidArgument,
    NotFound,
    RetryError,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    Unknown,
)
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.cloud.kms_v1 import DecryptRequest, EncryptRequest, KeyManagementServiceClient
from google.cloud.kms_v1.services.key_management_service.transports import grpc as kms_grpc
from google_crc32c import value as crc32c

from adapters.kms import MOST_BYTES, KeyGroup, associated_data, key_group
from application.ports import Away, SealedFor, Wrapped

_Answer = TypeVar("_Answer")


class _Damaged(Exception):  # noqa: N818 - it says what happened to the bytes
    """A checksum says that the question or the answer changed on its way. The same call may come through next time."""


_PASSING = (
    _Damaged,
    Aborted,
    DeadlineExceeded,
    InternalServerError,
    ServiceUnavailable,
    TooManyRequests,
    Unknown,
)


def connect(credentials: Credentials | None = None) -> KeyManagementServiceClient:
    """A client for Cloud KMS that finds its way back within seconds of an outage.

    Without `credentials` it uses the environment's own (Application Default Credentials), and raises google-auth's
    `DefaultCredentialsError` when there are none.
    """
    channel = kms_grpc.KeyManagementServiceGrpcTransport.create_channel(
        credentials=credentials,
        options=[
            # gRPC's own pause between two attempts to connect grows to two minutes.
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Without pings a connection into nowhere is noticed after a quarter of an hour.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ],
    )
    return KeyManagementServiceClient(transport=kms_grpc.KeyManagementServiceGrpcTransport(channel=channel))


class CloudKms:
    """A KeyWrapper on Cloud KMS: plaintext travels to the two named keys, which never leave it.

    Every call carries CRC32C checksums and checks the ones that come back. Passing faults are tried again for at most
    `timeout_s` seconds in all, and are `Away` after that. No exception's text carries plaintext, nor what the server
    wrote.
    """

    def __init__(
        self,
        project: str,
        location: str,
        keyring: str,
        api_key_name: str,
        credentials_key_name: str,
        *,
        client: KeyManagementServiceClient | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        # At DEBUG the client's transport logs whole requests and answers, and ours are keys.
        logging.getLogger(kms_grpc.__name__).setLevel(logging.INFO)
        self._client = client or connect()
        self._timeout_s = timeout_s
        self._keys = {
            KeyGroup.API_KEYS: self._client.crypto_key_path(project, location, keyring, api_key_name),
            KeyGroup.CREDENTIALS: self._client.crypto_key_path(project, location, keyring, credentials_key_name),
        }

    def wrap(self, plaintext: bytes, owner: SealedFor) -> Wrapped:
        """Encrypt at most 64 KiB for `owner` under the key's primary version, which the result names.

        Raises `ValueError` for more, `Away` as the class says.
        """
        if len(plaintext) > MOST_BYTES:
            raise ValueError(f"A wrapping key takes at most {MOST_BYTES} bytes, not {len(plaintext)}.")
        key, bound = self._keys[key_group(owner.purpose)], associated_data(owner)
        request = EncryptRequest(
            name=key,
            plaintext=plaintext,
            plaintext_crc32c=crc32c(plaintext),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=crc32c(bound),
        )

        def encrypt(attempt_s: float) -> Wrapped:
            answer = self._client.encrypt(request=request, retry=None, timeout=attempt_s)
            if not (answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c):
                raise _Damaged
            if not answer.name.startswith(f"{key}/cryptoKeyVersions/"):
                raise _Damaged
            ciphertext = bytes(answer.ciphertext)
            if answer.ciphertext_crc32c != crc32c(ciphertext):
                raise _Damaged
            return Wrapped(ciphertext, answer.name)

        try:
            return self._within_timeout(encrypt, key)
        except InvalidArgument:
            raise Away(f"Cloud KMS refuses to encrypt with {key}: is it a symmetric key for encryption?") from None

    def unwrap(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        """Decrypt what `wrap` returned for the same owner. Raises `ValueError` for anything else, or `Away`."""
        key, bound = self._keys[key_group(owner.purpose)], associated_data(owner)
        request = DecryptRequest(
            name=key,
            ciphertext=ciphertext,
            ciphertext_crc32c=crc32c(ciphertext),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=crc32c(bound),
        )

        def decrypt(attempt_s: float) -> bytes:
            # A decrypt answer has no flags of verification: a checksum that fails is an INVALID_ARGUMENT.
            answer = self._client.decrypt(request=request, retry=None, timeout=attempt_s)
            plaintext = bytes(answer.plaintext)
            if answer.plaintext_crc32c != crc32c(plaintext):
                raise _Damaged
            return plaintext

        try:
            return self._within_timeout(decrypt, key)
        except InvalidArgument:
            raise ValueError("The ciphertext was altered, or was wrapped for another owner.") from None

    def close(self) -> None:
        """Close the connection. Calls after that fail."""
        self._client.transport.close()  # type: ignore[no-untyped-call]

    def _within_timeout(self, call: Callable[[float], _Answer], key: str) -> _Answer:
        """Call, again while the fault may pass, until the time is over. InvalidArgument is the caller's to name."""
        deadline = time.monotonic() + self._timeout_s
        said: list[GoogleAPICallError] = []

        def attempt() -> _Answer:
            # Half of the time for one attempt leaves room for a second one, on a new connection.
            left_s = max(deadline - time.monotonic(), 0.01)
            try:
                return call(min(left_s, self._timeout_s / 2))
            except InvalidArgument as error:
                # The words for bytes that arrived changed, against the words for bytes that were changed long ago.
                if "checksum" in error.message.lower():
                    raise _Damaged from None
                raise
            except GoogleAPICallError as error:
                # What the service said itself tells more than that our time was over in the last attempt.
                if not isinstance(error, DeadlineExceeded):
                    said.append(error)
                raise

        retry = Retry(if_exception_type(*_PASSING), initial=0.05, maximum=0.5, multiplier=2, timeout=self._timeout_s)
        try:
            return retry(attempt)()
        except InvalidArgument:
            raise
        except RetryError as error:
            self._give_up(said[-1] if said and isinstance(error.cause, DeadlineExceeded) else error.cause, key)
        except (GoogleAPICallError, GoogleAuthError) as error:
            self._give_up(error, key)

    def _give_up(self, error: Exception | None, key: str) -> NoReturn:
        """Raise `Away` in an operator's words: of the error only its code, because the rest is a stranger's text."""
        why = _code(error)
        match error:
            case Forbidden() | Unauthorized():
                sentence = f"Cloud KMS does not let this service use {key} ({why}): it needs the role "
                sentence += "roles/cloudkms.cryptoKeyEncrypterDecrypter there."
            case NotFound():
                sentence = f"Cloud KMS has no key {key} ({why}): make it, or correct the settings that name it."
            case FailedPrecondition():
                sentence = f"Cloud KMS cannot use {key} now ({why}): is its primary version enabled?"
            case GoogleAuthError():
                sentence = f"Google gave this service no token for Cloud KMS ({why})."
            case _Damaged():
                sentence = "Calls to Cloud KMS or their answers arrived damaged, more than once."
            case _:
                sentence = f"Cloud KMS did not answer within {self._timeout_s:g} s ({why})."
        raise Away(sentence) from None


def _code(error: Exception | None) -> str:
    if isinstance(error, GoogleAPICallError) and error.grpc_status_code is not None:
        code: str = error.grpc_status_code.name
        return f"{code}, {error.reason}" if error.reason else code
    return type(error).__name__
