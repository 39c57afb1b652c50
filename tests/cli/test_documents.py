"""What the documents tell people to type exists: commands, their options, and settings."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from adapters.cli import app
from adapters.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
GROUP = typer.main.get_command(app)


def typed(text: str) -> Iterator[str]:
    """Every `convergence …` in code, whole when it stands on several lines."""
    for block in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, flags=re.DOTALL):
        code = "".join(block).replace("\\\n", " ")
        for line in code.splitlines():
            uncommented = line.partition("  #")[0]
            yield from re.findall(r"(?:^|[\s/])convergence ([a-z].*)", uncommented)


def unknown(line: str) -> list[str]:
    """The command or options in a line that there are not."""
    name, *words = line.split("|", maxsplit=1)[0].split()
    command = GROUP.commands.get(name)
    if command is None:
        return [name]
    if words and (below := getattr(command, "commands", {}).get(words[0])):
        command = below
    options = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    return [word for word in words if word.startswith("-") and word not in options]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_to_be_typed_exists(document):
    lines = list(typed(document.read_text()))
    assert lines
    assert [(line, wrong) for line in lines if (wrong := unknown(line))] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`convergence stats`", ["stats"]),
        ("`convergence projections skip bigquery --at 3`", ["--at"]),
        ("```bash\nconvergence runs --folow\n```", ["--folow"]),
        ("```bash\n.venv/bin/convergence backfill a b \\\n  --form 2025-11-01\n```", ["--form"]),
    ],
)
def test_what_does_not_exist_is_found(text, wrong):
    [line] = typed(text)
    assert unknown(line) == wrong


def test_every_command_and_setting_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in GROUP.commands if not re.search(rf"`(convergence )?{name}[ `]", readme)] == []
    assert [name for name in Settings.model_fields if f"`{name.upper()}`" not in readme] == []
