"""What workers executed and when, written down by themselves: any number of processes, one file."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from application.ports import RunOrder


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a worker did with an attempt, and when by the machine's monotonic clock, which all processes share."""

    what: str
    run_id: str
    attempt: int
    worker: str
    at: float
    wall: float
    rows: int = 0


@dataclass
class Journal:
    """A file that any number of processes append lines to."""

    path: Path

    def write(self, what: str, order: RunOrder, worker: str, rows: int = 0) -> None:
        entry = Entry(
            what=what, run_id=order.run_id, attempt=order.attempt, worker=worker, at=time.monotonic(),
            wall=time.time(), rows=rows,
        )  # fmt: skip
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(file, json.dumps(asdict(entry)).encode() + b"\n")
        finally:
            os.close(file)

    def entries(self, what: str | None = None, worker: str | None = None) -> list[Entry]:
        if not self.path.exists():
            return []
        found = [Entry(**json.loads(line)) for line in self.path.read_text().splitlines()]
        return [e for e in found if what in {None, e.what} and worker in {None, e.worker}]

    def in_hand(self, worker: str) -> set[str]:
        """The runs that this worker has begun and not ended."""
        runs: set[str] = set()
        for entry in self.entries(worker=worker):
            runs = runs | {entry.run_id} if entry.what == "begin" else runs - {entry.run_id}
        return runs


def one_at_a_time(journal: Journal, died: Mapping[str, float]) -> None:
    """No run was executed by two workers at once, and no attempt twice."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ends = {(e.run_id, e.attempt, e.worker): e.at for e in journal.entries() if e.what != "begin"}
    for begun in journal.entries("begin"):
        end = ends.get((begun.run_id, begun.attempt, begun.worker), died.get(begun.worker, float("inf")))
        spans[begun.run_id].append((begun.at, end))
    for times in spans.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(times)))
    attempts = [(e.run_id, e.attempt) for e in journal.entries("begin")]
    assert len(attempts) == len(set(attempts))
