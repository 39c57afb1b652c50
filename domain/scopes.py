"""What a customer's API key may be used for."""

from enum import StrEnum


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
