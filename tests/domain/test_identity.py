"""Names that decide uniqueness: what may be a customer's id, and which runs are the same run."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.identity import (
    customer_id,
    customer_stream,
    onboarding_run_id,
    requested_run_id,
    scheduled_run_id,
    subscription_stream,
)
from domain.refusals import Invalid

SLOT = datetime(2025, 11, 17, 7, 0, tzinfo=UTC)


@pytest.mark.parametrize("text", ["abc", "ABC", "a_1", "123", "x" * 50, "acme_corp", "systems", "administrator"])
def test_an_id_is_kept_as_its_owner_wrote_it(text):
    assert customer_id(text, central_dataset="customers_metadata") == text


@pytest.mark.parametrize(
    "text",
    ["", "ab", "x" * 51, "a-b", "a b", "abc\n", "äbc", "абв", "١٢٣", "a.b", "a/b", "abc\x00", "ａｂｃ"],  # noqa: RUF001 - look-alikes
)
def test_other_characters_and_lengths_are_refused(text):
    with pytest.raises(Invalid, match="3 to 50 characters"):
        customer_id(text, central_dataset="customers_metadata")


@pytest.mark.parametrize(
    "text",
    ["_abc", "__dunder", "system", "SYSTEM", "admin", "Admin", "information_schema", "customers_metadata", "Central"],
)
def test_names_that_mean_something_else_are_refused(text):
    with pytest.raises(Invalid, match="reserved"):
        customer_id(text, central_dataset="central")


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_whatever_is_accepted_can_name_a_dataset(text):
    try:
        accepted = customer_id(text, central_dataset="customers_metadata")
    except Invalid:
        return
    assert accepted == text
    assert 3 <= len(text) <= 50
    assert set(text.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


def test_ids_that_differ_in_case_are_one_customer():
    for stream in (customer_stream, subscription_stream, onboarding_run_id):
        assert stream("ACME_Corp") == stream("acme_corp")
        assert stream("acme_corp") != stream("acme_corp2")
    assert customer_stream("acme") != subscription_stream("acme")


def test_a_slot_is_an_instant_in_any_zone_and_a_pipeline():
    tokyo = SLOT.astimezone(timezone(timedelta(hours=9)))
    assert scheduled_run_id("config-1", SLOT) == scheduled_run_id("config-1", tokyo)
    assert scheduled_run_id("config-1", SLOT) != scheduled_run_id("config-2", SLOT)
    assert scheduled_run_id("config-1", SLOT) != scheduled_run_id("config-1", SLOT + timedelta(minutes=1))


@given(st.text(), st.datetimes(timezones=st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")])))
def test_a_slots_run_is_named_as_the_standard_says(config_id, slot):
    namespace = uuid5(UUID("8f2d7a56-3c7f-5b0e-9a55-1c0de5f1a9e4"), "run")
    name = f"{config_id}@{slot.astimezone(UTC).isoformat(timespec='seconds')}"
    assert scheduled_run_id(config_id, slot) == uuid5(namespace, name)


def test_a_request_that_names_itself_is_its_customers_alone():
    assert requested_run_id("acme", "key-1") == requested_run_id("ACME", "key-1")
    assert requested_run_id("acme", "key-1") != requested_run_id("acme2", "key-1")


def test_ids_are_for_ever():
    """These are in every log: a change here makes every customer and every slot of the past a stranger."""
    assert str(customer_stream("acme_corp")) == "214f1076-7e8e-5ef5-80ef-f8e4c4f12a73"
    assert str(subscription_stream("acme_corp")) == "00914352-34bc-541e-9e72-2b1652f004e1"
    assert str(scheduled_run_id("config-1", SLOT)) == "202b9fbd-059e-5f1c-9a71-7e9b1f4627df"
    assert str(onboarding_run_id("acme_corp")) == "0f124e4b-3034-587b-880c-1dc34ae7c5f3"
    assert str(requested_run_id("acme_corp", "key-1")) == "f712b8fa-4089-5f6e-a953-2107c02786b9"
