"""Which two matrices of a layer must be changed together; pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantize.families import OutputTensor
from quantize.ggml import type_named
from quantize.gguf import BlockType
from quantize.transform import SCALE_GROUPS, Transforms

PLAIN = ("f32", "f16", "bf16")
"""Types whose weights have no scale in common."""
SCALED = "nvfp4"
"""Type whose experts get a factor of their own."""
MAX_PAIR_WEIGHTS = 1 << 24
"""A larger matrix is not changed with its partner, unless it must be: a thread holds both whole."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output with the type it is written in."""

    spec: OutputTensor
    type: BlockType

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, alignment excluded."""
        return math.prod(self.spec.shape[:-1]) * self.type.row_bytes(self.spec.shape[-1])


@dataclass(frozen=True, slots=True)
class Pair:
    """Two matrices with relu squared between them that are changed together, expert by expert."""

    up: PlannedTensor
    down: PlannedTensor
    scales: tuple[PlannedTensor | None, PlannedTensor | None] = (None, None)
    """Tensors that hold a factor for each expert of `up` and of `down`."""
    group: int | None = None
    """Columns of `down` that share a scale, where dealing neurons out over them pays."""

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All of them, the factors last."""
        return (self.up, self.down, *(scale for scale in self.scales if scale))

    @property
    def n_neurons(self) -> tuple[int, int]:
        """Of an expert of the source, and of the output."""
        return self.down.spec.source_shape[-1], self.down.spec.shape[-1]


def find_pairs(tensors: tuple[PlannedTensor, ...], transforms: Transforms) -> tuple[Pair, ...]:
    """Find the matrices that are changed together.

    Args:
        tensors: All of a model, with their types.
        transforms: What may be changed.

    Returns:
        Those whose neurons are left out, moved or scaled, or whose experts get a factor.
    """
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    pairs = (_make_pair(up, by_name[up.spec.feeds], transforms) for up in tensors if up.spec.feeds)
    return tuple(pair for pair in pairs if _is_changed(pair, transforms))


def _make_pair(up: PlannedTensor, down: PlannedTensor, transforms: Transforms) -> Pair:
    is_scaled, is_dealt = transforms.scale_experts, transforms.deal_neurons
    scales = (_make_scale(up), _make_scale(down)) if is_scaled else (None, None)
    return Pair(up, down, scales, SCALE_GROUPS.get(down.type.name) if is_dealt else None)


def _make_scale(tensor: PlannedTensor) -> PlannedTensor | None:
    """The tensor of factors of a stack of experts; llama.cpp reads it beside any type."""
    n_experts = len(tensor.spec.sources)
    if tensor.type.name != SCALED or len(tensor.spec.shape) != 3:
        return None
    name = tensor.spec.name.removesuffix("weight") + "scale"
    return PlannedTensor(OutputTensor(name, (n_experts,), (), (), False), type_named("f32"))


def _is_changed(pair: Pair, transforms: Transforms) -> bool:
    before, after = pair.n_neurons
    may_change = transforms.scale_neurons or pair.group is not None
    is_small = math.prod(pair.down.spec.shape[-2:]) <= MAX_PAIR_WEIGHTS
    gains = may_change and is_small and pair.down.type.name not in PLAIN
    return after < before or gains or any(pair.scales)
