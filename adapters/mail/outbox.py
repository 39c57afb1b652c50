"""Mail for machines without a mail server: each one becomes a file."""

import logging
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from adapters.mail import compose, sender_address
from application.ports import Away, Mail

_LOG = logging.getLogger(__name__)


class OutboxMailer:
    """A Mailer that writes `.eml` files into a directory, readable by their owner only: some mails carry keys.

    A file appears whole or not at all, and is named by the instant (UTC) so that names sort by time. `sender` is as
    for `SmtpMailer`.
    """

    def __init__(self, directory: Path, *, sender: str = "Convergence <no-reply@localhost>") -> None:
        self._directory = directory
        self._sender = sender_address(sender)

    def send(self, mail: Mail) -> str:
        """Write the mail; where it went. Raises `Away` when it cannot be written, `ValueError` as `compose` does."""
        content = compose(mail, self._sender).as_bytes()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self._directory / f"{stamp}-{secrets.token_hex(4)}.eml"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, content)
        except OSError as error:
            raise Away(
                f"The outbox {self._directory} cannot be written: {error.strerror or type(error).__name__}."
            ) from None
        _LOG.info("Mail for %d recipient(s) is in the outbox: %s", len(mail.to), path)
        return f"outbox file {path}"


def _write(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
