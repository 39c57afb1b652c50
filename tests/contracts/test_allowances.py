"""Allowances: the shared ones and those of a single process give the same, and the shared ones are exact."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from adapters.http.ledger import Ledger, LocalBuckets, Take, bucket
from adapters.http.throttle import SharedAllowances
from adapters.postgres.allowances import Allowance, Ask, Grant, sweep, take
from adapters.postgres.event_log import Datastore
from tests.application.world import migrated
from tests.http.running import database

SLOW = Allowance(5, 3600.0)


@pytest.fixture(scope="module")
def dsn(postgres_server) -> Iterator[str]:
    with database(postgres_server.dsn, migrated(postgres_server.dsn)) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def datastore(dsn) -> Iterator[Datastore]:
    made = Datastore(dsn, size=8)
    yield made
    made.close()


@pytest.fixture(params=["shared", "local"])
def taker(request, datastore) -> Take:
    return LocalBuckets().take if request.param == "local" else lambda asks: take(datastore, asks)


def ask(tokens: int = 1, allowance: Allowance = SLOW, name: str | None = None) -> Ask:
    return Ask(bucket("test", name or uuid4().hex), allowance, tokens)


def test_no_more_than_there_are(taker):
    wanted = ask(3)
    answers = [taker([wanted])[0] for _ in range(3)]
    assert [(grant.tokens, grant.left) for grant in answers] == [(3, 2), (2, 0), (0, 0)]
    assert answers[0].wait_s == 0
    assert answers[2].wait_s == pytest.approx(3600, abs=60)


def test_a_wish_beyond_the_whole(taker):
    assert [(g.tokens, g.left) for g in taker([ask(99)])] == [(5, 0)]


def test_several_in_the_order_asked(taker):
    asks = [ask(n + 1) for n in range(4)]
    taker([asks[3]])
    assert [grant.tokens for grant in taker(asks)] == [1, 2, 3, 1]


def waits_after_a_clock_was_set_back(take: Take, set_back: Callable[[], None]) -> float:
    wanted = ask(5, Allowance.per_minute(60))
    take([wanted])
    set_back()
    take([wanted])
    return take([wanted])[0].wait_s


def test_a_clock_that_is_set_back_shuts_nobody_out(datastore):
    def an_hour() -> None:
        with datastore.reading() as cursor:
            cursor.execute("UPDATE allowances SET full_at = full_at + interval '1 hour'")

    def asked(asks: Sequence[Ask]) -> Sequence[Grant]:
        return take(datastore, asks)

    assert waits_after_a_clock_was_set_back(asked, an_hour) <= 1
    clock = [7200.0]
    relies_on_its_clock = LocalBuckets(timer=lambda: clock[0]).take
    assert waits_after_a_clock_was_set_back(relies_on_its_clock, lambda: clock.append(clock.pop() - 3600)) > 3000, (
        "the control: what never goes back in a process, and would in a database"
    )


def test_tokens_come_back(taker):
    quick = Allowance(2, 1e-9)
    wanted = ask(2, quick)
    assert [taker([wanted])[0].tokens for _ in range(50)] == [2] * 50


def test_another_limit_counts_at_once(taker):
    name = uuid4().hex
    taker([ask(5, SLOW, name)])
    assert taker([ask(9, Allowance(12, 3600.0), name)])[0].tokens == 7


def race(taker: Take, tokens: int) -> int:
    wanted = ask(1, Allowance(tokens, 3600.0))
    with ThreadPoolExecutor(8) as pool:
        return sum(grant.tokens for [grant] in pool.map(lambda _: taker([wanted]), range(tokens * 3)))


def test_eight_at_once_get_exactly_what_there_is(datastore):
    assert race(lambda asks: take(datastore, asks), 40) == 40


def test_buckets_in_any_order_do_not_block_each_other(datastore):
    names = [uuid4().hex for _ in range(20)]
    asks = [ask(1, Allowance(1000, 3600.0), name) for name in names]
    with ThreadPoolExecutor(8) as pool:
        orders = [asks if n % 2 else asks[::-1] for n in range(80)]
        assert all(grant.tokens == 1 for grants in pool.map(lambda o: take(datastore, o), orders) for grant in grants)


def kept(datastore: Datastore, *asks: Ask) -> list[bool]:
    with datastore.reading() as cursor:
        rows = cursor.execute("SELECT bucket FROM allowances").fetchall()
    found = {bytes(row["bucket"]) for row in rows}
    return [one.bucket in found for one in asks]


def test_whole_allowances_are_swept(datastore):
    used, whole = ask(1), ask(1, Allowance(5, 1e-6))
    take(datastore, [used, whole])
    assert sweep(datastore) >= 1
    assert kept(datastore, used, whole) == [True, False]


def test_use_sweeps(dsn, datastore):
    now = [0.0]
    whole, other = ask(1, Allowance(5, 1e-6)), ask(1)
    allowances = SharedAllowances(dsn, timer=lambda: now[0])
    try:
        allowances.take([whole])
        assert kept(datastore, whole) == [True]
        now[0] = 61.0
        allowances.take([other])
        assert kept(datastore, whole) == [False]
    finally:
        allowances.close()


def test_names_are_short_and_say_nothing():
    names = [bucket("a", "b"), bucket("a", "b" * 10_000), bucket("a\0b"), bucket("a", "\ud800")]
    assert {len(name) for name in names} == {16}
    assert bucket("calls", "acme") != bucket("wrong keys", "acme")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_while_the_database_is_away_a_process_counts_by_itself(anyio_backend):
    now, asked = [0.0], []
    away = SharedAllowances("postgresql://nobody@127.0.0.1:1/nowhere")

    def taking(asks):
        asked.append(1)
        return away.take(asks)

    ledger = Ledger(taking, timer=lambda: now[0])
    try:
        wanted = ask(3)
        assert [(await ledger.take(wanted))[0].tokens for _ in range(3)] == [3, 2, 0]
        assert len(asked) == 1
        now[0] = 6.0
        await ledger.take(wanted)
        assert len(asked) == 2
    finally:
        away.close()
        ledger.close()
