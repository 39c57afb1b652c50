"""Given, when, then: a stream's past, one decision, and what it decided."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self


@dataclass
class Story:
    """One stream told by its fold."""

    evolve: Callable[[Any, Any], Any]
    state: Any = None
    decided: Sequence[Any] = ()

    def given(self, *events: Any) -> Self:
        self.state = reduce(self.evolve, events, self.state)
        return self

    def when(self, decision: Callable[[Any], Any]) -> Self:
        """The decision's events become part of the past, so that another `when` goes on from there."""
        decided = decision(self.state)
        self.decided = tuple(getattr(decided, "events", decided))
        return self.given(*self.decided)

    def then(self, *events: Any) -> Self:
        assert self.decided == events
        return self

    def then_kinds(self, *kinds: type) -> Self:
        assert tuple(map(type, self.decided)) == kinds
        return self
