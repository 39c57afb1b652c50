"""What the platform sells, and the limits each plan carries."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Final

from domain.refusals import Invalid


class Plan(StrEnum):
    STARTER = "STARTER"
    PROFESSIONAL = "PROFESSIONAL"
    SCALE = "SCALE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a customer may have and do. Days and months are UTC."""

    max_team_members: int
    max_providers: int
    max_pipelines_per_day: int
    max_pipelines_per_month: int
    max_concurrent_pipelines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """An operator's exceptions for one customer; None leaves the plan's own limit in force."""

    max_team_members: int | None = None
    max_providers: int | None = None
    max_pipelines_per_day: int | None = None
    max_pipelines_per_month: int | None = None
    max_concurrent_pipelines: int | None = None

    def over(self, limits: Limits) -> Limits:
        return replace(limits, **{f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None})

    def check(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not 0 <= value <= MAX_LIMIT:
                raise Invalid(f"{f.name} must be between 0 and {MAX_LIMIT}.")


MAX_LIMIT: Final = 1_000_000


def _plan(team: int, providers: int, per_day: int, concurrent: int) -> Limits:
    return Limits(
        max_team_members=team,
        max_providers=providers,
        max_pipelines_per_day=per_day,
        max_pipelines_per_month=30 * per_day,
        max_concurrent_pipelines=concurrent,
    )


LIMITS: Final = {
    Plan.STARTER: _plan(2, 3, 6, 3),
    Plan.PROFESSIONAL: _plan(6, 6, 25, 5),
    Plan.SCALE: _plan(11, 10, 100, 10),
}
