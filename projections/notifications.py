"""Notifications of events: which of them are occasions to tell a customer something."""

from collections.abc import Iterator

from domain import customer_events
from domain.customer_events import ApiKeyIssued, ApiKeyRevoked
from domain.envelope import Envelope
from domain.notification import Kind, Occasion
from domain.refusals import Limit
from domain.run_events import RunFailed, RunSkipped
from domain.subscription_events import RunRefused, RunsAdmitted

_FIRST_KEY_VERSION = 2
"""A customer's stream begins with Onboarded and the first key, appended together."""
_WARN_AT_PERCENT = 80


def occasions(event: object, at: Envelope) -> Iterator[Occasion]:
    """What one event is an occasion to tell; nothing, for most. Pure: a replay finds the same ones."""
    match event:
        case ApiKeyIssued() if at.version == _FIRST_KEY_VERSION:
            yield _of(at, Kind.WELCOME, event.api_key_id, api_key_id=event.api_key_id)
        case ApiKeyIssued():
            yield _of(at, Kind.KEY_ISSUED, event.api_key_id, api_key_id=event.api_key_id, last4=event.last4)
        case ApiKeyRevoked(reason=reason) if reason is not None:
            yield _of(at, Kind.KEY_REVOKED, event.api_key_id, api_key_id=event.api_key_id)
        case RunFailed():
            yield _of(at, Kind.RUN_FAILED, str(at.stream_id), run_id=str(at.stream_id))
        case RunSkipped():
            # A pipeline that finds no room, or no active account, all day long says so once.
            what = event.config_id or str(at.stream_id)
            yield _of(at, Kind.RUN_SKIPPED, f"{what}/{event.ended_at.date()}", run_id=str(at.stream_id))
        case RunsAdmitted(usage=usage, limits=limits):
            day, month = usage.day.isoformat(), usage.day.strftime("%Y-%m")
            yield from _quota(at, Limit.DAILY, day, usage.admitted, limits.max_pipelines_per_day)
            yield from _quota(at, Limit.MONTHLY, month, usage.month_admitted, limits.max_pipelines_per_month)
        case RunRefused(limit=limit) if limit is not Limit.CONCURRENT:
            period = event.day.isoformat() if limit is Limit.DAILY else event.day.strftime("%Y-%m")
            yield from _quota(at, limit, period, event.used, event.allowed)
        case customer_events.Suspended():
            yield _of(at, Kind.SUSPENDED, str(at.version))
        case customer_events.Reactivated():
            yield _of(at, Kind.REACTIVATED, str(at.version))


def _of(at: Envelope, kind: Kind, name: str, **about: str | int) -> Occasion:
    return Occasion(kind=kind, customer_id=at.customer_id, name=name, occurred_at=at.at, about=about)


def _quota(at: Envelope, limit: Limit, period: str, used: int, allowed: int) -> Iterator[Occasion]:
    """`period` is the UTC day or month, as `2025-11-17` or `2025-11`: each threshold of a limit is told once in it."""
    if used >= allowed:
        kind = Kind.QUOTA_100
    elif 100 * used >= _WARN_AT_PERCENT * allowed:
        kind = Kind.QUOTA_80
    else:
        return
    # Who has been given another limit is told again when it comes near that one.
    yield _of(at, kind, f"{limit}/{period}/{allowed}", limit=limit.value, period=period, used=used, allowed=allowed)


def ends(event: object) -> bool:
    """Whether the customer is gone with this event, and nothing is to be told any more."""
    return isinstance(event, customer_events.Erased)
