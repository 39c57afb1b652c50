"""The guide, walked through by itself: on a server that runs, or on a temporary one."""

import secrets

import httpx
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from adapters import console
from adapters.demo_server import server
from adapters.demo_walk import Story, Walk
from adapters.settings import Settings


def demonstrate(settings: Settings, *, url: str | None, days: int, as_json: bool) -> bool:
    """Walk through the guide and print what happened; whether every answer was as the guide says.

    Raises `Unable` when there is no server to walk through.
    """
    with Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=console.ERR,
        disable=as_json,
    ) as progress:
        starting = progress.add_task("Finding a server, or starting a temporary one", total=1)
        with server(settings, url) as target:
            progress.update(starting, completed=1, description=f"A server answers at {target.url}")
            story = Story(target.url, f"demo_{secrets.token_hex(4)}", target.project)
            with httpx.Client(base_url=target.url, timeout=60, trust_env=False) as http:
                Walk(target, http, story, progress, days).walk()
    _print(story, as_json=as_json)
    return story.ok


def _print(story: Story, *, as_json: bool) -> None:
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
