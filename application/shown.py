"""Events and states as people see them: plain values, in the same order everywhere, without what is secret."""

from typing import Any, Final

import msgspec

NEVER: Final = frozenset({"key_hash", "sealed_key", "sealed"})
"""Fields that are shown to nobody, whatever holds them. Nor is anything shown that is bytes: those are ciphertexts."""


def shown(value: object) -> Any:  # noqa: ANN401 - as JSON knows it
    """An event, a state, or a part of one, as JSON knows it."""
    return _open(msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True, order="deterministic"))


def _open(value: Any) -> Any:  # noqa: ANN401 - as JSON knows it, and bytes
    match value:
        case dict():
            return {k: _open(v) for k, v in value.items() if k not in NEVER and not isinstance(v, bytes)}
        case list() | tuple():
            return [_open(v) for v in value if not isinstance(v, bytes)]
    return value
