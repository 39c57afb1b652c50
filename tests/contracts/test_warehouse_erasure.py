"""What the warehouse promises of customers who were erased, at an emulator and, where there is a project, at Google."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from google.api_core import exceptions

from adapters.bigquery.client import NotThere, connect, run
from adapters.bigquery.reading import Reader
from adapters.bigquery.staging import Staging
from adapters.bigquery.tables import ensure_dataset
from adapters.bigquery.warehouse import BigQueryWarehouse
from application.ports import Away
from domain.refusals import NotFound
from projections.rows import Change, Forget
from projections.tables import CUSTOMER, CUSTOMER_API_KEYS, CUSTOMER_TEAM_MEMBERS, X_META_PIPELINE_RUNS
from tests.contracts.warehouse_place import LOCATION, Place, fresh, whole

KEYS, MEMBERS, LOGS = CUSTOMER_API_KEYS, CUSTOMER_TEAM_MEMBERS, X_META_PIPELINE_RUNS


def member(name, customer, position):
    return Change(whole(MEMBERS, member_id=name, customer_id=customer), position, customer)


def run_of(customer, position, name="1"):
    return Change(whole(LOGS, pipeline_logging_id=name, customer_id=customer), position, customer)


def erased(customer, position, *tables):
    return [Change(Forget(table, customer), position, customer) for table in tables or (MEMBERS, KEYS, *CUSTOMER)]


def there(client, place, dataset):
    try:
        client.get_dataset(f"{place.project}.{dataset}", timeout=10)
    except exceptions.NotFound:
        return False
    return True


def members(place, client, prefix):
    return [
        r["member_id"] for r in Reader(client, place.project).rows(place.central, MEMBERS) if prefix in r["member_id"]
    ]


@contextmanager
def knowing(place: Place, erased) -> Iterator[BigQueryWarehouse]:
    """A warehouse that is told who was erased."""
    warehouse = BigQueryWarehouse(place.client(), place.project, place.central, LOCATION, erased=erased)
    yield warehouse
    warehouse.close()


def test_rows_at_earlier_positions_go_and_no_others(warehouse, place, client):
    one, other, prefix = place.customer(), place.customer(), fresh()
    before = [member(f"{prefix}{n}", one, n) for n in (1, 2)]
    warehouse.write([*before, member(f"{prefix}3", other, 3), member(f"{prefix}9", one, 9)])
    warehouse.write(erased(one, 5, MEMBERS))
    assert members(place, client, prefix) == [f"{prefix}3", f"{prefix}9"]
    # What a crash has repeated: the rows come and go again.
    warehouse.write([*before, *erased(one, 5, MEMBERS)])
    warehouse.write(erased(one, 5, MEMBERS))
    assert members(place, client, prefix) == [f"{prefix}3", f"{prefix}9"]


def test_many_customers_go_in_one_statement(warehouse, place, client):
    prefix = fresh()
    names = [f"contract_{prefix[:8]}_{n}" for n in range(20)]
    warehouse.write([member(f"{prefix}{name}", name, 1) for name in names])
    warehouse.write([change for name in names[1:] for change in erased(name, 2, MEMBERS)])
    assert members(place, client, prefix) == [f"{prefix}{names[0]}"]


def test_the_dataset_goes_with_everything_in_it(warehouse, place, client):
    customer, other, prefix = place.customer(), place.customer(), fresh()
    warehouse.write([run_of(customer, 1), run_of(other, 2), member(f"{prefix}1", customer, 3)])
    ensure_dataset(client, customer, LOCATION)
    run(client, f"CREATE TABLE `{place.project}.{customer}.gcp_silver_cost` AS SELECT 1 AS cost")
    for _ in range(2):
        # Also what comes before it in the same stretch, and after it.
        warehouse.write([run_of(customer, 4, "2"), *erased(customer, 5), run_of(customer, 6, "3")])
        assert not there(client, place, customer)
    assert there(client, place, other)
    assert members(place, client, prefix) == []


def test_deleting_a_dataset_by_itself(warehouse, place, client):
    customer = place.customer()
    warehouse.ensure_customer(customer)
    for _ in range(2):
        warehouse.delete_customer(customer)
        assert not there(client, place, customer)
    for refused in (place.central, "a.b"):
        with pytest.raises(ValueError):
            warehouse.delete_customer(refused)
    assert there(client, place, place.central)
    with pytest.raises(ValueError, match="no customer's"):
        warehouse.write(erased(place.central, 5))
    assert there(client, place, place.central)


@pytest.mark.parametrize("known", [True, False], ids=["erased", "control"])
def test_an_earlier_part_of_the_log_does_not_bring_it_back(place, client, known):
    customer, prefix = place.customer(), fresh()
    with knowing(place, lambda name: known and name == customer) as warehouse:
        warehouse.write([run_of(customer, 1), member(f"{prefix}1", customer, 2)])
        assert there(client, place, customer) is not known
        # Its rows in the central tables are there until the log says that it was erased.
        assert members(place, client, prefix) == [f"{prefix}1"]
        warehouse.write(erased(customer, 5))
        assert not there(client, place, customer)
        assert members(place, client, prefix) == []


def test_no_dataset_is_made_for_the_erased(place, client):
    customer = place.customer()
    with knowing(place, lambda _: True) as warehouse, pytest.raises(NotFound):
        warehouse.ensure_customer(customer)
    assert not there(client, place, customer)


@pytest.mark.parametrize("act", ["ensure", "write"])
def test_a_dataset_made_while_its_customer_was_erased_goes_again(place, client, act):
    """Whoever erased it deleted what was not there yet."""
    customer = place.customer()
    asked: list[bool] = []

    def meanwhile(_: str) -> bool:
        asked.append(there(client, place, customer))
        return asked[-1]

    with knowing(place, meanwhile) as warehouse:
        if act == "ensure":
            with pytest.raises(NotFound):
                warehouse.ensure_customer(customer)
        else:
            warehouse.write([run_of(customer, 1)])
    assert asked == [False, True]  # before it was made, and after
    assert not there(client, place, customer)


class TestARebuild:
    @pytest.fixture
    def gone(self):
        return set()

    @pytest.fixture
    def staging(self, place, client, gone):
        with Staging(client, place.project, place.central, LOCATION, erased=gone.__contains__) as staging:
            yield staging

    def rows(self, *customers):
        return [
            {**dict.fromkeys(LOGS.names), "dataset": name, "pipeline_logging_id": "1", "position": 1}
            for name in sorted(customers)
        ]

    def test_loads_nothing_of_the_erased(self, place, client, staging, gone):
        one, other = place.customer(), place.customer()
        gone.add(one)
        staging.load_each(LOGS, self.rows(one, other))
        assert (there(client, place, one), there(client, place, other)) == (False, True)
        staging.swap_all()
        assert (there(client, place, one), there(client, place, other)) == (False, True)

    def test_swaps_what_is_left(self, place, client, staging, gone):
        """Of those who were erased since it was loaded, whether their dataset went or not."""
        customers = [place.customer() for _ in range(3)]
        staging.load_each(LOGS, self.rows(*customers))
        gone |= set(customers[:2])
        client.delete_dataset(f"{place.project}.{customers[0]}", delete_contents=True, timeout=30)
        staging.write(erased(customers[1], 5))
        staging.swap_all()
        assert [there(client, place, name) for name in customers] == [False, False, True]
        assert staging.staged == []

    def test_control_a_dataset_that_somebody_else_deleted_is_missed(self, place, client, staging):
        customer = place.customer()
        staging.load_each(LOGS, self.rows(customer))
        client.delete_dataset(f"{place.project}.{customer}", delete_contents=True, timeout=30)
        with pytest.raises(NotThere):
            staging.swap_all()
        staging.drop_all()

    def test_follows_into_the_staged_tables(self, place, client, staging):
        one, other, prefix = place.customer(), place.customer(), fresh()
        staging.load(
            place.central, MEMBERS, [{**member(f"{prefix}{c}", c, 1).row.values, "position": 1} for c in (one, other)]
        )
        staging.write([run_of(one, 2), member(f"{prefix}2", one, 3)])
        assert there(client, place, one)
        staging.write([run_of(one, 4, "2"), *erased(one, 5, MEMBERS, LOGS)])
        assert not there(client, place, one)
        staging.write([member(f"{prefix}6", other, 6)])
        staging.swap_all()
        assert members(place, client, prefix) == sorted([f"{prefix}{other}", f"{prefix}6"])


def test_an_answer_that_does_not_come_is_away():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = connect("nobody", f"http://127.0.0.1:{port}", LOCATION)
    warehouse = BigQueryWarehouse(client, "nobody", "central", LOCATION)
    started = time.monotonic()
    with pytest.raises(Away):
        warehouse.write(erased("acme_corp", 5, LOGS))
    assert time.monotonic() - started < 10
    warehouse.close()
