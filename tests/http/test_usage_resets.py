"""Usage at the turn of a day and of a month, to the microsecond: what a reader sees, and whom the API lets in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import pytest

from adapters.bootstrap import build
from adapters.http.usage import UsageView, read_usage
from adapters.postgres.reads import profiles
from adapters.settings import Settings
from tests.http.running import NOWHERE, Quick, Running, database, templates

TICK = timedelta.resolution
LIMITS = {"max_pipelines_per_day": 2, "max_pipelines_per_month": 3, "reason": "test"}
MIDNIGHTS = [
    datetime(2035, 6, 16, tzinfo=UTC),
    datetime(2035, 7, 1, tzinfo=UTC),
    datetime(2036, 2, 29, tzinfo=UTC),
    datetime(2036, 3, 1, tzinfo=UTC),
    datetime(2037, 3, 1, tzinfo=UTC),
    datetime(2038, 1, 1, tzinfo=UTC),
    datetime(2100, 3, 1, tzinfo=UTC),
]


@dataclass
class Still:
    """A clock that stands where it is put."""

    at: datetime

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture(scope="module")
def server(postgres_server, migrated_template, tmp_path_factory) -> Iterator[Running]:
    """A server whose clock the test sets."""
    directory = tmp_path_factory.mktemp("resets")
    with database(postgres_server.dsn, migrated_template) as dsn:
        engine = Quick()
        service = build(Settings(data_dir=directory, bigquery_emulator_host=NOWHERE), dsn, engine=engine)
        try:
            with Running(
                replace(service, registry=templates(directory / "templates")), Still(MIDNIGHTS[0]), engine
            ) as s:
                yield s
        finally:
            service.close()


def first_of_the_next_month(day: date) -> date:
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def count_starts_again(read: Callable[[datetime], UsageView], midnight: datetime, used: int) -> None:
    """Fails unless a reader sees all of what was used up to the last tick of the day, and nothing of it afterwards."""
    before, after = read(midnight - TICK), read(midnight)
    yesterday = (midnight - TICK).date()
    new_month = midnight.day == 1
    assert (before.usage_date, before.pipelines_run_today, before.pipelines_run_month) == (yesterday, used, used)
    assert before.quota_reset_time == midnight
    assert before.quota_reset_date == first_of_the_next_month(yesterday)
    assert before.daily_remaining == before.daily_limit - used
    assert (after.usage_date, after.pipelines_run_today) == (midnight.date(), 0)
    assert after.pipelines_run_month == (0 if new_month else used)
    assert after.quota_reset_time == midnight + timedelta(days=1)
    assert after.quota_reset_date == first_of_the_next_month(midnight.date())
    assert (after.daily_remaining, after.monthly_remaining) == (
        after.daily_limit,
        after.monthly_limit - after.pipelines_run_month,
    )


@pytest.mark.parametrize("midnight", MIDNIGHTS, ids=lambda midnight: str(midnight.date()))
def test_the_count_starts_again_at_midnight(server, midnight):
    server.clock.at = midnight - timedelta(hours=1)
    customer, admin = server.onboard(), server.admin()
    assert admin.patch(f"/api/v1/admin/customers/{customer.id}/limits", json=LIMITS).status_code == 200
    assert [customer.run().status_code for _ in range(3)] == [202, 202, 429]

    def read(at: datetime) -> UsageView:
        server.clock.at = at
        return UsageView.model_validate(customer.get(f"{customer.url}/usage").json())

    # Nothing happens between one reading and the next, and reading changes nothing.
    for _ in range(2):
        count_starts_again(read, midnight, used=2)

    server.clock.at = midnight - TICK
    refused = customer.run()
    assert refused.status_code == 429
    assert refused.json()["quota_reset_time"] == f"{midnight:%Y-%m-%dT%H:%M:%SZ}"
    server.clock.at = midnight
    assert customer.run().status_code == 202
    second = customer.run()
    if midnight.day == 1:
        assert second.status_code == 202
    else:
        assert second.json()["quota_reset_date"] == str(first_of_the_next_month(midnight.date()))
    days = customer.get(f"{customer.url}/usage/history").json()["items"]
    assert [(day["usage_date"], day["pipelines_run_today"]) for day in days] == [
        (str(midnight.date()), 2 if midnight.day == 1 else 1),
        (str((midnight - TICK).date()), 2),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda read, at: read(at - TICK),
        lambda read, at: read(at + TICK),
        lambda read, at: read(at - timedelta(hours=5)),
    ],
    ids=["a tick late", "a tick early", "by New York's clock"],
)
def test_a_reader_of_another_moment_is_noticed(server, wrong):
    """The control."""
    midnight = MIDNIGHTS[0]
    server.clock.at = midnight - timedelta(hours=1)
    customer = server.onboard()
    customer.run()

    def read(at: datetime) -> UsageView:
        return read_usage(server.service.datastore, customer.id, at)

    count_starts_again(read, midnight, used=1)
    with pytest.raises(AssertionError):
        count_starts_again(lambda at: wrong(read, at), midnight, used=1)


def test_the_row_alone_does_not_know_what_day_it_is(server):
    """The control: what a reader would see who does not apply the rule."""
    midnight = MIDNIGHTS[0]
    server.clock.at = midnight - timedelta(hours=1)
    customer = server.onboard()
    customer.run()
    row = profiles.usage(server.service.datastore, customer.id)
    seen = read_usage(server.service.datastore, customer.id, midnight - TICK)
    assert row["pipelines_run_today"] == seen.pipelines_run_today == 1
    with pytest.raises(AssertionError):
        count_starts_again(lambda _: seen, midnight, used=1)
