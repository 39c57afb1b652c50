"""What the demo did, step by step, and how it is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters import console


@dataclass(slots=True)
class Step:
    """A step of the walk, and how it came out."""

    name: str
    ok: bool = False
    detail: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Story:
    """What the demo did and found."""

    url: str
    customer_id: str
    project: str
    steps: list[Step] = field(default_factory=list)
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(step.ok for step in self.steps)


def tell(story: Story, *, as_json: bool) -> None:
    """Print the steps and the tables, as one JSON object or for people."""
    if as_json:
        tables = {
            name: [dict(zip(columns, row, strict=True)) for row in rows]
            for name, (columns, rows) in story.tables.items()
        }
        steps = [{"name": s.name, "ok": s.ok, "detail": s.detail, "seconds": s.seconds} for s in story.steps]
        facts = {"ok": story.ok, "url": story.url, "customer_id": story.customer_id, "project": story.project}
        console.print_json({**facts, "steps": steps, "tables": tables})
        return
    console.print_table(
        ["Step", "", "Answer", "s"],
        [[s.name, "✓" if s.ok else "✗", s.detail, f"{s.seconds:.1f}"] for s in story.steps],
        title=f"Customer {story.customer_id} on {story.url}",
    )
    for title, (headings, found) in story.tables.items():
        console.print_table(headings, found, title=title)
