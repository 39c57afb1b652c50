"""Wrapping keys from a key file, for one machine without a key management service."""

import hashlib
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adapters.kms import MOST_BYTES, KeyGroup, associated_data, key_group
from application.ports import SealedFor

_FORMAT = b"\x01"
_KEY_BYTES, _CHECK_BYTES, _ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 4, 4, 12, 16
_HEADER_BYTES = len(_FORMAT) + _ID_BYTES
_LINE = re.compile(rb"convergence-key-1:([0-9a-f]{64}):([0-9a-f]{8})\n")


class KeyFileRefused(Exception):  # noqa: N818 - a refusal to start, for the operator
    """The key file is damaged, or others can read it. The text is a sentence that names the file and the remedy."""


class LocalKeyFile:
    """A KeyWrapper whose 256-bit key lies in a file, readable by its owner only.

    The file is made on first use, whole and once, also when many processes start at the same time. Whoever has the
    file can read everything wrapped under it, and without it nothing can be read: it belongs in the backup. Raises
    `KeyFileRefused` when the file is not to be trusted, `OSError` when it cannot be read or made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        root = _read_or_make(path)
        self._keys = {group: _WrappingKey(root, group) for group in KeyGroup}

    def wrap(self, plaintext: bytes, owner: SealedFor) -> bytes:
        """Encrypt at most 64 KiB for `owner`. Raises `ValueError` for more."""
        if len(plaintext) > MOST_BYTES:
            raise ValueError(f"A wrapping key takes at most {MOST_BYTES} bytes, not {len(plaintext)}.")
        key = self._keys[key_group(owner.purpose)]
        nonce = os.urandom(_NONCE_BYTES)
        return key.header + nonce + key.aead.encrypt(nonce, plaintext, key.header + associated_data(owner))

    def unwrap(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        """Decrypt what `wrap` returned for the same owner. Raises `ValueError` for anything else."""
        key = self._keys[key_group(owner.purpose)]
        header, nonce = ciphertext[:_HEADER_BYTES], ciphertext[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
        if len(ciphertext) < _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES or header[:1] != _FORMAT:
            raise ValueError("The ciphertext is not one that a local key file made.")
        if header != key.header:
            raise ValueError(f"The ciphertext was wrapped under another key than the one from {self._path}.")
        try:
            return key.aead.decrypt(nonce, ciphertext[_HEADER_BYTES + _NONCE_BYTES :], header + associated_data(owner))
        except InvalidTag:
            raise ValueError("The ciphertext was altered, or was wrapped for another owner.") from None


class _WrappingKey:
    """One of the two keys derived from the file's. The header tells ciphertexts of another file from altered ones."""

    def __init__(self, root: bytes, group: KeyGroup) -> None:
        self.aead = AESGCM(_derive(root, f"convergence wrapping key: {group}", _KEY_BYTES))
        self.header = _FORMAT + _derive(root, f"convergence wrapping key id: {group}", _ID_BYTES)


def _derive(root: bytes, label: str, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=label.encode()).derive(root)


def _read_or_make(path: Path) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        return _read(path)


def _read(path: Path) -> bytes:
    # The open file is asked, not the name, so that it cannot be exchanged in between. A pipe must not block the start.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_access(path, os.fstat(descriptor))
        line = _LINE.fullmatch(os.read(descriptor, 1024))
    finally:
        os.close(descriptor)
    root = bytes.fromhex(line[1].decode()) if line else b""
    if line is None or _checksum(root) != bytes.fromhex(line[2].decode()):
        raise KeyFileRefused(f"The key file {path} is damaged: restore it from a backup. Nothing was changed.")
    return root


def _check_access(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileRefused(f"{path} is not a file: the key file must be an ordinary one.")
    if status.st_mode & 0o077:
        raise KeyFileRefused(
            f"Others can use the key file {path} (mode {stat.S_IMODE(status.st_mode):04o}): run `chmod 600 {path}`, "
            "and consider what it guards as seen if others have had access to this machine."
        )
    if status.st_uid not in {0, os.geteuid()}:
        raise KeyFileRefused(f"The key file {path} belongs to another user (uid {status.st_uid}).")


def _make(path: Path) -> None:
    """Write a new key whole under a name of its own, then link it: the first link wins, and the others read that."""
    root = secrets.token_bytes(_KEY_BYTES)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"convergence-key-1:{root.hex()}:{_checksum(root).hex()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # a key that a power cut forgets takes everything wrapped under it along
    finally:
        os.close(directory)


def _checksum(root: bytes) -> bytes:
    return hashlib.sha256(b"convergence key file check" + root).digest()[:_CHECK_BYTES]
