"""Wrapping keys from a key file, for one machine without a key management service."""

import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adapters.kms import MOST_BYTES, KeyGroup, associated_data, key_group
from application.ports import SealedFor, Wrapped

_FORMAT = b"\x01"
_KEY_BYTES, _CHECK_BYTES, _ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 4, 4, 12, 16
_HEADER_BYTES = len(_FORMAT) + _ID_BYTES
_MOST_FILE_BYTES = 64 * 1024
_LINE = re.compile(rb"convergence-key-1:([0-9a-f]{64}):([0-9a-f]{8})\n")


class KeyFileRefused(Exception):  # noqa: N818 - a refusal to start, for the operator
    """The key file is damaged, or others can read it. The text is a sentence that names the file and the remedy."""


class LocalKeyFile:
    """A KeyWrapper whose 256-bit keys lie in a file, a line each, readable by its owner only.

    The last one wraps, all of them unwrap; a line that another process adds is noticed. The file is made on first use,
    whole and once, also when many processes start at the same time. Whoever has the file can read everything wrapped
    under it, and without it nothing can be read: it belongs in the backup. Raises `KeyFileRefused` when the file is not
    to be trusted, `OSError` when it cannot be read or made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = _Read(path, _roots_or_made(path))

    def wrap(self, plaintext: bytes, owner: SealedFor) -> Wrapped:
        """Encrypt at most 64 KiB for `owner` under the newest key. Raises `ValueError` for more."""
        if len(plaintext) > MOST_BYTES:
            raise ValueError(f"A wrapping key takes at most {MOST_BYTES} bytes, not {len(plaintext)}.")
        key = self._now().newest[key_group(owner.purpose)]
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = key.header + nonce + key.aead.encrypt(nonce, plaintext, key.header + associated_data(owner))
        return Wrapped(ciphertext, key.version)

    def unwrap(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        """Decrypt what `wrap` returned for the same owner. Raises `ValueError` for anything else."""
        header, nonce = ciphertext[:_HEADER_BYTES], ciphertext[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
        if len(ciphertext) < _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES or header[:1] != _FORMAT:
            raise ValueError("The ciphertext is not one that a local key file made.")
        key = self._now().named.get((key_group(owner.purpose), header))
        if key is None:
            raise ValueError(f"The ciphertext was wrapped under another key than those from {self._path}.")
        try:
            return key.aead.decrypt(nonce, ciphertext[_HEADER_BYTES + _NONCE_BYTES :], header + associated_data(owner))
        except InvalidTag:
            raise ValueError("The ciphertext was altered, or was wrapped for another owner.") from None

    def _now(self) -> "_Read":
        try:
            changed = _Read.stamp_of(self._path) != self._read.stamp
        except FileNotFoundError:
            return self._read  # moved away under a running process, which goes on with what it has
        if changed:
            self._read = _Read(self._path, _roots(self._path))
        return self._read


class _Read:
    """The file as it was read: its keys, and what tells whether it has changed since."""

    def __init__(self, path: Path, roots: Sequence[bytes]) -> None:
        self.stamp = self.stamp_of(path)
        keys = {group: [_WrappingKey(root, group) for root in roots] for group in KeyGroup}
        self.newest = {group: of_group[-1] for group, of_group in keys.items()}
        self.named = {(group, key.header): key for group, of_group in keys.items() for key in of_group}

    @staticmethod
    def stamp_of(path: Path) -> tuple[int, int, int]:
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size


class _WrappingKey:
    """One of the two keys derived from a line. The header tells ciphertexts of another one from altered ones."""

    def __init__(self, root: bytes, group: KeyGroup) -> None:
        self.aead = AESGCM(_derive(root, f"convergence wrapping key: {group}", _KEY_BYTES))
        self.header = _FORMAT + _derive(root, f"convergence wrapping key id: {group}", _ID_BYTES)
        self.version = f"local/{group}/{self.header[len(_FORMAT) :].hex()}"


def add_key(path: Path) -> int:
    """Add a key to the file, which wraps from then on; how many there are now.

    Of several callers each adds its own. Raises as `LocalKeyFile` does.
    """
    _roots_or_made(path)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        roots = [*_roots(path), secrets.token_bytes(_KEY_BYTES)]
        draft = _drafted(path, roots)
        draft.replace(path)
        _settle(path.parent)
    finally:
        os.close(lock)
    return len(roots)


def _derive(root: bytes, label: str, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=label.encode()).derive(root)


def _roots_or_made(path: Path) -> Sequence[bytes]:
    try:
        return _roots(path)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        return _roots(path)


def _roots(path: Path) -> Sequence[bytes]:
    # The open file is asked, not the name, so that it cannot be exchanged in between. A pipe must not block the start.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_access(path, os.fstat(descriptor))
        lines = os.read(descriptor, _MOST_FILE_BYTES).splitlines(keepends=True)
    finally:
        os.close(descriptor)
    found = [_LINE.fullmatch(line) for line in lines]
    roots = [bytes.fromhex(line[1].decode()) for line in found if line and _checked(line)]
    if not roots or len(roots) != len(lines):
        raise KeyFileRefused(f"The key file {path} is damaged: restore it from a backup. Nothing was changed.")
    return roots


def _checked(line: re.Match[bytes]) -> bool:
    return _checksum(bytes.fromhex(line[1].decode())) == bytes.fromhex(line[2].decode())


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
    draft = _drafted(path, [secrets.token_bytes(_KEY_BYTES)])
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        draft.unlink()
    _settle(path.parent)


def _drafted(path: Path, roots: Sequence[bytes]) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for root in roots:
                file.write(f"convergence-key-1:{root.hex()}:{_checksum(root).hex()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink()
        raise
    return draft


def _settle(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # a key that a power cut forgets takes everything wrapped under it along
    finally:
        os.close(descriptor)


def _checksum(root: bytes) -> bytes:
    return hashlib.sha256(b"convergence key file check" + root).digest()[:_CHECK_BYTES]
