"""What a family says about one checkpoint: metadata to write, tensors to make of which sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantize.choices import Choices
from quantize.errors import CheckpointError
from quantize.gguf import MetadataEntry

Change = Literal["copy", "negative_exp"]
"""What happens to the weights on the way: nothing, or w -> -exp(w)."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output and where it comes from."""

    name: str
    """Its name in the GGUF."""
    shape: tuple[int, ...]
    """Numpy order: rows last but one, width last."""
    sources: tuple[str, ...]
    """Names in the checkpoint; several are stacked along the first axis."""
    source_shape: tuple[int, ...]
    """Shape each source must have: the same weights in the same order as the output, which may
    be longer along its last two axes and is zero there, or shorter along its axis of neurons."""
    matrix: bool
    """True for the large matrices that are quantized; all else stays f32."""
    change: Change = "copy"
    scale: float = 1.0
    """Factor on all weights, applied in float32."""
    feeds: str = ""
    """Name of the matrix whose inputs are the squared positive parts of this one's outputs, expert
    by expert; empty if there is none. The rows here and the columns there are neurons."""
    norm: str = ""
    """Name of the norm weight that multiplies the inputs of this one; empty if none does."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model, as its family understands its config."""

    architecture: str
    """The name llama.cpp knows it by."""
    metadata: tuple[MetadataEntry, ...]
    """Keys that llama.cpp reads, `general.architecture` excluded."""
    tensors: tuple[OutputTensor, ...]
    n_embeddings: int
    """Rows of the token embedding."""
    widths: Choices
    """Every width of the output; no types."""
    left_out: tuple[str, ...] = ()
    """Prefixes of checkpoint tensors that a runner has no use for."""


@dataclass(frozen=True, slots=True)
class Config:
    """A checkpoint's config.json, read with suspicion."""

    path: Path
    values: Mapping[str, Any]

    def integer(
        self, *keys: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """Return the first of `keys` that is there, as an integer from `low` to `high`.

        Raises:
            CheckpointError: It is missing without a default, no integer, or out of range.
        """
        key, value = self._first(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"{value!r} is not an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; raises CheckpointError as `integer` does."""
        key, value = self._first((key,), default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not -1e30 < value < 1e30
        ):
            raise self.refuse(key, f"{value!r} is not a finite number")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; raises CheckpointError as `integer` does."""
        key, value = self._first((key,), default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"{value!r} is not true or false")
        return value

    def expect(self, key: str, *allowed: object) -> None:
        """Refuse a value that llama.cpp would silently ignore; a missing key is fine."""
        if key in self.values and self.values[key] not in allowed:
            raise self.refuse(key, f"{self.values[key]!r} is not supported by llama.cpp")

    def refuse(self, key: str, problem: str) -> CheckpointError:
        """Make the error that names this file and a key of it."""
        return CheckpointError(self.path, f"key {key}: {problem}")

    def _first(self, keys: tuple[str, ...], default: object) -> tuple[str, Any]:
        for key in keys:
            if self.values.get(key) is not None:
                return key, self.values[key]
        if default is None:
            raise self.refuse(keys[0], "is missing")
        return keys[0], default
