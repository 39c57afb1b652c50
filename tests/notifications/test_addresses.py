"""Which addresses may be posted to, and that the one that was checked is the one that is connected to."""

import socket
import ssl
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from adapters.notifications.addresses import any_address, host_must_be_public, is_public
from adapters.notifications.courier import Failed, Refused
from adapters.notifications.webhooks import Poster, PrivateAddress
from application.webhooks import NewWebhookEndpoint
from domain.refusals import Invalid
from tests.notifications.receiver import receiving

PUBLIC = ["93.184.216.34", "1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]
PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",  # noqa: S104 - it is refused
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "not an address",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_ordinary_address_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_any_other_is_not(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.acmecorp.com/",
        "https://localhost/",
        "https://LOCALHOST./",
        "https://a.localhost/",
        "https://metadata.google.internal/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
    ],
)
def test_what_is_seen_to_lead_inside_is_refused_at_once(url):
    with pytest.raises(Invalid):
        host_must_be_public(url, anywhere=False)
    host_must_be_public(url, anywhere=True)


def test_a_public_host_is_not():
    host_must_be_public("https://hooks.acmecorp.com:8443/x?y=z", anywhere=False)
    host_must_be_public("https://93.184.216.34/x", anywhere=False)


@pytest.mark.parametrize("address", PRIVATE[:-2])
def test_nothing_is_sent_to_a_host_with_such_an_address(address):
    poster = Poster(resolve=lambda _host, _port: ["93.184.216.34", address])
    with pytest.raises(PrivateAddress):
        poster.post("https://hooks.acmecorp.com/", b"{}", {})


HOSTLESS = [
    f"https://{'a' * 64}.example/token-of-acme",
    "https://hooks..example/token-of-acme",
    "https://.example/token-of-acme",
    "https://[v1.x]/token-of-acme",
]


@pytest.mark.parametrize(
    "url",
    [*HOSTLESS, "https://[fe80::1%25eth0]/", "https://exa%6dple.com/", "https://a,b/", "https://*/", "https://{}/"],
)
def test_an_address_without_a_proper_host_is_not_taken(url):
    with pytest.raises(ValidationError, match="must be an address such as"):
        NewWebhookEndpoint(url=url)


@pytest.mark.parametrize(
    "host", ["hooks.acmecorp.com", "hooks.acmecorp.com.", "xn--bcher-kva.example", "[2606:4700::1]"]
)
def test_others_are(host):
    assert NewWebhookEndpoint(url=f"https://{host}:8443/x").url == f"https://{host}:8443/x"


@pytest.mark.parametrize("url", HOSTLESS)
def test_one_that_was_taken_before_is_given_up_in_words_of_our_own(url):
    with pytest.raises(Refused, match="not one that can be posted to") as refused:
        Poster().post(url, b"{}", {})
    assert refused.value.__cause__ is None


class Rebinding:
    """A name server that says something else each time it is asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host, port):
        self.asked += 1
        return [self.answers.pop(0)]


def test_the_address_that_was_checked_is_the_one_that_gets_it():
    """Here 127.0.0.1 stands for the outside, and 127.0.0.2 for the inside."""
    with receiving("127.0.0.1") as outside:
        names = Rebinding("127.0.0.1", "127.0.0.2")
        poster = Poster(resolve=names, allow=lambda address: address == "127.0.0.1", plain=True)
        url = outside.url("hooks.acmecorp.example")
        assert poster.post(url, b"{}", {}).status == 200
        assert names.asked == 1
        with pytest.raises(PrivateAddress):
            poster.post(url, b"{}", {})
        [(_, headers, _)] = outside.got
        assert headers["host"] == f"hooks.acmecorp.example:{outside.port}"


def test_who_looks_up_once_more_is_led_inside():
    """The control: checks one answer and connects to the next."""
    with receiving("127.0.0.2") as inside:
        names = Rebinding("127.0.0.1", "127.0.0.2")

        class Naive(Poster):
            async def _post(self, asked, addresses, body, headers):
                return await super()._post(asked, names(asked.host, 0), body, headers)

        poster = Naive(resolve=names, allow=lambda address: address == "127.0.0.1", plain=True)
        poster.post(inside.url("hooks.acmecorp.example"), b"{}", {})
        assert len(inside.got) == 1


@pytest.mark.parametrize(("addresses", "arrives"), [(("127.0.0.3", "127.0.0.1"), True), (("127.0.0.3",), False)])
def test_where_one_address_does_not_answer_the_next_one_is_tried(receiver, addresses, arrives):
    poster = Poster(resolve=lambda _host, _port: addresses, allow=any_address, plain=True)
    with nullcontext() if arrives else pytest.raises(Failed, match="could not be reached"):
        assert poster.post(receiver.url("hooks.acmecorp.example"), b"{}", {}).status == 200
    assert len(receiver.got) == arrives


def test_redirects_are_not_followed(receiver):
    with receiving("127.0.0.2") as inside:
        receiver.answers = [(307, {"Location": inside.url("127.0.0.2")})]
        poster = Poster(allow=any_address, plain=True)
        assert poster.post(receiver.url(), b"{}", {}).status == 307
        assert inside.got == []


def test_without_tls_nothing_is_posted(receiver):
    with pytest.raises(Refused, match="https"):
        Poster(allow=any_address).post(receiver.url(), b"{}", {})
    assert receiver.got == []


def test_a_receiver_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        poster = Poster(allow=any_address, plain=True, timeout_s=0.2)
        with pytest.raises(Failed, match=r"within 0\.2 s"):
            poster.post(f"http://127.0.0.1:{silent.getsockname()[1]}/", b"{}", {})


def test_a_host_that_nobody_knows_is_named_in_no_error():
    def nobody(_host, _port):
        raise socket.gaierror(-2, "hooks.secret-token.example")

    with pytest.raises(Failed) as failed:
        Poster(resolve=nobody).post("https://hooks.secret-token.example/", b"{}", {})
    assert "secret-token" not in str(failed.value)
    assert failed.value.__cause__ is None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of hooks.acmecorp.example: the server's context, and one that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.acmecorp.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.acmecorp.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "cert.pem"))


def test_the_certificate_is_checked_by_the_hosts_name(certificate):
    server, client = certificate
    with receiving(tls=server) as receiver:
        poster = Poster(resolve=lambda _host, _port: ["127.0.0.1"], allow=any_address, tls=client)
        assert poster.post(receiver.url("hooks.acmecorp.example", "https"), b"{}", {}).status == 200
        with pytest.raises(Failed, match="could not be reached"):
            poster.post(receiver.url("other.acmecorp.example", "https"), b"{}", {})
        untrusting = Poster(resolve=lambda _host, _port: ["127.0.0.1"], allow=any_address)
        with pytest.raises(Failed, match="could not be reached"):
            untrusting.post(receiver.url("hooks.acmecorp.example", "https"), b"{}", {})
        assert len(receiver.got) == 1


def test_an_address_is_kept_out_of_errors():
    with pytest.raises(Failed) as failed:
        Poster(allow=any_address, plain=True).post("http://127.0.0.1:1/token-of-acme", b"{}", {})
    assert "token-of-acme" not in str(failed.value)
    assert not isinstance(failed.value.__cause__, httpx.HTTPError)
