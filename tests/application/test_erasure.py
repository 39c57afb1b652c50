"""A customer is erased: what it had ends, nothing comes after it, and nobody can read who it was."""

import pytest

from adapters.postgres import erasures
from application import credentials, erasure, team
from application.mapper import EventMapper, UnreadableEvent
from application.ports import RunReport
from domain.customer_events import Erased, Onboarded, TeamMemberAdded
from domain.personal import ERASED
from domain.refusals import Conflict, NotFound
from projections.tables import CENTRAL
from tests.application.world import race

CANARY = "Kanarienvogel"


def erase(world, customer_id="acme", reason="asked to", **options):
    command = erasure.Erase(**world.stamp(), customer_id=customer_id, reason=reason)
    return erasure.erase(command, world.platform, **options)


def add_member(world, name=CANARY):
    command = team.AddTeamMember(**world.stamp(), customer_id="acme", email=f"{name.lower()}@example.com", name=name)
    return team.add_team_member(command, world.platform)


@pytest.fixture
def erased(acme):
    """A world whose customer had some of everything, and was erased."""
    acme.onboard("other")
    add_member(acme)
    acme.pipeline()
    acme.request()
    acme.claim(limit=1)
    acme.request()
    assert erase(acme)
    return acme


def test_everything_ends_with_it(erased):
    log = erased.events()
    assert isinstance(log[-1], Erased)
    assert isinstance(log[0], Onboarded)
    kinds = erased.kinds()
    assert [kinds.count(k) for k in ("Cancelled", "CancelRequested", "RunCancelled", "SlotReleased")] == [1, 1, 2, 1]
    assert erased.scalar("SELECT count(*) FROM run_leases") == 0
    assert erased.scalar("SELECT count(*) FROM scheduled_pipeline_runs WHERE customer_id = 'acme'") == 0
    assert erased.row("customer_profiles", customer_id="acme")["status"] == "ERASED"


def test_erasing_again_changes_nothing(erased):
    before = len(erased.events())
    assert not erase(erased)
    assert len(erased.events()) == before


def test_of_many_at_the_same_moment_one_erases(acme):
    assert sorted(race(6, lambda _: erase(acme))) == [False] * 5 + [True]
    assert acme.kinds().count("Erased") == 1


def test_there_is_nobody_to_erase(world):
    with pytest.raises(NotFound):
        erase(world, "nobody")


def test_nothing_is_decided_about_it_any_more(erased):
    added = credentials.AddCredential(
        **erased.stamp(),
        customer_id="acme",
        provider="AWS",
        credential_type="ACCESS_KEY",
        credential_name="n",
        credentials={"secret": "hunter2"},
    )
    commands = [
        erased.suspend,
        erased.reactivate,
        erased.pipeline,
        lambda: erased.limits(max_providers=1),
        lambda: add_member(erased),
        lambda: credentials.add_credential(added, erased.platform, erased.vault),
        erased.request,
    ]
    before = len(erased.events())
    for command in commands:
        with pytest.raises(Exception, match=r"No such customer|was cancelled|suspended") as refused:
            command()
        assert "acme" not in str(refused.value).lower()
    assert erased.trigger().queued == 0
    assert len(erased.events()) == before


@pytest.mark.parametrize("known_as", ["nobody", "owner", "admin"])
def test_its_id_stays_taken_and_makes_no_keys(erased, known_as):
    erased.vault.destroy("acme")
    with pytest.raises(Conflict) as gone:
        erased.onboard("acme", known_as=known_as)
    with pytest.raises(Conflict) as taken:
        erased.onboard("other", known_as="nobody")
    assert str(gone.value) == str(taken.value)
    assert erased.scalar("SELECT count(*) FROM data_keys WHERE customer_id = 'acme'") == 0


def test_a_worker_that_goes_on_is_refused(acme):
    acme.request()
    acme.request()
    [first, second] = acme.claim()
    before = acme.beat("w1")
    assert len(before) == 2
    erase(acme)
    log = len(acme.events())
    assert acme.beat("w1") == []
    assert acme.report([first]) == [first.run_id]
    assert acme.report([second], report=RunReport(succeeded=False, error="no", can_pass=True)) == [second.run_id]
    assert acme.take_over() == []
    assert acme.claim() == []
    assert len(acme.events()) == log


def test_many_runs_end_some_at_a_time(acme):
    acme.limits(max_pipelines_per_day=100)
    for _ in range(8):
        acme.request()
    acme.claim(limit=2)
    told = []
    assert erase(acme, tell=lambda *of: told.append(of), at_once=3)
    assert told == [(3, 8), (6, 8)]
    kinds = acme.kinds()
    assert kinds.count("RunCancelled") == 8
    assert kinds.count("Suspended") == 2
    assert kinds[-1] == "Erased"


def test_one_that_was_interrupted_goes_on(acme):
    """The runs that ended meanwhile have ended; the customer is suspended until it is asked for again."""
    for _ in range(4):
        acme.request()

    def die(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase(acme, tell=die, at_once=2)
    assert acme.row("customer_profiles", customer_id="acme")["status"] == "SUSPENDED"
    assert acme.usage()[0] == 2
    assert erase(acme, at_once=2)
    assert acme.kinds().count("RunCancelled") == 4


def names(world, mapper):
    found = world.store.recorder.select_notifications(start=0, limit=1_000_000)
    return [
        r.event for n in found for r in mapper.to_domain_events(n) if isinstance(r.event, Onboarded | TeamMemberAdded)
    ]


def test_who_it_was_reads_as_a_mark(erased):
    assert CANARY in str(names(erased, erased.mapper))
    erased.vault.destroy("acme")
    onboarded, of_other, member = names(erased, erased.mapper)
    assert (onboarded.company_name, onboarded.admin_email, onboarded.plan) == (ERASED, ERASED, "PROFESSIONAL")
    assert (member.name, member.email) == (ERASED, ERASED)
    assert of_other.company_name == "ACME Corporation"
    with pytest.raises(NotFound):
        erased.suspend()


def test_a_key_that_is_missing_of_anybody_else_is_a_fault(erased):
    """As it must be: a reader that took every missing key for an erasure would hide the loss of keys."""

    def passes(mapper):
        try:
            return bool(names(erased, mapper))
        except UnreadableEvent as unreadable:
            return "personal field does not open" not in str(unreadable)

    erased.vault.destroy("acme")
    lenient = EventMapper(erased.vault, lambda _: True)
    strict = EventMapper(erased.vault)
    assert [passes(mapper) for mapper in (erased.mapper, lenient, strict)] == [True, True, False]
    erased.vault.destroy("other")
    assert [passes(mapper) for mapper in (erased.mapper, lenient)] == [False, True]


def test_what_is_kept_beside_the_log_goes(erased):
    erased.execute("INSERT INTO key_reveals VALUES ('h', 'acme', 'k', now()), ('i', 'other', 'k', now())")
    answers = {
        "goes": ("admin", b'{"company_name": "Kanarienvogel", "customer_id": "acme"}'),
        "goes too": ("customer:acme", None),
        "of others": ("admin", b'{"customer_id": "acme_corp", "url": "https://other.example/acme2"}'),
        # Nobody else's request is done twice because a word of it was somebody's id.
        "another's": ("customer:other", b'{"detail": "acme"}'),
    }
    for key, (caller, body) in answers.items():
        insert = "INSERT INTO idempotent_requests (caller, key, fingerprint, body) VALUES (%s, %s, 'f', %s)"
        erased.execute(insert, caller, key, body)
    erased.execute(
        "INSERT INTO idempotent_requests (caller, key, fingerprint, headers)"
        """ VALUES ('anyone', 'by its address', 'f', '{"Location": "/api/v1/customers/acme/runs"}')"""
    )
    erasures.remove_records(erased.datastore, "acme")
    assert erased.scalar("SELECT array_agg(customer_id) FROM key_reveals") == ["other"]
    left = erased.scalar("SELECT array_agg(key) FROM idempotent_requests")
    assert sorted(left) == ["another's", "of others"]


def quiet_s(world):
    return world.scalar("SELECT extract(epoch FROM quiet_at - erased_at)::int FROM erasures")


def test_a_worker_that_may_not_have_heard_is_waited_for(acme):
    """Also one whose run was ended in an earlier part of the erasure; not one that has reported."""
    acme.limits(max_pipelines_per_day=100)
    for _ in range(4):
        acme.request()
    acme.claim(limit=1)
    erase(acme, at_once=1)
    assert quiet_s(acme) == erasures.LAST_WRITES_S


def test_nobody_is_waited_for_who_has_reported(acme):
    acme.request()
    acme.report(acme.claim(), report=RunReport(succeeded=True, rows=1))
    acme.request()
    erase(acme)
    assert quiet_s(acme) == 0


def test_every_table_beside_the_log_is_decided_about(world):
    """A new one either says by a column whose its rows are, and loses them with the customer, or is listed here."""
    nobodys = {
        *("allowances", "checkpoints", "commands_done", "idle_workers", "log_seals", "processes", "rebuilds"),
        "schema_migrations",
    }
    # What BigQuery was told is kept until it was told to forget it.
    otherwise = {"bigquery_grants", "idempotent_requests", "snapshots"}
    # The log stays, and who opened secrets is a part of it; keys are destroyed by the vault.
    kept = {"stored_events", "data_keys", "erasures", "decryptions"}
    with world.datastore.reading() as cursor:
        found = cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        beside = set(erasures.tables_beside(cursor))
    tables = {row["tablename"] for row in found} - {table.name for table in CENTRAL}
    assert tables - beside - nobodys - otherwise - kept == set()
    assert not beside & kept
