"""Looking for a secret wherever it may have ended up, whatever it is dressed in."""

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def disguises(text: str) -> set[bytes]:
    """The text as it would look in other clothes; base64 has three, one for each place in a longer text."""
    raw = text.encode()
    found = {
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        json.dumps(text)[1:-1].encode(),
        json.dumps(json.dumps(text)[1:-1])[1:-1].encode(),
        text.encode("utf-16-le"),
    }
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            encoded = encode(b"\0" * shift + raw)
            found.add(encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4])
    return found


def found_in(content: bytes, texts: Iterable[str]) -> set[str]:
    """Which of the texts are in the content."""
    return {text for text in texts if any(disguise in content for disguise in disguises(text))}


def found_below(directory: Path, texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the texts that are in files below the directory, with those files."""
    found: dict[str, list[str]] = {}
    names = {text: name for name, text in texts.items()}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and not p.is_symlink()):
        for text in found_in(path.read_bytes(), texts.values()):
            found.setdefault(names[text], []).append(str(path.relative_to(directory)))
    return found
