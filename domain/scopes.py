"""What a customer's API key may be used for."""

from collections.abc import Iterable
from enum import StrEnum

from domain.refusals import Forbidden


class Scope(StrEnum):
    """One kind of use. A key that is not given any may be used for all of them, also for those that come later."""

    RUNS_READ = "runs:read"
    """See runs, their steps and their history."""
    RUNS_WRITE = "runs:write"
    """Start, cancel, retry and back-fill runs; and all of `runs:read`."""
    CONFIG_WRITE = "config:write"
    """See and change profile, schedules, provider configurations, team, notifications and readers; see the trail."""
    CREDENTIALS_WRITE = "credentials:write"
    """See, add and revoke API keys and cloud credentials."""
    USAGE_READ = "usage:read"
    """See usage and limits."""


_IMPLIED = {Scope.RUNS_READ: Scope.RUNS_WRITE}


def allows(scopes: frozenset[str] | None, wanted: str) -> bool:
    """Whether a key of these scopes may be used for `wanted`; None stands for every scope."""
    return scopes is None or wanted in scopes or _IMPLIED.get(Scope(wanted)) in scopes


def must_cover(held: frozenset[str] | None, wanted: Iterable[str] | None) -> None:
    """Nobody hands on more than he has: raises `Forbidden`, naming what a key of the scopes `held` lacks."""
    if held is None:
        return
    missing = [scope for scope in (Scope if wanted is None else wanted) if not allows(held, scope)]
    lacks = f"This API key lacks the scope {' '.join(missing)}, and" if missing else "This API key"
    if wanted is None:
        raise Forbidden(f"{lacks} cannot issue one for everything. Say which scopes the new one is to have.")
    if missing:
        raise Forbidden(f"{lacks} can issue keys only of scopes that it has itself.")
