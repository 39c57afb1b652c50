"""Events of several versions of Stripe's API tell the same; what is forged, strange or not understood is told apart."""

import shutil
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
import stripe

from adapters.stripe.events import told_by
from adapters.stripe.signature import Forged, NotAnEvent, verified
from domain.billing_events import Outcome
from tests.stripe.deliveries import SECRET, VERSIONS, event, fixture, signed

NAMES = ("checkout", "created", "updated", "failed", "paid", "deleted")
BEGUN = datetime(2026, 11, 1, 12, tzinfo=UTC)


def told(given):
    return told_by(given, central_dataset="customers_metadata")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_version_tells_the_same(name, version):
    newest, this = told(fixture(VERSIONS[0], name)), told(fixture(version, name))
    assert this.report is not None
    assert {**asdict(this.report), "event_id": ""} == {**asdict(newest.report), "event_id": ""}
    assert (this.stripe_customer_id, this.contact) == (newest.stripe_customer_id, newest.contact)


def test_the_newest_version_is_the_librarys():
    assert VERSIONS[0] == stripe.api_version


def test_what_a_subscription_tells():
    report = told(event("updated")).report
    assert report.price_ids == ("price_professional",)
    assert report.period_start < report.period_end
    assert told(event("updated", cancel_at_period_end=True)).report.cancel_at == report.period_end
    ended = told(event("deleted", cancellation_details={"reason": "payment_failed"})).report
    assert (ended.unpaid, told(event("deleted")).report.unpaid) == (True, False)


def test_an_expanded_object_stands_for_its_id():
    report = told(event("failed", customer={"id": "cus_other", "object": "customer"}))
    assert report.stripe_customer_id == "cus_other"


def test_what_a_checkout_tells():
    found = told(event("checkout"))
    assert (found.report.names, found.report.vouched, found.report.paid) == ("example_works", False, True)
    assert (found.contact.company_name, found.contact.admin_email) == ("Example Works GmbH", "owner@example.com")
    vouched = told(event("checkout", metadata={"customer_id": "acme_corp"})).report
    assert (vouched.names, vouched.vouched) == ("acme_corp", True)
    assert told(event("checkout", payment_status="unpaid")).report.paid is False
    assert told(event("checkout", mode="payment")).report is None


def test_nothing_personal_is_in_a_report():
    found = told(event("checkout", client_reference_id="olga.owner@example.com"))
    assert found.report.names is None
    everything = repr(found) + repr(found.report) + repr(found.note)
    assert not any(word in everything for word in ("olga", "Olga", "owner@", "Example Works"))


@pytest.mark.parametrize(
    "details", [{"email": None}, {"email": "not an address"}, {"email": "a@b.c\u0000"}], ids=["none", "wrong", "nul"]
)
def test_a_contact_that_cannot_be_written_to_is_none(details):
    assert told(event("checkout", customer_details=details)).contact is None


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (event("paid", type="invoice.finalized"), Outcome.UNKNOWN),
        (event("paid", type="payout.paid"), Outcome.UNKNOWN),
        (event("paid", status=None), Outcome.UNREADABLE),
        (event("updated", items=None), Outcome.UNREADABLE),
        (event("updated", customer="x" * 300), Outcome.UNREADABLE),
        (event("updated", ended_at="yesterday"), Outcome.UNREADABLE),
        (event("updated", ended_at="2026-11-01T12:00:00"), Outcome.UNREADABLE),
        (event("updated", cancel_at="9999-12-31T23:59:59Z"), Outcome.UNREADABLE),
    ],
    ids=["not ours", "never heard of", "no status", "no items", "long id", "no instant", "no zone", "no end"],
)
def test_what_nothing_follows_from_is_noted(given, outcome):
    found = told(given)
    assert found.report is None
    assert (found.note.outcome, found.note.event_id, found.note.type) == (outcome, given["id"], given["type"])


def sign(told_event, **more):
    body, headers = signed(told_event, **more)
    return body, headers["Stripe-Signature"]


def test_either_secret_fits():
    body, header = sign(event("paid"))
    assert verified(body, header, ["whsec_the_one_that_follows", SECRET])["id"] == event("paid")["id"]


@pytest.mark.parametrize("header", [None, "", "t=1", "t=x,v1=y", "v1=00", "=", "\u00e9", "t=1,v1=" + "0" * 64])
def test_a_header_that_proves_nothing(header):
    with pytest.raises(Forged):
        verified(sign(event("paid"))[0], header, [SECRET])


def test_one_byte_more_an_old_one_and_another_secret_prove_nothing():
    body, header = sign(event("paid"))
    for given in ((body + b" ", header), sign(event("paid"), age=301), sign(event("paid"), secret="whsec_x")):
        with pytest.raises(Forged):
            verified(*given, [SECRET])
    assert verified(*sign(event("paid"), age=290), [SECRET])


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b'"x"', b"{", b'{"object": "v2.core.event"}', b"[" * 20_000])
def test_what_is_signed_and_no_event(body):
    with pytest.raises(NotAnEvent):
        told(verified(*sign(body), [SECRET]))


def test_a_body_that_is_no_text_proves_nothing():
    with pytest.raises(Forged):
        verified(b"\xff\xfe", "t=1,v1=00", [SECRET])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_a_delivery_can_be_signed_in_a_shell(tmp_path):
    body, header = sign(event("paid"))
    at = header.partition(",")[0].removeprefix("t=")
    file = tmp_path / "event.json"
    file.write_bytes(body)
    line = f"(printf '%s.' {at}; cat {file}) | openssl dgst -sha256 -hmac {SECRET} -hex | sed 's/.* //'"
    made = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout.strip()
    assert header == f"t={at},v1={made}"
