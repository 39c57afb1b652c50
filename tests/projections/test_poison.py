"""An event that a projection can make nothing of stops that projection right there, and nothing else."""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from adapters.bigquery.client import NotThere
from adapters.bootstrap import Service, build
from adapters.postgres.checkpoints import PostgresCheckpoints, leading
from adapters.postgres.reads.projections import skipped, standings
from adapters.projection_views import problems_of, view
from adapters.projector import Follower, into_warehouse, problem_of
from adapters.settings import Settings
from application.execution import ClaimRuns, TakeOver, _claim, take_over
from application.mapper import UnreadableEvent
from application.ports import Away
from application.projections import SkipEvent, skip_event
from domain.projection import NOTIFICATIONS, WAREHOUSE
from domain.refusals import Conflict
from projections.follow import Handle, NoRows, Overtaken, Placed, ProblemKind, Unwritable, catch_up, rows_into
from tests.application.world import World, until
from tests.projections.test_replay import copy, digests, log_of

__all__ = ["copy"]

NOWHERE = "http://127.0.0.1:1"
TOO_LARGE = 2**63
"""One more than an INT64 holds."""


@pytest.fixture
def told(database_url, tmp_path) -> Iterator[World]:
    """A world in which beta came, and left again, between acme's runs; its keys are where a service has them."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as world:
        world.onboard()
        world.request()
        world.onboard("beta")
        world.request()
        world.report(world.claim())
        yield world


def middle(world: World, topic: str = "customer.onboarded@1") -> int:
    """The position of the last event of that topic: events before it and after it are of several kinds."""
    return world.scalar("SELECT max(notification_id) FROM stored_events WHERE topic = %s", topic)


def rewrite(world: World, position: int, change: Callable[[dict], object]) -> None:
    """Change what is stored as the event's data."""
    state = world.scalar("SELECT convert_from(state, 'UTF8') FROM stored_events WHERE notification_id = %s", position)
    content = json.loads(state)
    change(content["data"])
    world.tamper(
        "UPDATE stored_events SET state = %s WHERE notification_id = %s", json.dumps(content).encode(), position
    )


def store(world: World, position: int, **columns: object) -> None:
    for name, value in columns.items():
        query = f"UPDATE stored_events SET {name} = %s WHERE notification_id = %s"
        world.tamper(query, value, position)


def destroy_keys(world: World, _: int) -> None:
    world.vault.destroy("beta")


def alter_ciphertext(world: World, position: int) -> None:
    def alter(data: dict) -> None:
        data["admin_email"] = data["company_name"]

    rewrite(world, position, alter)


UNREADABLE = {
    "an unknown topic": (lambda w, p: store(w, p, topic="customer.unheard-of@9"), "no such topic is known"),
    "another shape": (
        lambda w, p: rewrite(w, p, lambda data: data.update(company_name=7)),
        r"another shape at \$\.company_name",
    ),
    "no JSON": (lambda w, p: store(w, p, state=b'{"at": '), "another shape"),
    "no text": (lambda w, p: store(w, p, state=b'{"at":"\xff"}'), "another shape"),
    "no end of nesting": (lambda w, p: store(w, p, state=b"[" * 100_000), "another shape"),
    "a destroyed key": (destroy_keys, "a personal field does not open. The customer does not have the data key"),
    "an altered ciphertext": (alter_ciphertext, "a personal field does not open. The sealed secret was altered"),
}


def recording() -> tuple[list[int], Handle]:
    """What was handled, and the handler that notes it."""
    handled: list[int] = []
    return handled, lambda events: handled.extend(placed.at.position for placed in events)


def blind(events: Sequence[Placed], handle: Handle) -> None:
    """The control: as it would be if pages were not taken apart. It blames where the page began."""
    try:
        handle(events)
    except ValueError as error:
        raise Unwritable(events[0].at, error) from error


class TestUnreadable:
    @pytest.mark.parametrize("page", [1, 3, 1000])
    @pytest.mark.parametrize("cause", UNREADABLE)
    def test_stops_at_its_position_with_all_before_it_handled(self, told, cause, page):
        spoil, why = UNREADABLE[cause]
        place, end = middle(told), log_of(told).end()
        assert 1 < place < end
        spoil(told, place)
        handled, handle = recording()
        checkpoints = PostgresCheckpoints(told.datastore)
        for _ in range(2):
            with pytest.raises(UnreadableEvent, match=why) as stopped:
                catch_up("p", log_of(told), handle, checkpoints, page=page)
        assert stopped.value.position == place
        assert checkpoints.position("p") == place - 1
        assert handled == list(range(1, place))
        # Beta's other personal events are as unreadable once its keys are gone.
        gone = frozenset({place}) | ({p for p in range(place, end) if cause == "a destroyed key"})
        catch_up("p", log_of(told), handle, checkpoints, page=page, skipping=gone)
        assert handled == [p for p in range(1, end + 1) if p not in gone]
        assert checkpoints.position("p") == end

    def test_what_is_recorded_is_not_in_the_sentence(self, told):
        place = middle(told, "subscription.opened@1")
        rewrite(told, place, lambda data: data.update(plan="a-secret-plan"))
        with pytest.raises(UnreadableEvent, match=r"another shape at \$\.plan\.$") as stopped:
            log_of(told).read(place - 1, 1)
        assert "a-secret" not in str(stopped.value)
        assert stopped.value.__cause__ is None

    def test_a_key_that_cannot_be_asked_for_is_no_such_event(self, told):
        """The control: keys that are away come back, and nothing must be skipped for that."""
        told.tamper("ALTER TABLE data_keys RENAME TO data_keys_elsewhere")
        told.vault.forget("beta")
        told.data_keys.close()
        try:
            with pytest.raises(Away) as away:
                catch_up("p", log_of(told), recording()[1], PostgresCheckpoints(told.datastore), page=3)
        finally:
            told.tamper("ALTER TABLE data_keys_elsewhere RENAME TO data_keys")
        assert (problem_of(away.value).kind, problem_of(away.value).position) == (ProblemKind.AWAY, None)

    def test_pages_of_nothing_but_skipped_events_are_not_the_end(self, told):
        end = log_of(told).end()
        assert [p.at.position for p in log_of(told).read(0, 2, skipping=range(1, end))] == [end]
        assert log_of(told).read(0, 2, skipping=range(1, end + 1)) == []
        theirs = [p.at.position for p in log_of(told).read_of("beta", 0, 100)]
        assert theirs[0] == middle(told)
        assert [p.at.position for p in log_of(told).read_of("beta", 0, 1, skipping=theirs[:1])] == theirs[1:2]


class TestUnwritable:
    """Rows that BigQuery cannot hold: found by its writer, or by BigQuery itself."""

    @pytest.mark.parametrize("page", [1, 2, 7, 1000])
    def test_is_found_wherever_it_stands(self, told, page):
        end = log_of(told).end()
        for place in range(1, end + 1):
            handled: list[int] = []

            def handle(events, place=place, handled=handled):
                if any(placed.at.position == place for placed in events):
                    raise ValueError("a cell")
                handled += [placed.at.position for placed in events]

            checkpoints = PostgresCheckpoints(told.datastore)
            with pytest.raises(Unwritable) as stopped:
                catch_up(f"to {place}", log_of(told), handle, checkpoints, page=page)
            assert stopped.value.position == place
            assert checkpoints.position(f"to {place}") == place - 1
            assert handled == list(range(1, place))
            catch_up(f"to {place}", log_of(told), handle, checkpoints, page=page, skipping={place})
            assert checkpoints.position(f"to {place}") == end if place < end else end - 1

    @pytest.mark.parametrize("rows", [TOO_LARGE, 2**64], ids=["BigQuery refuses it", "the writer does"])
    def test_is_found_in_the_middle_of_its_page(self, told, warehouse, rows):
        told.request()
        place, end = middle(told, "run.completed@1"), log_of(told).end()
        rewrite(told, place, lambda data: data.update(rows=rows))
        assert 1 < place < end
        checkpoints, handle = PostgresCheckpoints(told.datastore), into_warehouse(warehouse)
        for _ in range(2):
            with pytest.raises(Unwritable, match="a table cannot hold its rows") as stopped:
                catch_up("p", log_of(told), handle, checkpoints)
        assert (stopped.value.position, checkpoints.position("p")) == (place, place - 1)
        assert str(rows) not in str(stopped.value)
        catch_up("p", log_of(told), handle, checkpoints, skipping={place})
        assert checkpoints.position("p") == end
        central = warehouse.settings.customers_dataset_id
        answer = warehouse.warehouse.query(f"SELECT run_id, state FROM `{central}.scheduled_pipeline_runs`")
        assert len(answer.rows) == 3
        events = log_of(told).read(0, 1000)
        with pytest.raises(Unwritable) as blamed:
            blind(events, handle)
        assert blamed.value.position == 1

    def test_rows_that_cannot_be_made(self, told, copy):
        """An event that decodes and that its rows' function does not expect."""
        place = middle(told, "run.completed@1")

        class Strange:
            def read(self, after, limit, skipping=()):
                return [
                    replace(p, event=Unheard()) if p.at.position == place else p
                    for p in log_of(told).read(after, limit, skipping)
                ]

            def end(self):
                return log_of(told).end()

        class Unheard:
            pass

        checkpoints = PostgresCheckpoints(copy.datastore)
        with pytest.raises(Unwritable, match=r"its rows cannot be made \(KeyError\)") as stopped:
            catch_up("p", Strange(), rows_into(copy), checkpoints)
        assert (stopped.value.position, checkpoints.position("p")) == (place, place - 1)
        assert isinstance(stopped.value.__cause__, NoRows)

    def test_what_is_away_or_broken_blames_no_event(self, told):
        for error in (Away("gone"), KeyError("x"), PermissionError("no"), Overtaken("p")):
            calls = []

            def handle(events, error=error, calls=calls):
                calls.append(len(events))
                raise error

            with pytest.raises(type(error)):
                catch_up("p", log_of(told), handle, PostgresCheckpoints(told.datastore))
            assert len(calls) == 1

    def test_a_project_that_is_not_there_blames_no_event(self, told):
        class Gone:
            warehouse = type("W", (), {"write": lambda self, changes: self._raise(), "_raise": _not_there})()

        with pytest.raises(Exception, match="Not found") as missing:
            catch_up("p", log_of(told), into_warehouse(Gone()), PostgresCheckpoints(told.datastore))
        assert problem_of(missing.value).kind is ProblemKind.FAULT


def _not_there(_: object) -> None:
    raise NotThere("Not found: Project x")


@contextmanager
def served(world: World, directory: Path, emulator: str = NOWHERE) -> Iterator[Service]:
    settings = Settings(
        data_dir=directory, bigquery_emulator_host=emulator, customers_dataset_id=f"poison_{uuid4().hex[:12]}"
    )
    service = build(settings, world.dsn)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def service(told, tmp_path) -> Iterator[Service]:
    """A service on the world's database, without BigQuery."""
    with served(told, tmp_path) as made:
        yield made


@pytest.fixture
def warehouse(told, tmp_path, bigquery_emulator) -> Iterator[Service]:
    """A service on the world's database, with an empty BigQuery."""
    url = urlsplit(bigquery_emulator)
    with served(told, tmp_path, f"http://{url.hostname}:{url.port}") as made:
        yield made


@contextmanager
def following(service: Service, name: str, handle: Handle, **more: object) -> Iterator[Follower]:
    stop = threading.Event()
    follower = Follower(service, name, handle, stop, **more)
    follower.start()
    try:
        yield follower
    finally:
        stop.set()
        follower.join()


def standing(service: Service, name: str = WAREHOUSE):
    return next(found for found in standings(service.datastore) if found.projection == name)


def skip(
    world: World, position: int, projection: str = WAREHOUSE, reason: str = "Written by a broken release."
) -> None:
    skip_event(SkipEvent(**world.stamp(), projection=projection, position=position, reason=reason), world.platform)


class TestFollower:
    def test_it_stops_loudly_and_everything_else_goes_on(self, told, service, caplog):
        place = middle(told)
        store(told, place, topic="customer.unheard-of@9")
        caplog.set_level(logging.INFO, logger="adapters.projector")
        handled, handle = recording()
        tries = []

        def counted() -> None:
            tries.append(1)

        with following(service, WAREHOUSE, handle, before=counted):
            until(lambda: standing(service).stopped)
            since = standing(service).problem_since
            until(lambda: len(tries) >= 3)
            told.request()
            # Another projection, whose handler does without the event.
            skip_of_other = PostgresCheckpoints(told.datastore)
            catch_up("other", log_of(told), recording()[1], skip_of_other, skipping={place})
            assert skip_of_other.position("other") == log_of(told).end()
            found = standing(service)
            assert (found.position, found.problem_position, found.problem_topic) == (
                place - 1,
                place,
                "customer.unheard-of@9",
            )
            assert found.problem_since == since
            assert found.led
            assert found.behind == log_of(told).end() - place + 1
            [problem] = problems_of([view(found)])
            assert problem.problem.startswith(f"Projection bigquery: stopped at position {place}: ")
            assert f"convergence projections skip bigquery --position {place}" in problem.remedy
            errors = [r for r in caplog.records if r.levelno == logging.ERROR and r.name == "adapters.projector"]
            assert len(errors) == 1
            assert f"position {place}" in errors[0].getMessage()
            skip(told, place)
            until(lambda: standing(service).position == log_of(told).end())
        assert place not in handled
        assert handled == sorted(set(handled))
        assert standing(service).problem is None
        assert standing(service).skipped == 1

    def test_it_tells_again_after_a_while(self, told, service, caplog):
        store(told, middle(told), topic="customer.unheard-of@9")
        with following(service, WAREHOUSE, recording()[1], tell_again_s=0):
            until(lambda: sum(r.levelno == logging.ERROR for r in caplog.records) >= 2)

    def test_what_is_skipped_stays_skipped(self, told, service, copy):
        """After a restart, and when the tables are made anew from the first event."""
        place = middle(told, "run.completed@1")
        store(told, place, topic="run.unheard-of@9")
        with following(service, WAREHOUSE, rows_into(copy)):
            until(lambda: standing(service).stopped)
            skip(told, place)
            until(lambda: standing(service).position == log_of(told).end())
        first = digests(copy.datastore)
        told.execute("DELETE FROM checkpoints")
        with copy.datastore.reading() as cursor:
            cursor.execute("TRUNCATE scheduled_pipeline_runs, customer_usage, customer_profiles, projection_skips")
        with following(service, WAREHOUSE, rows_into(copy)):
            until(lambda: standing(service).position == log_of(told).end())
        assert digests(copy.datastore) == first
        assert standing(service).problem is None

    def test_a_skip_is_of_one_projection(self, told, service):
        place = middle(told)
        store(told, place, topic="customer.unheard-of@9")
        with following(service, WAREHOUSE, recording()[1]), following(service, NOTIFICATIONS, recording()[1]):
            until(lambda: standing(service).stopped and standing(service, NOTIFICATIONS).stopped)
            skip(told, place)
            until(lambda: standing(service).position == log_of(told).end())
            assert standing(service, NOTIFICATIONS).position == place - 1
        assert (skipped(told.datastore, WAREHOUSE), skipped(told.datastore, NOTIFICATIONS)) == ({place}, frozenset())

    def test_an_event_that_is_restored_is_handled(self, told, service):
        place = middle(told)
        store(told, place, topic="customer.unheard-of@9")
        handled, handle = recording()
        with following(service, WAREHOUSE, handle):
            until(lambda: standing(service).stopped)
            store(told, place, topic="customer.onboarded@1")
            until(lambda: standing(service).position == log_of(told).end())
        assert place in handled
        assert standing(service).problem is None

    def test_what_is_away_waits_and_says_so(self, told, service):
        away = threading.Event()
        away.set()

        def handle(_: Sequence[Placed]) -> None:
            if away.is_set():
                raise Away("BigQuery is away: no answer in time")

        with following(service, WAREHOUSE, handle):
            until(lambda: standing(service).problem_kind is ProblemKind.AWAY)
            assert not standing(service).stopped
            assert standing(service).problem == "waits: BigQuery is away: no answer in time"
            with pytest.raises(Conflict, match="does not stand stopped"):
                skip(told, 1)
            away.clear()
            until(lambda: standing(service).position == log_of(told).end() and standing(service).problem is None)

    def test_a_fault_is_shown_without_what_it_says(self, told, service):
        def handle(_: Sequence[Placed]) -> None:
            raise RuntimeError("admin@acmecorp.com")

        with following(service, WAREHOUSE, handle):
            until(lambda: standing(service).problem_kind is ProblemKind.FAULT)
        assert standing(service).problem == (
            "failed (RuntimeError), and tries again and again: the projector's log says where."
        )

    def test_another_process_may_take_the_lead_of_one_that_stands(self, told, service):
        store(told, middle(told), topic="customer.unheard-of@9")
        with following(service, WAREHOUSE, recording()[1]):
            until(lambda: standing(service).stopped)
            with leading(service.dsn, WAREHOUSE, wait_s=20) as lead:
                assert lead


class TestSkip:
    def test_only_of_the_event_that_it_stands_at(self, told):
        checkpoints = PostgresCheckpoints(told.datastore)
        place = middle(told)
        store(told, place, topic="customer.unheard-of@9")
        with pytest.raises(Conflict, match="bigquery does not stand stopped"):
            skip(told, place)
        with pytest.raises(UnreadableEvent) as stopped:
            catch_up(WAREHOUSE, log_of(told), recording()[1], checkpoints)
        checkpoints.stand(WAREHOUSE, problem_of(stopped.value))
        for wrong in (place - 1, place + 1):
            with pytest.raises(Conflict, match=f"stands stopped at position {place}, not at {wrong}"):
                skip(told, wrong)
        with pytest.raises(Conflict, match="notifications does not stand stopped"):
            skip(told, place, NOTIFICATIONS)
        assert told.rows("projection_skips") == []
        skip(told, place)
        skip(told, place)
        [event] = [told.mapper.to_domain_event(e) for e in told.store.recorder.select_notifications(place + 1, 1000)][
            -1:
        ]
        assert (event.envelope.topic, event.envelope.customer_id) == ("projection.event-skipped@1", "")
        assert (event.event.projection, event.event.position, event.event.topic) == (
            WAREHOUSE,
            place,
            "customer.unheard-of@9",
        )
        assert event.envelope.by.actor == "admin"
        row = told.row("projection_skips")
        assert (row["skipped_position"], row["reason"]) == (place, "Written by a broken release.")
        assert row["position"] == log_of(told).end()

    def test_a_stop_that_is_over_cannot_be_skipped(self, told):
        checkpoints = PostgresCheckpoints(told.datastore)
        place = middle(told)
        store(told, place, topic="customer.unheard-of@9")
        with pytest.raises(UnreadableEvent) as stopped:
            catch_up(WAREHOUSE, log_of(told), recording()[1], checkpoints)
        checkpoints.stand(WAREHOUSE, problem_of(stopped.value))
        store(told, place, topic="customer.onboarded@1")
        catch_up(WAREHOUSE, log_of(told), recording()[1], checkpoints)
        with pytest.raises(Conflict, match="does not stand stopped"):
            skip(told, place)


class TestCommands:
    """What cannot be read of one customer refuses that customer's commands, and nobody else's."""

    def damage(self, world: World, topic: str, customer_id: str = "beta") -> int:
        place = world.scalar(
            "SELECT max(notification_id) FROM stored_events WHERE topic = %s AND customer_id = %s", topic, customer_id
        )
        world.execute("DELETE FROM snapshots")
        store(world, place, topic="run.unheard-of@9")
        return place

    def test_of_other_customers_go_on(self, told, caplog):
        self.damage(told, "subscription.opened@1")
        for _ in range(3):
            with pytest.raises(UnreadableEvent, match="no such topic"):
                told.request("beta")
        assert sum("is refused" in r.getMessage() for r in caplog.records) == 1
        told.request("acme")

    def test_of_an_aggregate_that_does_not_follow_from_its_events(self, told):
        place = self.damage(told, "subscription.opened@1")
        store(told, place, topic="subscription.run-refused@1", state=_state(told, "subscription.runs-admitted@1"))
        store(told, place, topic="subscription.runs-admitted@1")
        with pytest.raises(UnreadableEvent, match="does not follow from the events before it"):
            told.request("beta")

    @pytest.mark.parametrize("topic", ["subscription.opened@1", "run.scheduled@2"])
    def test_workers_claim_the_others_runs(self, told, topic):
        theirs = told.request("beta")
        ours = told.request("acme")
        self.damage(told, topic)
        command = ClaimRuns(**told.stamp("worker:w"), worker_id="w", limit=100)
        with pytest.raises(UnreadableEvent):
            told.platform.transact(command, lambda tx: _claim(tx, command, 100))  # the control
        assert [order.run_id for order in told.claim(limit=1)] == [ours]
        assert told.claim() == []
        assert told.run(theirs)["state"] == "PENDING"

    @pytest.mark.parametrize("topic", ["subscription.opened@1", "run.scheduled@2"])
    def test_workers_report_and_take_over_the_others_runs(self, told, topic):
        theirs, ours, late = told.request("beta"), told.request("acme"), told.request("acme")
        orders = {order.run_id: order for order in told.claim()}
        self.damage(told, topic)
        assert told.report([orders[theirs], orders[ours]]) == [theirs]
        assert told.run(ours)["state"] == "COMPLETED"
        told.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 second'")
        assert told.take_over() == [late]
        assert told.run(theirs)["state"] == "RUNNING"

    @pytest.mark.parametrize("topic", ["subscription.opened@1", "customer.onboarded@1", "run.scheduled@2"])
    def test_schedulers_trigger_the_others_slots(self, told, topic):
        for customer_id in ("beta", "acme"):
            told.pipeline(customer_id, "0 * * * *", overlap="cancel_running")
        told.wait(hours=1)
        assert told.trigger().queued == 2
        self.damage(told, topic)
        told.wait(hours=1)
        passed = topic == "customer.onboarded@1"  # which a slot that makes a new run does without
        assert told.trigger().queued == 1 + passed
        assert told.trigger().triggered == 0
        due = told.scalar("SELECT count(*) FROM customer_pipeline_configs WHERE next_run_time <= %s", told.at)
        assert due == 1 - passed

    def test_those_that_cannot_be_read_do_not_hide_the_others_behind_them(self, told):
        """However many there are: every look finds them first, since they stay where they are."""
        for customer_id in ("beta", "beta", "beta", "acme"):
            told.pipeline(customer_id, "0 * * * *" if customer_id == "beta" else "30 * * * *")
            told.request(customer_id)
        orders = told.claim()
        told.execute(
            "UPDATE run_leases SET expires_at = clock_timestamp()"
            " - CASE customer_id WHEN 'beta' THEN interval '1 hour' ELSE interval '1 second' END"
        )
        self.damage(told, "subscription.opened@1")
        ours = [order.run_id for order in orders if order.customer_id == "acme"]
        command = TakeOver(**told.stamp("service"), limit=2)
        assert take_over(command, told.platform) == ours
        assert take_over(command, told.platform) == []
        told.wait(hours=1)
        assert told.trigger(batch=2).queued == 1
        assert told.trigger(batch=2).triggered == 0


def _state(world: World, topic: str) -> bytes:
    return bytes(world.scalar("SELECT state FROM stored_events WHERE topic = %s LIMIT 1", topic))
