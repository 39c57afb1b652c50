"""Many rows as one parameter of a statement: JSON, which the server takes apart faster than the driver makes arrays."""

from collections.abc import Collection
from typing import Any, Final

import msgspec
from psycopg.types.json import Json

_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)


def _as_it_is(encoded: bytes) -> bytes:
    return encoded


def json_of(rows: Collection[Any]) -> Json:
    """The rows for `json_to_recordset(%s)`, or one for `json_to_record(%s)`.

    Encoded now: nothing is left to do once locks are held.
    """
    return Json(_ENCODER.encode(rows), dumps=_as_it_is)
