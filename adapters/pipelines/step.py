"""What every step of a template has, and what running one gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from application.ports import Expectation

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
SqlFile = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.sql$")]


class Step(BaseModel):
    """One step. `retries` counts further tries within the step, only after errors that can pass.

    `timeout_s` is for the step as a whole, its tries included. After a failure, `continue` lets the run go on as if the
    step had succeeded; `fail` ends it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name
    depends_on: tuple[Name, ...] = ()
    timeout_s: int | None = Field(default=None, ge=1, le=3600)
    retries: int = Field(default=2, ge=0, le=10)
    on_failure: Literal["fail", "continue"] = "fail"

    @property
    def sql_files(self) -> Sequence[str]:
        """The SQL files that the step reads, beside its template."""
        return ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step came out. `rows` counts towards the run's rows where the step `delivers` them to the customer."""

    rows: int = 0
    delivers: bool = False
    target_table: str | None = None
    expectations: Sequence[Expectation] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    """Why there was nothing to do, in words."""
