"""What a customer had is gone everywhere once it was erased, and stays gone: in live tables, replays and rebuilds."""

import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from google.api_core import exceptions

from adapters.bootstrap import Service, build
from adapters.postgres import rebuilds
from adapters.postgres.beside import TEMPORARY, Beside
from adapters.postgres.maintenance import maintenance
from adapters.postgres.rebuilds import State
from adapters.postgres.swap import differences
from adapters.projector import into_warehouse
from adapters.rebuild import carry_out, chosen
from adapters.rebuild_stages import LOADING
from adapters.settings import Settings
from adapters.verification.report import Report, Side
from adapters.verification.verify import Asked, verify_rows
from application.customers import Provision, provision
from application.erasure import Erase, erase
from application.ports import RunReport
from domain.projection import WAREHOUSE
from domain.refusals import NotFound
from projections.customers import FORGOTTEN
from projections.follow import catch_up
from projections.project import changes_of
from projections.rows import Forget
from projections.tables import CENTRAL, CUSTOMER_PROFILES, OWN
from projections.targets import Target
from tests.application.busy import Busy
from tests.application.world import World
from tests.projections.test_replay import copy, database, digests, events_of

__all__ = ["copy"]

POSTGRES, BIGQUERY = Side.POSTGRES, Side.BIGQUERY
LEAVERS = 4
LOOKED_AT = ("customer_profiles", "customer_team_members", "x_meta_pipeline_runs")


class Lived:
    """A customer who stays, and for each test one who leaves; BigQuery with the rows of the first ones."""

    def __init__(self, world: World, service: Service) -> None:
        self.world, self.service = world, service
        self.busy = Busy(world, seed=5)
        # Together: what costs BigQuery time is a statement, however many customers it is about.
        self.stayer, *self.guests = [self.come() for _ in range(1 + LEAVERS)]
        self.leaver = ""

    def come(self, *, provisioned: bool = True) -> str:
        """A customer with something in most tables, and a dataset, if it is provisioned; its id."""
        customer_id = f"guest_{uuid4().hex[:10]}"
        self.world.onboard(customer_id, "SCALE")
        if provisioned:
            self.provision(customer_id)
        for add in (self.busy.credential, self.busy.member, self.busy.provider):
            add(customer_id)
        self.world.pipeline(customer_id, "0 * * * *")
        self.run(customer_id)
        return customer_id

    def provision(self, customer_id: str) -> None:
        provision(Provision(**self.world.stamp(), customer_id=customer_id), self.world.platform, self.service.warehouse)

    def run(self, customer_id: str) -> None:
        orders = self.world.claim(run_id=self.world.request(customer_id))
        self.world.report(orders, report=RunReport(succeeded=True, rows=1))

    def erase(self, customer_id: str) -> None:
        erase(Erase(**self.world.stamp(), customer_id=customer_id, reason="asked for it"), self.world.platform)

    def project(self, *, page: int = 2_000) -> None:
        service = self.service
        catch_up(WAREHOUSE, service.log, into_warehouse(service), service.checkpoints, page=page)

    def put_back(self) -> None:
        """By hand: rows of the leaver's on both sides, and a dataset."""
        service, leaver = self.service, self.leaver
        put = "INSERT INTO {}customer_team_members (member_id, customer_id, email, position) VALUES ('m', '{}', 'e', 3)"
        self.world.tamper(put.format("", leaver))
        service.warehouse.query(put.format(f"{service.settings.customers_dataset_id}.", leaver))
        service.bigquery.create_dataset(leaver, timeout=10)
        service.warehouse.query(
            f"CREATE TABLE `{leaver}.x_meta_pipeline_runs` AS"
            f" SELECT * FROM `{self.stayer}.x_meta_pipeline_runs` LIMIT 1"
        )

    def verify(self, tell: Callable[[str, int, int], None] = lambda *_: None, **asked: object) -> Report:
        return verify_rows(self.service, Asked(tables=LOOKED_AT, **asked), tell)

    def has_dataset(self, customer_id: str) -> bool:
        try:
            self.service.bigquery.get_dataset(customer_id, timeout=10)
        except exceptions.NotFound:
            return False
        return True

    def rows_in_bigquery(self, customer_id: str) -> dict[str, int]:
        central = self.service.settings.customers_dataset_id
        counted = "SELECT '{0}' AS name, COUNT(*) AS n FROM `{1}.{0}` WHERE customer_id = @id"
        sql = " UNION ALL ".join(counted.format(table.name, central) for table in OWN)
        return {name: count for name, count in self.service.warehouse.query(sql, {"id": customer_id}).rows if count}

    def rows_lived(self, customer_id: str) -> dict[str, int]:
        found = {table.name: len(self.world.rows(table.name, customer_id=customer_id)) for table in OWN}
        return {name: count for name, count in found.items() if count}

    def rebuild(self, target: Target, *tables: str, tell: Callable[[str, int, int], None] = lambda *_: None) -> State:
        asked = rebuilds.ask(
            self.service.datastore,
            str(uuid4()),
            tables=chosen(tables, target),
            target=target,
            asked_by="tests",
            reason=None,
        )
        return carry_out(self.service, asked.rebuild_id, tell=tell).state


@pytest.fixture(scope="module")
def made(postgres_server, migrated_template, tmp_path_factory, bigquery_emulator) -> Iterator[Lived]:
    directory = tmp_path_factory.mktemp("forgetting")
    settings = Settings(
        data_dir=directory, bigquery_emulator_host=bigquery_emulator, customers_dataset_id=f"central_{uuid4().hex[:10]}"
    )
    with (
        database(postgres_server, migrated_template) as dsn,
        World(dsn, directory / "keys" / "wrapping.key") as world,
    ):
        service = build(settings, dsn)
        lived = Lived(world, service)
        lived.project()
        yield lived
        service.close()


@pytest.fixture
def lived(made, request) -> Lived:
    if getattr(request, "param", None) == POSTGRES:
        made.leaver = made.come(provisioned=False)
        return made
    if not made.guests:
        made.guests.append(made.come())
        made.project()
    made.leaver = made.guests.pop()
    return made


in_postgres = pytest.mark.parametrize("lived", [POSTGRES], indirect=True)
"""For tests that look at PostgreSQL alone: who leaves has no dataset."""


ONLY_THE_PROFILE = {"customer_profiles": 1}


def test_nothing_is_left_but_that_there_was_a_customer(lived):
    leaver, put = lived.leaver, lived.put_back
    assert set(lived.rows_lived(leaver)) > {"customer_usage", "customer_team_members"}
    assert lived.rows_in_bigquery(leaver) == lived.rows_lived(leaver)
    stays = lived.rows_lived(lived.stayer)
    lived.erase(leaver)
    assert lived.rows_lived(leaver) == ONLY_THE_PROFILE
    # A verification waits for a projector that has not come to it.
    assert lived.rows_in_bigquery(leaver) != ONLY_THE_PROFILE
    report = lived.verify(target=Target.BIGQUERY, wait_s=0.1)
    assert (report.found, report.complete) == (0, False)
    assert report.table("customer_team_members").sides[BIGQUERY].waiting == 1
    lived.project()
    assert lived.rows_in_bigquery(leaver) == ONLY_THE_PROFILE
    assert (lived.has_dataset(leaver), lived.has_dataset(lived.stayer)) == (False, True)
    assert lived.rows_lived(lived.stayer) == lived.rows_in_bigquery(lived.stayer) == stays
    profile = lived.world.row("customer_profiles", customer_id=leaver)
    told = {name for name, value in profile.items() if value is not None}
    assert (profile["status"], profile["dataset_created"]) == ("ERASED", False)
    assert not told & {"company_name", "admin_email", "stripe_customer_id"}
    report = lived.verify()
    assert (report.found, report.complete) == (0, True)
    with pytest.raises(NotFound):
        lived.provision(leaver)
    assert not lived.has_dataset(leaver)
    # The control: rows that somebody put back are found, and removed, and the dataset with them.
    put()
    found = [
        ("customer_team_members", POSTGRES),
        ("customer_team_members", BIGQUERY),
        ("x_meta_pipeline_runs", BIGQUERY),
    ]
    report = lived.verify(customer_id=leaver)
    assert [(d.table, d.side, d.kind) for d in report.differences] == [(*place, "extra") for place in found]
    report = lived.verify(reason="Put back by hand.")
    assert (report.found, report.left) == (3, 0)
    assert lived.verify().found == 0
    assert not lived.has_dataset(leaver)
    assert lived.rows_in_bigquery(leaver) == lived.rows_lived(leaver) == ONLY_THE_PROFILE


def test_the_log_of_the_erased_is_followed_from_its_beginning(lived):
    """In pages with and without the end of it, into a warehouse that has no such dataset any more."""
    lived.erase(lived.leaver)
    lived.service.warehouse.delete_customer(lived.leaver)
    lived.world.tamper("DELETE FROM checkpoints")
    lived.project(page=lived.service.log.end() // 2)
    assert not lived.has_dataset(lived.leaver)
    assert lived.rows_in_bigquery(lived.leaver) == ONLY_THE_PROFILE
    assert lived.rows_in_bigquery(lived.stayer) == lived.rows_lived(lived.stayer)


def test_every_row_that_goes_follows_from_its_own_customers_events(world, copy):
    """Otherwise folding could not tell whose it is, and a replay in batches would leave it."""
    Busy(world, seed=5).begin().rarities()
    names = {table.name for table in FORGOTTEN}
    assert names == {table.name for table in OWN if table is not CUSTOMER_PROFILES}
    owners: dict[tuple[str, ...], str] = {}
    changes = [change for placed in events_of(world) for change in changes_of(placed.event, placed.at)]
    for change in changes:
        table = change.row.table
        if isinstance(change.row, Forget) or table.name not in names:
            continue
        key = (table.name, *(str(change.row.values[name]) for name in table.key))
        assert owners.setdefault(key, change.customer_id) == change.customer_id
        assert change.row.values.get("customer_id", change.customer_id) == change.customer_id
    copy.write(changes)
    assert digests(copy.datastore) == digests(world.datastore)


def test_verification_looks_again_when_a_customer_is_erased_meanwhile(lived):
    """Its rows are missing, by a log that was read before."""
    left = [lived.leaver]

    def tell(stage: str, *_: int) -> None:
        if stage == "Comparing BigQuery" and left:
            lived.erase(left.pop())
            lived.project()

    report = lived.verify(tell, target=Target.BIGQUERY)
    assert (report.found, report.complete, left) == (0, True, [])
    lost = "DELETE FROM `{}.customer_team_members` WHERE customer_id = '{}'"
    lived.service.warehouse.query(lost.format(lived.service.settings.customers_dataset_id, lived.stayer))
    # The control: one that is missing for no such reason.
    report = lived.verify(target=Target.BIGQUERY, reason="Deleted by hand.")
    assert ([d.kind for d in report.differences], report.left) == (["missing"], 0)


class TestARebuild:
    @in_postgres
    def test_makes_the_tables_without_the_erased(self, lived):
        lived.erase(lived.leaver)
        before = digests(lived.world.datastore)
        assert lived.rebuild(Target.POSTGRES) is State.DONE
        assert digests(lived.world.datastore) == before
        assert rebuilds.newest(lived.service.datastore)[0].differences == {}

    @in_postgres
    def test_does_not_take_an_erasure_for_damage(self, lived):
        """The tables beside stand before it, the live ones behind it."""
        with maintenance(lived.world.dsn, name="rebuild") as connection:
            beside = Beside(connection, TEMPORARY, CENTRAL)
            beside.create()
            events = events_of(lived.world)
            beside.write(events)
            lived.erase(lived.leaver)
            assert differences(connection, beside, events[-1].at.position) == {}
            lost = "DELETE FROM customer_team_members WHERE customer_id = %s"
            [kept] = lived.world.rows("customer_team_members", customer_id=lived.stayer)
            with connection.transaction(force_rollback=True):
                connection.execute(
                    lost.replace("customer_team", f"{beside.live}.customer_team"), (kept["customer_id"],)
                )
                found = differences(connection, beside, events[-1].at.position)
            assert found == {"customer_team_members": {"changed": 0, "missing": 1, "extra": 0}}

    @pytest.mark.parametrize(
        "handled",
        [
            pytest.param(True, id="and gone from BigQuery", marks=pytest.mark.soak),
            pytest.param(False, id="and not yet"),
        ],
    )
    def test_is_overtaken_by_an_erasure(self, lived, handled):
        left = [lived.leaver]

        def tell(stage: str, done: int, _: int) -> None:
            if stage == LOADING and done == 1 and left:
                lived.erase(left.pop())
                lived.service.warehouse.delete_customer(lived.leaver)
                if handled:
                    lived.project()

        tables = ("customer_team_members", "x_meta_pipeline_runs")
        assert lived.rebuild(Target.BOTH, *tables, tell=tell) is State.DONE
        assert left == []
        lived.project()
        assert not lived.has_dataset(lived.leaver)
        assert lived.rows_in_bigquery(lived.leaver) == ONLY_THE_PROFILE
        assert (lived.verify().found, lived.has_dataset(lived.stayer)) == (0, True)


@in_postgres
def test_others_do_not_wait_for_the_log_while_rows_go(lived):
    """What a large customer has is deleted before the log is locked: here a row of it is held, and others go on."""
    erased = threading.Event()

    def leave() -> None:
        lived.erase(lived.leaver)
        erased.set()

    with maintenance(lived.world.dsn, name="reader") as holder:
        with holder.transaction():
            holder.execute("SELECT 1 FROM customer_team_members WHERE customer_id = %s FOR UPDATE", (lived.leaver,))
            leaving = threading.Thread(target=leave)
            leaving.start()
            while not lived.world.waiting_sessions():
                assert not erased.is_set()
            lived.run(lived.stayer)
            assert not erased.is_set()
        leaving.join()
    assert lived.rows_lived(lived.leaver) == ONLY_THE_PROFILE


def test_all_tables_of_customers_are_known():
    """A table that names customers is their own, and its rows go; or Stripe's, whose rows follow from other events."""
    assert {table.name for table in CENTRAL if "customer_id" in table.names} - {table.name for table in OWN} == {
        "billing_accounts"
    }
