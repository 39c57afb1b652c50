"""An event as two lines for people: what happened, by whom and why; and below, where it stands and what it says."""

import json
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from adapters import console

if TYPE_CHECKING:
    from adapters.event_views import EventView

_SHOWN: Final = 160


def lines(event: "EventView", *, with_data: bool = True) -> Text:
    """Two lines: the first is what one looks for; the second has what one asks for next, as much of it as fits."""
    data: dict[str, Any] = dict(event.data)
    reason = data.pop("reason", None)
    text = Text(f"{console.shown(event.at) if event.at else '(at a time unknown)'}  ")
    text.append(event.type, style="bold red" if event.unreadable else "bold")
    text.append(f" {event.customer_id}" if event.customer_id else "")
    text.append(f" by {event.actor}" if event.actor else "")
    if why := event.unreadable or reason:
        text.append(f": {why}")
    text.append(f"\n    position {event.position}, stream {event.stream_id} version {event.version}", style="dim")
    rest = ", ".join(f"{name} {_plain(value)}" for name, value in data.items() if value not in (None, [], {}))
    if rest and with_data:
        text.append(f" · {rest if len(rest) <= _SHOWN else rest[: _SHOWN - 1] + '…'}", style="dim")
    return text


def _plain(value: object) -> str:
    if isinstance(value, dict):
        value = {name: inner for name, inner in value.items() if inner is not None}
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
