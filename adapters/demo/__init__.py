"""The guide, walked through by itself: on a server that runs, or on a temporary one."""

import secrets

import httpx
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from adapters import console
from adapters.demo.server import server
from adapters.demo.story import Story, tell
from adapters.demo.walk import Walk
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
    tell(story, as_json=as_json)
    return story.ok
