"""Every event ever written still loads, and none changes its shape under its old name."""

import json
from dataclasses import dataclass, fields, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from application.mapper import UnreadableEvent
from application.streams import SUBSCRIPTION
from application.topics import TOPICS, UPCASTERS, Event
from domain import customer_events, subscription_events
from domain.customer_events import Onboarded
from domain.personal import PersonalText
from domain.plans import Plan
from domain.run_events import RunClaimed
from domain.subscription import Subscription
from tests.history.shapes import (
    GOLDEN,
    MAPPER,
    OpenVault,
    example,
    golden,
    recorded,
    shape,
    snapshot,
    snapshot_file,
    stored,
    write_missing,
)

KEPT = sorted(path.stem for path in GOLDEN.glob("*.json"))
REMEDY = "Give the event a new version in application/topics.py and an upcaster, then: python -m tests.history.write"


def kept(topic: str):
    return json.loads((GOLDEN / f"{topic}.json").read_text(encoding="utf-8"))


def test_every_topic_is_kept_and_readable():
    assert set(KEPT) == set(TOPICS) | set(UPCASTERS), "python -m tests.history.write"


def test_topics_have_one_form():
    assert set(TOPICS.values()) == set(Event.__args__)
    for topic in {*TOPICS, *UPCASTERS}:
        stream, _, rest = topic.partition(".")
        name, _, version = rest.partition("@")
        assert stream in {"billing", "customer", "subscription", "run", "projection"}
        assert name.replace("-", "").isalpha()
        assert int(version) >= 1


@pytest.mark.parametrize("topic", KEPT)
def test_it_still_loads(topic):
    found = MAPPER.to_domain_events(stored(kept(topic)))
    assert found
    assert {type(r.event) for r in found} <= set(TOPICS.values())
    if topic in TOPICS:
        assert found == [recorded(topic)]


def test_it_is_told_as_what_happened():
    """Another name, another version, and one event as two: each read from what was written at the time."""
    renamed = MAPPER.to_domain_event(stored(kept("subscription.paused@1")))
    assert (renamed.event, renamed.envelope.topic) == (
        subscription_events.Suspended(reason="reason ü"),
        "subscription.suspended@1",
    )
    with_field = MAPPER.to_domain_event(stored(kept("run.scheduled@1")))
    assert (with_field.event.not_before, with_field.envelope.topic) == (None, "run.scheduled@2")
    company, email = MAPPER.to_domain_events(stored(kept("customer.contact-changed@1")))
    assert company.event == customer_events.CompanyRenamed(company_name="company_name ü")
    assert email.event == customer_events.AdminEmailChanged(admin_email="admin_email ü")
    assert (company.envelope.version, company.envelope.at) == (email.envelope.version, email.envelope.at)
    assert (company.envelope.topic, email.envelope.topic) == (
        "customer.company-renamed@1",
        "customer.admin-email-changed@1",
    )


def test_one_that_is_told_as_several_is_not_taken_for_one():
    with pytest.raises(UnreadableEvent, match="told as 2 events"):
        MAPPER.to_domain_event(stored(kept("customer.contact-changed@1")))


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_it_is_still_written_the_same_way(topic):
    event = stored(kept(topic))
    assert MAPPER.to_stored_event(MAPPER.to_domain_event(event)) == event


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_its_shape_is_what_it_was(topic):
    assert kept(topic)["shape"] == shape(TOPICS[topic]), REMEDY


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_what_names_a_person_is_sealed(topic):
    hints = get_type_hints(TOPICS[topic], include_extras=True)
    state = kept(topic)["state"]["data"]
    for name, hint in hints.items():
        if "personal" in shape(hint):
            values = [state[name]] if isinstance(state[name], str) else state[name]
            assert all("ü" not in value for value in values)


def test_a_snapshots_shape_is_what_it_was():
    content = json.loads(snapshot_file().read_text(encoding="utf-8"))
    assert content == snapshot(), (
        "Count `shape` of SUBSCRIPTION in application/platform.py up: old snapshots do not fit."
    )
    assert SUBSCRIPTION.decoder.decode(msgspec.json.encode(content["state"])) == example(Subscription)


CHANGES = {
    "a new field": [
        ("worker_id", str),
        ("attempt", int),
        ("started_at", datetime),
        ("lease_expires_at", datetime),
        ("x", str),
    ],
    "a lost field": [("worker_id", str), ("attempt", int), ("started_at", datetime)],
    "a new name": [("worker", str), ("attempt", int), ("started_at", datetime), ("lease_expires_at", datetime)],
    "another type": [("worker_id", str), ("attempt", str), ("started_at", datetime), ("lease_expires_at", datetime)],
    "another order": [("attempt", int), ("worker_id", str), ("started_at", datetime), ("lease_expires_at", datetime)],
    "now optional": [
        ("worker_id", str),
        ("attempt", int | None),
        ("started_at", datetime),
        ("lease_expires_at", datetime),
    ],
    "now personal": [
        ("worker_id", PersonalText),
        ("attempt", int),
        ("started_at", datetime),
        ("lease_expires_at", datetime),
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change):
    """The control: the same event, a little different."""
    changed = shape(make_dataclass("RunClaimed", CHANGES[change], frozen=True, kw_only=True))
    assert json.dumps(changed) != json.dumps(kept("run.claimed@1")["shape"])
    assert json.dumps(shape(RunClaimed)) == json.dumps(kept("run.claimed@1")["shape"])


def test_a_change_deep_inside_is_noticed():
    @dataclass(frozen=True)
    class Inner:
        name: str
        more: int = 0

    @dataclass(frozen=True)
    class Outer:
        inner: tuple[Inner, ...]

    before = shape(Outer)
    Inner.__annotations__["more"] = str
    assert shape(Outer) != before
    assert shape(Plan) == {"one of": ["STARTER", "PROFESSIONAL", "SCALE"]}


def test_writing_adds_and_never_changes(tmp_path: Path):
    first = write_missing(tmp_path / "golden", tmp_path / "snapshots")
    assert len(first) == len(TOPICS) + 1
    touched = tmp_path / "golden" / "customer.onboarded@1.json"
    touched.write_text("mine")
    (tmp_path / "golden" / "run.claimed@1.json").unlink()
    assert [path.name for path in write_missing(tmp_path / "golden", tmp_path / "snapshots")] == ["run.claimed@1.json"]
    assert touched.read_text() == "mine"


def test_an_example_fills_every_field():
    for event_type in TOPICS.values():
        made = example(event_type)
        assert all(getattr(made, field.name) not in (None, (), "", {}) for field in fields(made))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: g | {"topic": "customer.unheard-of@1"},
        lambda g: g | {"state": g["state"] | {"data": {"nothing": 1}}},
        lambda g: g | {"state": {"data": g["state"]["data"]}},
        lambda g: g | {"state": g["state"] | {"at": "yesterday"}},
    ],
    ids=["unknown topic", "another shape", "no envelope", "no instant"],
)
def test_what_cannot_be_read_is_said_with_its_place(spoil):
    spoiled = stored(spoil(golden("customer.onboarded@1")))
    with pytest.raises(UnreadableEvent, match=f"Event 3 of stream {spoiled.originator_id}"):
        MAPPER.to_domain_event(spoiled)


def test_a_foreign_ciphertext_does_not_open():
    other = golden("customer.onboarded@1") | {"originator_version": 4}
    with pytest.raises(UnreadableEvent, match="somebody else"):
        MAPPER.to_domain_event(stored(other))
    assert isinstance(MAPPER._vault, OpenVault)
    assert isinstance(recorded("customer.onboarded@1").event, Onboarded)
