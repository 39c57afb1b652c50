"""What a check of the log against its evidence can find, and what it says about it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

MOST: Final = 1_000


class Kind(StrEnum):
    ALTERED = "event altered"
    DELETED = "event deleted"
    INSERTED = "event inserted"
    MOVED = "event moved"
    TRUNCATED = "log truncated"
    REWRITTEN = "log rewritten"
    SEAL_CHANGED = "seal changed"
    SEAL_REMOVED = "seal removed"
    HEAD_FORGED = "head forged"
    HEAD_MISSING = "head missing"
    HEAD_UNREADABLE = "head unreadable"
    KEY_MISSING = "signing key missing"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it was, in a sentence; `position` is where in the log."""

    kind: Kind
    position: int
    sentence: str
    stream_id: str | None = None
    version: int | None = None
    topic: str | None = None


@dataclass(slots=True)
class Findings:
    """All that was found is counted, and the first `most` of it kept."""

    most: int = MOST
    kept: list[Finding] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if len(self.kept) < self.most:
            self.kept.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(finding)

    def __bool__(self) -> bool:
        return bool(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """How the log compares with its seals and its signed heads."""

    events: int
    """Events in the log, and the position of the last one."""
    position: int
    hash: str
    """The hash over all of them, hexadecimal."""
    seals: int
    sealed_position: int
    sealed_at: datetime | None
    unsealed_events: int
    """Events after the last seal: they can be changed without a trace until they are sealed and signed."""
    heads_in_file: int
    heads_in_bigquery: int | None
    """None when BigQuery was not asked, or did not answer."""
    signed_position: int
    signed_at: datetime | None
    unsigned_events: int
    """Events after the newest signed head that agrees with the log."""
    public_keys: tuple[str, ...]
    """The keys that heads had to be signed with."""
    findings: tuple[Finding, ...]
    """The first ones, in the order of the log."""
    counts: dict[str, int]
    """All of them, by kind."""
    notes: tuple[str, ...]
    """What is worth knowing and nothing wrong."""

    @property
    def found(self) -> int:
        """How many findings there are in all: 0 is well."""
        return sum(self.counts.values())
