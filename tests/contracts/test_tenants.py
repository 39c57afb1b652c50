"""What is read on a customer's behalf: its own rows, whatever the statement forgets."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.rows import dict_row

from adapters.doctor_tenants import examine_tenants
from adapters.finding import Result
from adapters.postgres import privileges, schema
from adapters.postgres.beside import REBUILD, Beside
from adapters.postgres.event_log import Datastore
from adapters.postgres.maintenance import maintenance
from adapters.postgres.privileges import ROLE, TENANT, TENANTS_BESIDE, TENANTS_EVENTS, is_tenants
from adapters.postgres.reads.listing import Where, newest_first
from adapters.postgres.swap import swap
from adapters.postgres.tenant import TenantReads
from projections.tables import CENTRAL, SCHEDULED_PIPELINE_RUNS
from tests.application.world import World, migrated
from tests.http.running import database

TENANTS = [TENANTS_EVENTS, *TENANTS_BESIDE, *(table.name for table in CENTRAL if is_tenants(table))]
EVERYBODYS = [table.name for table in CENTRAL if not is_tenants(table)]
READABLE = (
    "SELECT relname AS name FROM pg_class WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('r', 'p', 'v')"
    " AND has_table_privilege(%(tenant)s, oid, 'SELECT')"
)


@pytest.fixture(scope="module")
def two(postgres_server, tmp_path_factory) -> Iterator[World]:
    """Two customers that have something of everything. Tests leave it as it was."""
    with (
        database(postgres_server.dsn, migrated(postgres_server.dsn)) as dsn,
        World(dsn, tmp_path_factory.mktemp("tenants") / "key") as world,
    ):
        for customer_id in ("acme", "other"):
            world.onboard(customer_id)
            world.request(customer_id=customer_id)
        yield world


def customers_seen(reads: Datastore | TenantReads, table: str) -> set[str]:
    """Whose rows a statement shows that forgot to ask for one customer's."""
    query = sql.SQL("SELECT DISTINCT customer_id FROM {}").format(sql.Identifier(table))
    with reads.reading() as cursor:
        return {row["customer_id"] for row in cursor.execute(query).fetchall()}


def names(dsn: str, query: str) -> set[str]:
    with psycopg.connect(dsn, row_factory=dict_row) as owner:
        return {row["name"] for row in owner.execute(query, {"schema": "public", "tenant": TENANT})}


def doctor(dsn: str) -> tuple[Result, list[str]]:
    with psycopg.connect(dsn, row_factory=dict_row) as owner:
        return examine_tenants(owner).result, privileges.unbound(owner)


@pytest.mark.parametrize("table", TENANTS)
def test_a_forgotten_condition_shows_nothing_of_others(two, table):
    everybody = customers_seen(two.datastore, table)
    assert customers_seen(TenantReads(two.datastore, "acme"), table) == everybody & {"acme"}
    assert customers_seen(TenantReads(two.datastore, "nobody"), table) == set()
    assert customers_seen(TenantReads(two.datastore, ""), table) == set()
    assert customers_seen(two.datastore, table) == everybody


def test_there_was_something_to_hide(two):
    """The control: through the service's own datastore both show."""
    both = [table for table in TENANTS if customers_seen(two.datastore, table) == {"acme", "other"}]
    assert {"customer_profiles", "customer_api_keys", "scheduled_pipeline_runs", TENANTS_EVENTS} <= set(both)


@pytest.mark.parametrize("table", [*EVERYBODYS, "data_keys", "schema_migrations", "run_leases", "log_seals"])
def test_what_is_no_customers_is_not_to_be_read(two, table):
    with pytest.raises(errors.InsufficientPrivilege), TenantReads(two.datastore, "acme").reading() as cursor:
        cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))).fetchall()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO customer_team_members (member_id, customer_id, position) VALUES ('x', 'acme', 1)",
        "UPDATE customer_profiles SET company_name = 'x'",
        "DELETE FROM customer_api_keys",
        "TRUNCATE stored_events",
        "ALTER TABLE customer_profiles DISABLE ROW LEVEL SECURITY",
        "DROP POLICY own_rows ON customer_profiles",
        "CREATE TABLE mine ()",
    ],
)
def test_reading_is_all_that_can_be_done(two, statement):
    with pytest.raises(errors.InsufficientPrivilege), TenantReads(two.datastore, "acme").reading() as cursor:
        cursor.execute(statement).fetchall()
    assert two.scalar("SELECT count(*) FROM customer_profiles") == 2


def test_nothing_of_it_stays_on_the_connection(two):
    """Also where the statement failed, or the one who reads did."""
    datastore = Datastore(two.dsn, size=1)
    try:
        reads = TenantReads(datastore, "acme")
        for _ in range(3):
            assert customers_seen(reads, "customer_profiles") == {"acme"}
            with pytest.raises(errors.DivisionByZero), reads.reading() as cursor:
                cursor.execute("SELECT 1 / 0").fetchall()
            with pytest.raises(ZeroDivisionError), reads.reading() as cursor:
                1 // len(cursor.execute("SELECT FROM customer_profiles WHERE company_name IS NULL").fetchall())
            with datastore.reading() as cursor:
                row = cursor.execute(
                    "SELECT current_user AS me, current_setting('convergence.customer_id', true) AS customer"
                ).fetchone()
            assert row["me"] == ROLE
            assert not row["customer"]
            assert customers_seen(datastore, "customer_profiles") == {"acme", "other"}
    finally:
        datastore.close()


def test_several_statements_of_one_reader_are_all_bound(two):
    with TenantReads(two.datastore, "acme").reading() as cursor:
        for _ in range(3):
            found = cursor.execute("SELECT customer_id FROM customer_profiles").fetchall()
            assert [row["customer_id"] for row in found] == ["acme"]


def test_every_table_that_can_be_read_is_bound(two):
    assert names(two.dsn, READABLE) == set(TENANTS)
    assert doctor(two.dsn) == (Result.OK, [])


@pytest.mark.parametrize(
    "breach",
    [
        "ALTER TABLE customer_usage DISABLE ROW LEVEL SECURITY",
        "DROP POLICY own_rows ON customer_usage",
        "ALTER POLICY own_rows ON customer_usage USING (true)",
        "ALTER POLICY own_rows ON customer_usage TO convergence_service",
    ],
)
def test_a_table_that_is_not_bound_is_found(database_url, breach):
    """The control of the check before."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        schema_of(owner)
        owner.execute(breach)
    assert doctor(database_url) == (Result.FAIL, ["customer_usage"])


def schema_of(connection: psycopg.Connection) -> None:
    connection.row_factory = dict_row
    schema.migrate(connection)


def test_a_rebuilt_table_and_a_new_one_are_bound(database_url, tmp_path):
    with psycopg.connect(database_url, autocommit=True) as owner:
        schema_of(owner)
    with World(database_url, tmp_path / "key") as world:
        for customer_id in ("acme", "other"):
            world.onboard(customer_id)
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute("DROP TABLE customer_team_members")
            schema_of(owner)
        with maintenance(database_url, name="test") as connection:
            beside = Beside(connection, REBUILD, CENTRAL)
            beside.create()
            for table in CENTRAL:
                copied = sql.SQL("INSERT INTO {} SELECT * FROM {}").format(
                    beside.named(table.name), sql.Identifier(beside.live, table.name)
                )
                connection.execute(copied)
            beside.index()
            swap(connection, beside, lambda: None, also=lambda: None)
        assert doctor(database_url) == (Result.OK, [])
        assert names(database_url, READABLE) == set(TENANTS)
        assert customers_seen(TenantReads(world.datastore, "acme"), "customer_profiles") == {"acme"}
        assert customers_seen(world.datastore, "customer_profiles") == {"acme", "other"}


def test_other_readers_see_what_they_saw(two):
    """A role that was granted a table reads all of it: the security is the tenants' alone."""
    with psycopg.connect(two.dsn, row_factory=dict_row) as owner, owner.transaction(force_rollback=True):
        owner.execute("CREATE ROLE somebody_who_reads NOLOGIN")
        owner.execute("GRANT somebody_who_reads TO CURRENT_USER")
        owner.execute("GRANT SELECT ON customer_profiles, stored_events TO somebody_who_reads")
        owner.execute("SET LOCAL ROLE somebody_who_reads")
        assert owner.execute("SELECT count(*) AS n FROM customer_profiles").fetchone()["n"] == 2
        assert owner.execute("SELECT count(DISTINCT customer_id) AS n FROM stored_events").fetchone()["n"] == 2


def test_whether_rows_are_bound_is_known(two):
    """A database without the grants is one in which they are not."""
    with psycopg.connect(two.dsn, row_factory=dict_row) as owner:
        assert privileges.may_bind(owner)
        with owner.transaction(force_rollback=True):
            owner.execute(f"REVOKE SELECT ON customer_profiles FROM {TENANT}")
            assert not privileges.may_bind(owner)
            assert examine_tenants(owner).result is Result.WARN


def scan_of(plan):
    """The node of a plan that reads the table."""
    while "Plans" in plan:
        [plan] = plan["Plans"]
    return plan


def test_indexes_are_used_as_before(database_url, tmp_path):
    """A page of one customer among 100,000 runs of a thousand."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        schema_of(owner)
    with World(database_url, tmp_path / "key") as world:
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute(
                "INSERT INTO scheduled_pipeline_runs (run_id, customer_id, state, created_at, position)"
                " SELECT gen_random_uuid()::text, 'c' || n % 1000, 'COMPLETED',"
                " now() - n * interval '1 second', n FROM generate_series(1, 100000) AS g(n)"
            )
            owner.execute("ANALYZE scheduled_pipeline_runs")
        plans = []
        for reads in (world.datastore, TenantReads(world.datastore, "c7")):
            page = newest_first(reads, SCHEDULED_PIPELINE_RUNS, [Where("customer_id", "=", "c7")], after=None, limit=20)
            assert {row["customer_id"] for row in page} == {"c7"}
            with reads.reading() as cursor:
                cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
                found = cursor.execute(
                    "EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) SELECT run_id FROM scheduled_pipeline_runs"
                    " WHERE deleted_at IS NULL AND customer_id = %s AND (created_at, run_id) < (now(), 'x')"
                    " ORDER BY created_at DESC, run_id DESC LIMIT 20",
                    ("c7",),
                    prepare=True,
                ).fetchone()
            plans.append(scan_of(found["QUERY PLAN"][0]["Plan"]))
        bare, bound = plans
        assert bare["Node Type"] == bound["Node Type"] == "Index Scan"
        assert bare["Index Name"] == bound["Index Name"]
        assert bound["Shared Hit Blocks"] <= bare["Shared Hit Blocks"] + 5
