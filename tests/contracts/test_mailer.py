"""What every mailer promises, checked on the outbox directory and on SMTP against a real server."""

import email
import ipaddress
import logging
import socket
import ssl
import stat
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.mail import compose, sender_address
from adapters.mail.outbox import OutboxMailer
from adapters.mail.smtp import SmtpMailer, SmtpServer, StartTls, Undeliverable
from application.ports import Away, Mail

SENDER = "Convergence <no-reply@convergence.example>"
CANARY = "canary_live_2c7f"
MAIL = Mail(to=["ada@acme.example", "bob@acme.example"], subject="Welcome", text=f"Your API key:\n\n{CANARY}\n")
HEADERS = {
    "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted",
    "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
}  # fmt: skip


class Postbox:
    """An SMTP server's mind: what it took, and what it says no to. A reply that is a list is used up, one a mail."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[str], bytes]] = []
        self.logins: list[tuple[bytes, bytes, bool]] = []
        self.data_replies: list[str] = []
        self.refused: dict[str, str] = {}
        self.breaks_off_at_quit = False
        self.encrypted: list[bool] = []

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):  # noqa: N802
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        if self.data_replies:
            return self.data_replies.pop(0)
        self.encrypted.append(session.ssl is not None)
        self.taken.append((list(envelope.rcpt_tos), envelope.content))
        return "250 OK"

    async def handle_QUIT(self, server, session, envelope):  # noqa: N802
        if self.breaks_off_at_quit:
            server.transport.abort()
        return "221 Bye"

    def authenticate(self, server, session, envelope, mechanism, login):
        self.logins.append((login.login, login.password, session.ssl is not None))
        return AuthResult(success=login.password == b"p@ss/word", handled=False)

    def mails(self) -> list[EmailMessage]:
        return [email.message_from_bytes(content, policy=default) for _, content in self.taken]


class FreePort(Controller):
    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@pytest.fixture
def postbox():
    return Postbox()


@pytest.fixture
def serve(postbox):
    """Start servers on free ports; their port."""
    running = []

    def start(**options) -> int:
        controller = FreePort(postbox, hostname="127.0.0.1", port=0, **options)
        controller.start()
        running.append(controller)
        return controller.port

    yield start
    for controller in running:
        controller.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1; the server's context, and one for clients that trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "cert.pem"))


class OnSmtp:
    def __init__(self, postbox, serve) -> None:
        self.postbox = postbox
        self.mailer = SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER, timeout_s=5)

    def received(self) -> list[EmailMessage]:
        return self.postbox.mails()


class OnOutbox:
    def __init__(self, directory) -> None:
        self.directory = directory
        self.mailer = OutboxMailer(directory, sender=SENDER)

    def received(self) -> list[EmailMessage]:
        files = sorted(self.directory.iterdir())
        return [email.message_from_bytes(file.read_bytes(), policy=default) for file in files]


@pytest.fixture(params=["smtp", "outbox"])
def post(request, tmp_path):
    if request.param == "outbox":
        return OnOutbox(tmp_path / "var" / "outbox")
    return OnSmtp(request.getfixturevalue("postbox"), request.getfixturevalue("serve"))


class TestEveryMailer:
    @pytest.mark.parametrize(
        "text",
        [
            MAIL.text,
            "",
            "Grüße, 世界 🚀",
            ".\n..\n.hidden\n",
            "x" * 5000 + "\n" + "ü" * 5000,
            "From me\nFrom you\n",
            "tab\tand  spaces  \n\nend",
        ],
        ids=["plain", "empty", "unicode", "dots", "long", "from", "spaces"],
    )
    def test_delivers_the_text_unchanged(self, post, text):
        post.mailer.send(replace(MAIL, text=text))
        (message,) = post.received()
        assert message.get_content().replace("\r\n", "\n").removesuffix("\n") == text.removesuffix("\n")
        assert message.get_content_type() == "text/plain"

    def test_says_who_and_what(self, post):
        post.mailer.send(replace(MAIL, subject="Läuft: 3 neue Läufe, 世界"))
        (message,) = post.received()
        assert message["Subject"] == "Läuft: 3 neue Läufe, 世界"
        assert message["From"] == SENDER
        assert [address.addr_spec for address in message["To"].addresses] == list(MAIL.to)
        assert message["Message-ID"].endswith("@convergence.example>")
        assert abs(message["Date"].datetime - datetime.now(UTC)) < timedelta(minutes=1)

    def test_each_mail_is_one_of_its_own(self, post):
        for _ in range(3):
            post.mailer.send(MAIL)
        assert len({message["Message-ID"] for message in post.received()}) == 3

    @pytest.mark.parametrize(
        "subject",
        [
            "a\r\nBcc: thief@evil.example",
            "a\nBcc: thief@evil.example",
            "a\rX: y",
            "a\x85X: y",
            "a\u2028X: y",
            "a\0\x1b[2J",
        ],
    )
    def test_a_subject_cannot_become_headers(self, post, subject):
        post.mailer.send(replace(MAIL, subject=subject))
        (message,) = post.received()
        assert set(message.keys()) == HEADERS
        assert [address.addr_spec for address in message["To"].addresses] == list(MAIL.to)
        assert message["Subject"].startswith("a ")

    @pytest.mark.parametrize(
        "recipient",
        [
            "",
            "ada",
            "ada@",
            "@acme.example",
            "ada@acme.example\r\nBcc: thief@evil.example",
            "ada@acme.example\n",
            "ada@acme.example,thief@evil.example",
            "Ada <ada@acme.example>",
            "ada@acme.example>\r\nRCPT TO:<thief@evil.example",
            '"ada\r\n"@acme.example',
            "ada@acme.example@evil.example",
            "=?utf-8?q?thief=40evil.example?=@acme.example",
            "a da@acme.example",
            "ada\0@acme.example",
        ],
    )
    def test_refuses_what_is_no_plain_address(self, post, recipient):
        with pytest.raises(ValueError, match=r"Recipient 2 of 2 is not a mail address\.$"):
            post.mailer.send(replace(MAIL, to=[MAIL.to[0], recipient]))
        with pytest.raises(ValueError, match="no recipients"):
            post.mailer.send(replace(MAIL, to=[]))

    def test_tells_and_logs_where_and_nothing_else(self, post, caplog):
        caplog.set_level(logging.DEBUG)
        told = post.mailer.send(MAIL)
        ours = told + "".join(r.getMessage() for r in caplog.records if r.name.startswith("adapters"))
        for word in (CANARY, "Welcome", "ada@", "bob@"):
            assert word not in ours
        assert post.received()


class TestOutbox:
    def test_files_are_whole_and_their_owners(self, tmp_path):
        told = OutboxMailer(tmp_path / "outbox").send(MAIL)
        (file,) = (tmp_path / "outbox").iterdir()
        assert told == f"outbox file {file}"
        assert file.suffix == ".eml"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o700

    def test_logs_where(self, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        OutboxMailer(tmp_path).send(MAIL)
        assert f"Mail for 2 recipient(s) is in the outbox: {tmp_path}" in caplog.text

    def test_names_sort_by_time_and_never_meet(self, tmp_path):
        mailer = OutboxMailer(tmp_path)
        for number in range(50):
            mailer.send(replace(MAIL, subject=str(number)))
        subjects = [email.message_from_bytes(file.read_bytes())["Subject"] for file in sorted(tmp_path.iterdir())]
        assert subjects == [str(number) for number in range(50)]

    def test_is_away_when_it_cannot_be_written(self, tmp_path):
        (tmp_path / "outbox").write_text("a file, not a directory")
        with pytest.raises(Away, match=f"The outbox {tmp_path}/outbox cannot be written: File exists") as away:
            OutboxMailer(tmp_path / "outbox").send(MAIL)
        assert CANARY not in repr(away.value)

    def test_takes_addresses_beyond_ascii(self, tmp_path):
        OutboxMailer(tmp_path).send(replace(MAIL, to=["jürgen@müller.example"]))
        (file,) = tmp_path.iterdir()
        assert "\nTo: jürgen@müller.example\r\n" in file.read_bytes().decode()


class TestSmtp:
    def test_delivers_to_each_recipient_in_one_mail(self, postbox, serve):
        port = serve()
        told = SmtpMailer(f"smtp://127.0.0.1:{port}", sender=SENDER).send(MAIL)
        assert told == f"smtp://127.0.0.1:{port}, for 2 of 2 recipient(s)"
        assert [recipients for recipients, _ in postbox.taken] == [list(MAIL.to)]

    def test_logs_in_under_starttls(self, postbox, serve, certificate):
        server, client = certificate
        port = serve(tls_context=server, authenticator=postbox.authenticate, auth_required=True)
        mailer = SmtpMailer(f"smtp://us%40er:p%40ss%2Fword@127.0.0.1:{port}", sender=SENDER, tls=client)
        mailer.send(MAIL)
        assert postbox.logins == [(b"us@er", b"p@ss/word", True)]
        assert postbox.encrypted == [True]

    def test_logs_in_under_tls_from_the_start(self, postbox, serve, certificate):
        server, client = certificate
        port = serve(ssl_context=server, authenticator=postbox.authenticate, auth_require_tls=True)
        SmtpMailer(f"smtps://127.0.0.1:{port}", sender=SENDER, tls=client).send(MAIL)
        assert len(postbox.taken) == 1

    def test_a_wrong_password_is_away_and_not_quoted(self, postbox, serve, certificate):
        server, client = certificate
        port = serve(tls_context=server, authenticator=postbox.authenticate)
        mailer = SmtpMailer(f"smtp://user:wr0ng-{CANARY}@127.0.0.1:{port}", sender=SENDER, tls=client)
        with pytest.raises(Away, match=r"refused user and password \(reply 535\)") as away:
            mailer.send(MAIL)
        assert not isinstance(away.value, Undeliverable)
        assert CANARY not in f"{away.value!r} {mailer!r} {mailer._server!r} {mailer._server}"
        assert not postbox.taken

    @pytest.mark.parametrize("scheme", ["smtp", "smtps"])
    def test_an_untrusted_certificate_gets_nothing(self, postbox, serve, certificate, scheme):
        server, _ = certificate
        port = serve(**{"tls_context" if scheme == "smtp" else "ssl_context": server})
        with pytest.raises(Away, match="certificate is not trusted"):
            SmtpMailer(f"{scheme}://127.0.0.1:{port}", sender=SENDER).send(MAIL)
        assert not postbox.taken

    def test_required_starttls_that_is_not_offered_gets_nothing(self, postbox, serve):
        port = serve()
        with pytest.raises(Away, match="STARTTLS"):
            SmtpMailer(f"smtp://127.0.0.1:{port}?starttls=require", sender=SENDER).send(MAIL)
        assert not postbox.taken
        assert not postbox.logins

    @pytest.mark.parametrize("recipient", ["jürgen@acme.example", "ada@müller.example"])
    def test_addresses_beyond_ascii_need_a_server_for_them(self, postbox, serve, recipient):
        mail = replace(MAIL, to=[recipient], text="Grüße")
        SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(mail)
        assert postbox.taken[0][0] == [recipient]
        assert f"\nTo: {recipient}\r\n" in postbox.taken[0][1].decode()
        with pytest.raises(Away, match="SMTPUTF8 for addresses beyond ASCII"):
            SmtpMailer(f"smtp://127.0.0.1:{serve(enable_SMTPUTF8=False)}", sender=SENDER).send(mail)

    def test_a_passing_refusal_is_tried_again(self, postbox, serve):
        postbox.data_replies = ["451 later", "421 busy"]
        SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(MAIL)
        assert len(postbox.taken) == 1

    def test_a_lasting_one_is_away(self, postbox, serve):
        postbox.data_replies = ["451 later"] * 10
        with pytest.raises(Away, match="reply 451") as away:
            SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(MAIL)
        assert not isinstance(away.value, Undeliverable)
        assert len(postbox.data_replies) == 7

    def test_a_final_one_is_not_tried_again_and_quotes_nothing(self, postbox, serve):
        postbox.data_replies = [f"554 no {CANARY} for ada@acme.example"] * 3
        with pytest.raises(Undeliverable, match="reply 554") as refusal:
            SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(MAIL)
        assert CANARY not in repr(refusal.value)
        assert "ada" not in str(refusal.value)
        assert refusal.value.__suppress_context__
        assert len(postbox.data_replies) == 2

    def test_one_recipient_taken_is_delivery(self, postbox, serve, caplog):
        postbox.refused = {"ada@acme.example": "550 no such user"}
        told = SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(MAIL)
        assert "for 1 of 2 recipient(s)" in told
        assert "for 1 of 2 recipient(s) only" in caplog.text
        assert "ada" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("adapters"))
        assert [recipients for recipients, _ in postbox.taken] == [["bob@acme.example"]]

    def test_none_taken_is_not(self, postbox, serve):
        postbox.refused = dict.fromkeys(MAIL.to, "550 no such user")
        with pytest.raises(Undeliverable, match="refused every recipient") as refusal:
            SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(MAIL)
        assert "ada" not in repr(refusal.value)

    def test_a_server_that_breaks_off_after_taking_the_mail_gets_it_once(self, postbox, serve):
        postbox.breaks_off_at_quit = True
        SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER).send(MAIL)
        assert len(postbox.taken) == 1

    def test_no_server_is_away_soon(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(Away, match=f"smtp://127.0.0.1:{port} did not take the mail"):
            SmtpMailer(f"smtp://127.0.0.1:{port}", sender=SENDER, timeout_s=20).send(MAIL)
        assert time.monotonic() - started < 10

    def test_silence_is_away_within_the_timeout(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            mailer = SmtpMailer(f"smtp://127.0.0.1:{silent.getsockname()[1]}", sender=SENDER, timeout_s=0.5)
            started = time.monotonic()
            with pytest.raises(Away):
                mailer.send(MAIL)
            assert time.monotonic() - started < 5

    def test_threads_share_one(self, postbox, serve):
        mailer = SmtpMailer(f"smtp://127.0.0.1:{serve()}", sender=SENDER)
        senders = [threading.Thread(target=mailer.send, args=(MAIL,)) for _ in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(30)
        assert len(postbox.taken) == 8


class TestSmtpUrl:
    @pytest.mark.parametrize(
        ("url", "server"),
        [
            ("smtp://mail.example", SmtpServer("mail.example", 587, tls=False, starttls=StartTls.REQUIRE)),
            ("smtp://mail.example:25?starttls=off", SmtpServer("mail.example", 25, tls=False, starttls=StartTls.OFF)),
            ("smtp://localhost:1025", SmtpServer("localhost", 1025, tls=False, starttls=StartTls.AUTO)),
            ("smtp://[::1]:1025/", SmtpServer("::1", 1025, tls=False, starttls=StartTls.AUTO)),
            (
                "smtps://a%40b:c%2F%23d@mail.example",
                SmtpServer("mail.example", 465, tls=True, starttls=StartTls.REQUIRE, user="a@b", password="c/#d"),
            ),
        ],
    )
    def test_reads(self, url, server):
        assert SmtpServer.at(url) == server

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "mail.example",
            f"http://u:{CANARY}@mail.example",
            f"smtp://u:{CANARY}@",
            f"smtp://u:/{CANARY}@mail.example",
            f"smtp://u:#{CANARY}@mail.example",
            f"smtp://u:{CANARY}/x@mail.example",
            f"smtp://u:[{CANARY}@mail.example",
            f"smtp://u:{CANARY}@mail.example:port",
            f"smtp://u:{CANARY}@mail.example:99999",
            f"smtp://u:{CANARY}@mail.example?starttls=perhaps",
            f"smtp://u:{CANARY}@mail.example?tls=1",
            f"smtp://u:{CANARY}@mail.example?starttls",
            f"smtp://u:{CANARY}@mail.example?starttls=auto",
            f"smtp://:{CANARY}@mail.example",
            "smtp://user@mail.example",
            f"smtp://u:{CANARY}ü@mail.example",
        ],
    )
    def test_refuses_in_a_sentence_without_the_password(self, url):
        with pytest.raises(ValueError, match="SMTP_URL") as refusal:
            SmtpServer.at(url)
        assert CANARY not in repr(refusal.value)
        assert refusal.value.__cause__ is None
        assert refusal.value.__context__ is None or refusal.value.__suppress_context__


class TestCompose:
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(subject=st.text(), text=st.text(), name=st.text())
    def test_no_text_adds_a_header_or_recipient(self, subject, text, name):
        quoted = name.replace("\\", "").replace('"', "")
        try:
            sender = sender_address(f'"{quoted}" <no-reply@convergence.example>')
        except ValueError:
            return
        written = compose(Mail(to=["ada@acme.example"], subject=subject, text=text), sender).as_bytes()
        read = email.message_from_bytes(written, policy=default)
        assert set(read.keys()) == HEADERS
        assert len(read.keys()) == len(HEADERS)
        assert [address.addr_spec for address in read["To"].addresses] == ["ada@acme.example"]
        assert [address.addr_spec for address in read["From"].addresses] == ["no-reply@convergence.example"]

    @pytest.mark.parametrize("sender", ["", "Convergence", "a@b, c@d", "a@b\r\nBcc: c@d", "<a b@c>"])
    def test_a_sender_is_one_address(self, sender):
        with pytest.raises(ValueError, match="The sender of mails is not an address"):
            sender_address(sender)
