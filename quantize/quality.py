"""How good a file was found to be, kept in its own metadata: `localcascade.quality.*`.

The figures are known only when the file is whole and has been compared with its original, so room
for them is reserved when it is laid out: NaN, 0 and blanks stand for "not measured".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantize.errors import GGUFError
from quantize.gguf import GGUFFile, MetadataEntry, patch_metadata

KEY = "localcascade.quality."
TEXT_BYTES = 64
"""Room for the name of a reference or of a text."""

_KINDS = {
    "mean_kl": "f32", "p99_kl": "f32", "same_top1": "f32", "n_tokens": "u32", "reference": "str",
    "text": "str",
}  # fmt: skip
_BLANKS = {"f32": math.nan, "u32": 0, "str": " " * TEXT_BYTES}


@dataclass(frozen=True, slots=True)
class Quality:
    """What a comparison with the original model found."""

    mean_kl: float
    """Nats a token."""
    p99_kl: float
    """Nats; one token in a hundred is further off."""
    same_top1: float
    """Share of tokens whose likeliest continuation is the original's, 0 to 1."""
    n_tokens: int
    """Tokens compared."""
    reference: str
    """Name of the original's file."""
    text: str
    """Name of the text."""


def reserve_quality() -> tuple[MetadataEntry, ...]:
    """Build metadata entries that leave room for what will be measured, side by side."""
    return tuple((KEY + name, _BLANKS[kind], kind) for name, kind in _KINDS.items())


def record_quality(path: Path, quality: Quality) -> None:
    """Write measured figures into a finished file that has room for them.

    Args:
        path: A GGUF file whose metadata has what `reserve_quality` built; not one that the store
            holds, whose digests would no longer be true.
        quality: Names longer than TEXT_BYTES are cut, with an ellipsis.

    Raises:
        GGUFError: The file is damaged, or has no room for them.
        OutputError: It cannot be written.
    """
    values = asdict(quality)
    texts = {name: _fill_text(values[name]) for name, kind in _KINDS.items() if kind == "str"}
    patch_metadata(path, {KEY + name: value for name, value in (values | texts).items()})


def _fill_text(text: str) -> str:
    """Cut or fill a text with blanks so that it takes TEXT_BYTES in UTF-8."""
    encoded = text.encode()
    if len(encoded) > TEXT_BYTES:
        ellipsis = "…".encode()
        kept = encoded[: TEXT_BYTES - len(ellipsis)].decode(errors="ignore").encode()
        encoded = kept + ellipsis
    return encoded.ljust(TEXT_BYTES).decode()


def read_quality(file: GGUFFile) -> Quality | None:
    """Read what was measured of a file.

    Args:
        file: Open.

    Returns:
        The figures, or None if nothing was measured, or the file is not one of ours.

    Raises:
        GGUFError: The figures are there but are not figures.
    """
    if not file.metadata.get(KEY + "n_tokens"):
        return None
    return Quality(**{name: _read_value(file, KEY + name, kind) for name, kind in _KINDS.items()})


def _read_value(file: GGUFFile, key: str, kind: str) -> Any:
    value = file.metadata.get(key)
    if type(value) is not type(_BLANKS[kind]) or (isinstance(value, float) and math.isnan(value)):
        raise GGUFError(file.path, f"{key} is {value!r}", hint="Compare the model again.")
    return value.rstrip() if isinstance(value, str) else value
