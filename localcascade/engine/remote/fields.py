"""Fields of the JSON that a server sends, taken only if they are what they should be. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from localcascade.errors import RemoteError

T = TypeVar("T")


def check_kind(value: Any, what: str, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise RemoteError(
            f"the server breaks the OpenAI format: {what} is {value!r:.80}, not {kind.__name__}"
        )
    return value


def get_field(fields: Mapping[str, Any], key: str, kind: type[T], default: T) -> T:
    """Take a field that may be missing or null, but nothing else than what it should be."""
    value = fields.get(key)
    return default if value is None else check_kind(value, key, kind)


def get_count(fields: Mapping[str, Any], key: str, default: int) -> int:
    value = fields.get(key)
    return value if type(value) is int and value >= 0 else default


def get_number(fields: Mapping[str, Any], key: str, default: float) -> float:
    value = fields.get(key)
    return float(value) if isinstance(value, int | float) else default
