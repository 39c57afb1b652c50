"""Mail: how a message is composed, whoever delivers it."""

import re
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime, make_msgid

from application.ports import Mail

# Stricter than the standard on purpose: quoted local parts and literal addresses are where injections hide.
_ADDRESS = re.compile(
    r"(?!.*=\?)[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f-\x9f]{1,64}@[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f-\x9f]{1,255}"
)
_REFERENCE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_NAMED = re.compile(r'"?([^"<>]*)"?\s*<([^<>]+)>')


def sender_address(sender: str) -> Address:
    """Parse a From setting: `Name <mail@domain>` or an address alone. Raises `ValueError` with a sentence."""
    named = _NAMED.fullmatch(sender)
    name, spec = named.groups() if named else ("", sender)
    if not _ADDRESS.fullmatch(spec):
        raise ValueError("The sender of mails is not an address such as `Convergence <no-reply@example.com>`.")
    return _address(spec, _printable(name))


def compose(mail: Mail, sender: Address) -> EmailMessage:
    """The message to send, with the policy that its addresses need: nothing in `mail` adds a header or a recipient.

    Line breaks and control characters in the subject become spaces. Raises `ValueError`, which does not quote them,
    when there are no recipients, one is not a plain address, or the reference is not made of letters, digits and `.-_`.
    """
    if mail.reference is not None and not _REFERENCE.fullmatch(mail.reference):
        raise ValueError("The mail's reference cannot be a Message-ID.")
    if not mail.to:
        raise ValueError("The mail has no recipients.")
    for number, recipient in enumerate(mail.to, start=1):
        if not _ADDRESS.fullmatch(recipient):
            raise ValueError(f"Recipient {number} of {len(mail.to)} is not a mail address.")
    plain = all(spec.isascii() for spec in (sender.addr_spec, *mail.to))
    message = EmailMessage(policy=SMTP if plain else SMTPUTF8)
    message["From"] = sender
    message["To"] = [_address(recipient) for recipient in mail.to]
    message["Subject"] = _printable(mail.subject)
    message["Date"] = format_datetime(datetime.now(UTC))
    name = mail.reference
    message["Message-ID"] = make_msgid(domain=sender.domain) if name is None else f"<{name}@{sender.domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers, please
    message.set_content(_encodable(mail.text))
    return message


def _address(spec: str, name: str = "") -> Address:
    user, _, domain = spec.rpartition("@")
    return Address(display_name=name, username=user, domain=domain)


def _printable(line: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in _encodable(line)).split())


def _encodable(text: str) -> str:
    # An error of encoding carries the whole text along, into whatever prints it.
    return text.encode("utf-8", "replace").decode()
