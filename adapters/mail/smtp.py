"""Mail through an SMTP server."""

import ipaddress
import logging
import smtplib
import socket
import ssl
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential, wait_random

from adapters.mail import compose, sender_address
from application.ports import Away, Mail

_LOG = logging.getLogger(__name__)


class Undeliverable(Away):
    """The server refused the mail's recipients or content for good (5xx): sending it again is of no use."""


class StartTls(StrEnum):
    """What `starttls=` in the URL may say."""

    REQUIRE = "require"
    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where to deliver, read from a URL. Its repr has no password."""

    host: str
    port: int
    tls: bool
    """TLS from the first byte (`smtps`)."""
    starttls: StartTls
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def at(cls, url: str) -> "SmtpServer":
        """Read `smtp://user:password@host:port?starttls=require`, or `smtps://…`.

        User and password are percent-encoded; ports default to 587, and 465 for smtps. STARTTLS is required unless the
        URL says `auto` (used when offered) or `off`; on this machine itself it defaults to `auto`. A password and
        `auto` do not go together elsewhere, because whoever sits in between could ask for it in clear. Raises
        `ValueError` with a sentence that does not quote the URL.
        """
        try:
            parts = urlsplit(url)
            port, options = parts.port, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        except ValueError:
            # Nothing of the error is kept: a password with an unencoded `/` or `#` would show up as the port.
            raise ValueError(f"SMTP_URL is no URL: {_FORM}") from None
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or parts.path not in {"", "/"} or parts.fragment:
            raise ValueError(f"SMTP_URL must look like {_FORM}")
        tls = parts.scheme == "smtps"
        near = _is_this_machine(parts.hostname)
        starttls = options.pop("starttls", StartTls.AUTO if near else StartTls.REQUIRE)
        if options or starttls not in set(StartTls):
            raise ValueError("SMTP_URL takes one option, `starttls`, which is `require`, `auto` or `off`.")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if password and not tls and not near and starttls == StartTls.AUTO:
            raise ValueError("SMTP_URL has a password, which `starttls=auto` does not protect: use `starttls=require`.")
        if bool(user) != bool(password):
            raise ValueError("SMTP_URL has a user without a password, or the other way round.")
        if not (user + password).isascii():
            raise ValueError("SMTP_URL has a user or password with letters outside ASCII, which SMTP does not carry.")
        return cls(
            host=parts.hostname,
            port=port or (465 if tls else 587),
            tls=tls,
            starttls=StartTls(starttls),
            user=user,
            password=password,
        )

    def __str__(self) -> str:
        return f"{'smtps' if self.tls else 'smtp'}://{self.host}:{self.port}"


_FORM = "`smtp://user:password@host:port`, user and password percent-encoded."


class SmtpMailer:
    """A Mailer on the SMTP server that `url` names (see `SmtpServer.at`).

    `sender` is the From address, `Name <mail@domain>`. Passing faults (no connection, 4xx) are tried up to three times
    within about `timeout_s` seconds in all; a silent server is given up after as long. `tls` replaces the system's
    trusted authorities, for a server with a private one. A mail whose acceptance got lost may be sent twice, with one
    Message-ID.
    """

    def __init__(self, url: str, *, sender: str, timeout_s: float = 8.0, tls: ssl.SSLContext | None = None) -> None:
        self._server = SmtpServer.at(url)
        self._sender = sender_address(sender)
        self._timeout_s = timeout_s
        self._tls = tls or ssl.create_default_context()

    def send(self, mail: Mail) -> str:
        """Deliver to the server; where it went. It is enough that the server takes it for one of the recipients.

        Raises `Away`, `Undeliverable` among them, and `ValueError` as `compose` does. Neither quotes the mail, the
        recipients, the password or the server.
        """
        message = compose(mail, self._sender)
        deadline = time.monotonic() + self._timeout_s
        attempts = Retrying(
            stop=stop_after_attempt(3) | stop_after_delay(self._timeout_s),
            wait=wait_exponential(multiplier=0.1, max=1) + wait_random(0, 0.1),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            refused = attempts(self._deliver, message, list(mail.to), deadline)
        except (OSError, smtplib.SMTPException) as error:
            # Refused users and senders are a matter of settings, not of this mail.
            final = isinstance(error, smtplib.SMTPRecipientsRefused | smtplib.SMTPDataError) and _refuses(error)
            raise (Undeliverable if final else Away)(
                f"The mail server {self._server} did not take the mail: {_reason(error)}."
            ) from None
        taken = f"{len(mail.to) - refused} of {len(mail.to)} recipient(s)"
        if refused:
            _LOG.warning("The mail server %s took a mail for %s only.", self._server, taken)
        return f"{self._server}, for {taken}"

    def _deliver(self, message: EmailMessage, recipients: list[str], deadline: float) -> int:
        """One attempt; the number of recipients that were refused."""
        left_s = max(deadline - time.monotonic(), 0.1)
        with closing(self._connection(left_s)) as smtp:
            if not self._server.tls and self._server.starttls is not StartTls.OFF:
                smtp.ehlo_or_helo_if_needed()
                if self._server.starttls is StartTls.REQUIRE or smtp.has_extn("starttls"):
                    smtp.starttls(context=self._tls)
            if self._server.user:
                smtp.login(self._server.user, self._server.password)
            smtp.ehlo_or_helo_if_needed()
            plain = all(address.isascii() for address in (self._sender.addr_spec, *recipients))
            options = [] if plain else ["SMTPUTF8", "BODY=8BITMIME"]
            if not plain and not smtp.has_extn("smtputf8"):
                raise smtplib.SMTPNotSupportedError
            # Not send_message(), which would write `>From` where a line begins with `From`.
            refused = smtp.sendmail(self._sender.addr_spec, recipients, message.as_bytes(), options)
            # The mail is accepted: a farewell that fails must not have it sent again.
            with suppress(OSError, smtplib.SMTPException):
                smtp.quit()
        return len(refused)

    def _connection(self, timeout_s: float) -> smtplib.SMTP:
        # Its own name is given because smtplib would ask DNS for it.
        host, port, name = self._server.host, self._server.port, socket.gethostname()
        if self._server.tls:
            return smtplib.SMTP_SSL(host, port, local_hostname=name, timeout=timeout_s, context=self._tls)
        return smtplib.SMTP(host, port, local_hostname=name, timeout=timeout_s)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _status(error: BaseException) -> int:
    """The server's reply code, the mildest one where each recipient was refused with its own; 0 if there was none."""
    match error:
        case smtplib.SMTPRecipientsRefused(recipients=replies):
            return min((code for code, _ in replies.values()), default=0)
        case smtplib.SMTPResponseException(smtp_code=code):
            return int(code)
    return 0


def _may_pass(error: BaseException) -> bool:
    match error:
        case smtplib.SMTPRecipientsRefused() | smtplib.SMTPResponseException():
            return not _refuses(error)
        case smtplib.SMTPServerDisconnected():
            return True
        case smtplib.SMTPException() | ssl.SSLCertVerificationError():
            return False
    return isinstance(error, OSError)


def _refuses(error: BaseException) -> bool:
    return 500 <= _status(error) < 600


def _reason(error: BaseException) -> str:
    """Why, in words of our own: the server's may quote the mail."""
    status = _status(error)
    match error:
        case smtplib.SMTPAuthenticationError():
            reason = f"it refused user and password (reply {status})"
        case smtplib.SMTPRecipientsRefused():
            reason = f"it refused every recipient (reply {status})"
        case smtplib.SMTPSenderRefused():
            reason = f"it refused the sender (reply {status})"
        case smtplib.SMTPNotSupportedError():
            reason = "it lacks something that is asked of it (STARTTLS, AUTH, or SMTPUTF8 for addresses beyond ASCII)"
        case ssl.SSLCertVerificationError():
            reason = "its certificate is not trusted"
        case TimeoutError():
            reason = "it did not answer in time"
        case _:
            reason = f"reply {status}" if status > 0 else f"the connection failed ({type(error).__name__})"
    return reason
