"""Sixteen workers and a thousand runs: each attempt has one claimant, and nobody speaks for another's."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID, uuid4

import pytest

from application.command import Command
from application.platform import Transaction
from domain.run_events import RunCancelled, RunClaimed, RunCompleted, RunFailed, RunRequeued, StepFinished
from tests.application.world import World
from tests.faults import racers
from tests.faults.racing import Racers

WORKERS, REAPERS = 16, 1
CUSTOMERS = [f"customer{number}" for number in range(10)]
RUNS_OF_EACH = 100


@pytest.fixture(scope="module")
def processes(shared_database, tmp_path_factory) -> Iterator[Racers]:
    with Racers(WORKERS, shared_database, tmp_path_factory.mktemp("keys") / "key") as made:
        yield made


@pytest.fixture
def world(database_url, processes) -> Iterator[World]:
    with World(database_url, processes.key_file) as made:
        yield made


def queue(world: World, customer_id: str, count: int) -> list[str]:
    """A customer with so many waiting runs, and places for some of them."""
    world.onboard(customer_id, "SCALE")
    world.limits(customer_id, max_concurrent_pipelines=20)
    ids = sorted(str(uuid4()) for _ in range(count))

    def work(tx: Transaction) -> None:
        subscription = tx.subscription(customer_id)
        subscription.append(subscription.must("").admit(ids, world.at, starting=False).events)
        for run_id in ids:
            tx.run(UUID(run_id), customer_id).append([racers.order(world, customer_id)])

    world.platform.transact(Command(**world.stamp()), work)
    return ids


Attempt = tuple[str, int]


def one_claimant(world: World, claimed: Iterable[tuple[str, Attempt]]) -> Counter:
    """Fails when an attempt had two claimants, or two outcomes; returns how many attempts ended in which way.

    `claimed` is what the workers, by their names, believe to have got.
    """
    believed = Counter(attempt for _, attempt in claimed)
    assert set(believed.values()) <= {1}, "two workers got the same attempt"
    holding: dict[UUID, int] = {}
    last: dict[UUID, int] = {}
    recorded: set[tuple[str, Attempt]] = set()
    ends: Counter = Counter()
    for notification in world.store.recorder.select_notifications(start=0, limit=1_000_000):
        run_id = notification.originator_id
        event = world.mapper.to_domain_event(notification).event
        match event:
            case RunClaimed(worker_id=worker, attempt=attempt):
                assert run_id not in holding, "claimed while another holds it"
                assert attempt == last.get(run_id, 0) + 1
                holding[run_id] = last[run_id] = attempt
                recorded.add((worker, (str(run_id), attempt)))
            case StepFinished(attempt=attempt):
                assert holding[run_id] == attempt
            case RunCompleted() | RunFailed() | RunRequeued() | RunCancelled():
                assert holding.pop(run_id) == event.attempt
                ends[type(event).__name__] += 1
    assert recorded == set(claimed)
    return ends


def names(answers: Sequence[Iterable[Attempt]]) -> list[tuple[str, Attempt]]:
    return [(f"w{number}", attempt) for number, attempts in enumerate(answers) for attempt in attempts]


@pytest.mark.timeout(600)
def test_each_attempt_of_a_thousand_runs_has_one_claimant(world, processes):
    ids = {run_id for customer_id in CUSTOMERS for run_id in queue(world, customer_id, RUNS_OF_EACH)}
    workers = processes.race(racers.work_off, world.at, REAPERS)
    ends = one_claimant(world, names([worked.claimed for worked in workers]))
    claimed = sum(len(worked.claimed) for worked in workers)
    told = sum(len(worked.told) for worked in workers)
    lost = sum(len(worked.lost) for worked in workers)
    assert ends.total() == claimed == told + lost
    assert ends["RunCompleted"] + ends["RunFailed"] == len(ids) == 1000
    assert set(world.states()) == {"COMPLETED", "FAILED"}
    assert {row["run_id"] for row in world.rows("scheduled_pipeline_runs")} == ids
    assert lost > 0, "nobody was taken over"
    assert sum(bool(worked.claimed) for worked in workers) >= WORKERS // 2
    assert {world.usage(customer_id) for customer_id in CUSTOMERS} == {(RUNS_OF_EACH, RUNS_OF_EACH, 0)}
    assert world.scalar("SELECT count(*) FROM run_leases") == 0


def test_all_ask_for_the_same_runs(world, processes):
    ids = queue(world, "acme", 10)
    answers = processes.race(racers.claim_named, world.at, ids)
    one_claimant(world, names(answers))
    assert sorted(run_id for some in answers for run_id, _ in some) == ids


def test_rows_that_are_out_of_date_cost_a_look_and_no_promise(world, processes):
    ids = queue(world, "acme", 10)
    first = [(order.run_id, order.attempt) for order in world.claim("w0")]
    world.execute("UPDATE pipeline_execution_queue SET state = 'PENDING', not_before = NULL")
    answers = processes.race(racers.claim_named, world.at, ids)
    assert sum(map(len, answers)) == 0
    one_claimant(world, names([first]))
    assert world.usage("acme")[2] == len(first) == 10


@pytest.mark.parametrize(
    ("claim", "noticed"),
    [
        (racers.claim_without_a_lock, "two workers got the same attempt"),
        (racers.claim_whatever_its_state, "claimed while another holds it"),
    ],
)
def test_a_claim_that_asks_nobody_is_noticed(world, processes, claim, noticed):
    """The controls."""
    ids = queue(world, "acme", 10)
    answers = processes.race(claim, world.at, ids)
    with pytest.raises(AssertionError, match=noticed):
        one_claimant(world, names(answers))
