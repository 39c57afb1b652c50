"""Long work, watched: what it does, how far it is, how fast it goes and how long it will take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from adapters import console

Tell = Callable[[str, int, int], None]
"""Told now and then: the stage that the work is in, in words; how much of it is done; and how much there is."""


def untold(stage: str, done: int, total: int) -> None:
    """For work that nobody watches."""


@contextmanager
def bar(*, shown: bool = True) -> Iterator[Tell]:
    """A bar on standard error with its rate and the time that is left; each stage starts it anew."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console.ERR, disable=not shown)
    tasks: dict[str, TaskID] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if not tasks:
            progress.start()
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total, rate="")
        progress.update(tasks[stage], completed=done, total=total)
        task = progress.tasks[progress.task_ids.index(tasks[stage])]
        progress.update(tasks[stage], rate=f"{task.finished_speed or task.speed or 0:,.0f}/s")

    try:
        yield tell
    finally:
        # One that was never told of leaves nothing behind: no empty line before a sentence that says what is wrong.
        if tasks:
            progress.stop()
