"""Allowances that all processes share: so many tokens at once, and one more every so often, by the database's clock."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapters.postgres.event_log import Datastore

# The generic cell rate algorithm (ITU-T I.371): one instant per bucket, at which all its tokens are back.
# In the order of the buckets, so that two statements never wait for each other. No bucket owes more than all it holds:
# where the database's clock was set back, nobody waits until it has caught up.
_TAKE: Final = (
    "INSERT INTO allowances AS a (bucket, full_at, spacing_s, burst, wanted, granted)"
    " SELECT w.bucket, clock_timestamp() + make_interval(secs => least(w.wanted, w.burst) * w.spacing_s),"
    "  w.spacing_s, w.burst, w.wanted, least(w.wanted, w.burst)"
    " FROM unnest(%(buckets)s::bytea[], %(spacings)s::float8[], %(bursts)s::int[], %(wanted)s::int[])"
    "  AS w(bucket, spacing_s, burst, wanted) ORDER BY w.bucket"
    " ON CONFLICT (bucket) DO UPDATE SET spacing_s = excluded.spacing_s, burst = excluded.burst,"
    "  wanted = excluded.wanted, (granted, full_at) = ("
    "   SELECT g.tokens, t.since + make_interval(secs => g.tokens * excluded.spacing_s)"
    "   FROM (SELECT clock_timestamp() AS now) c, LATERAL (SELECT"
    "    least(greatest(a.full_at, c.now), c.now + make_interval(secs => excluded.burst * excluded.spacing_s))"
    "    AS since) t,"
    "   LATERAL (SELECT greatest(0, least(excluded.wanted, floor(excluded.burst + 1e-6"
    "    - extract(epoch FROM t.since - c.now) / excluded.spacing_s)))::int AS tokens) g)"
    " RETURNING a.bucket, a.granted, greatest(0, extract(epoch FROM a.full_at - clock_timestamp()))::float8 AS owed_s"
)
_SWEEP: Final = (
    "DELETE FROM allowances WHERE bucket IN"
    " (SELECT bucket FROM allowances WHERE full_at < clock_timestamp() FOR UPDATE SKIP LOCKED)"
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """`burst` tokens at most; each comes back `spacing_s` seconds after the one before."""

    burst: int
    spacing_s: float

    @classmethod
    def per_minute(cls, tokens: int) -> "Allowance":
        """So many at once, all of which are back after a minute."""
        return cls(tokens, 60 / tokens)


@dataclass(frozen=True, slots=True)
class Ask:
    """Tokens that somebody wants from a bucket, as many of them as there are."""

    bucket: bytes
    allowance: Allowance
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Grant:
    """The tokens that were there, how many are left, and seconds until there is one again (0 if there is now)."""

    tokens: int
    left: int
    wait_s: float


def granted(ask: Ask, tokens: int, owed_s: float) -> Grant:
    """A grant of tokens from a bucket that is full again in `owed_s` seconds."""
    allowance = ask.allowance
    left = math.floor(allowance.burst - owed_s / allowance.spacing_s + 1e-6)
    return Grant(tokens, max(0, left), max(0.0, owed_s - (allowance.burst - 1) * allowance.spacing_s))


def take(datastore: Datastore, asks: Sequence[Ask]) -> Sequence[Grant]:
    """What each of the asks gets, in their order; no bucket may be named twice. One statement.

    Raises `Away` with the database.
    """
    values = {
        "buckets": [ask.bucket for ask in asks],
        "spacings": [ask.allowance.spacing_s for ask in asks],
        "bursts": [ask.allowance.burst for ask in asks],
        "wanted": [ask.tokens for ask in asks],
    }
    with datastore.reading() as cursor:
        rows = cursor.execute(_TAKE, values, prepare=True).fetchall()
    found = {bytes(row["bucket"]): row for row in rows}
    return [granted(ask, found[ask.bucket]["granted"], found[ask.bucket]["owed_s"]) for ask in asks]


def sweep(datastore: Datastore) -> int:
    """Remove the rows of allowances that are whole again, which are like those without a row; returns how many.

    Whatever anybody takes, a row lives no longer than its allowance needs to come back. Raises `Away`.
    """
    with datastore.reading() as cursor:
        return cursor.execute(_SWEEP, prepare=True).rowcount
