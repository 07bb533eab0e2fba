"""Our own encoders for the types whose reference encoder is poor: Q2_0, MXFP4 and NVFP4.

All three give a group of weights one scale and a few bits each; what matters is the scale. Ggml
derives it from the largest weight; here several are tried and the one whose decoded weights lie
nearest, weighed by importance, is kept. Ggml's own choice is always among them.

A batch of groups is a panel with one group a column, so that each step is one pass along whole
vectors and the sums of a group are added in one fixed order, whatever the machine and the batch.

Source: the reference decoders in ggml/src/ggml-quants.c of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize import ggml
from quantize.ggml import F32Array, U8Array
from quantize.gguf import BlockType

F16Array = npt.NDArray[np.float16]
I32Array = npt.NDArray[np.int32]

_PANEL_WEIGHTS = 1 << 15
"""128 KiB an array; the arrays that an encoder works on stay in the L2 cache."""
_MIN_COLUMNS = 16
"""A panel of one column would be summed in another order."""
_MARGIN = np.float32(1 - 1e-5)
"""Ggml's scale is given up only for an error lower than rounding of its sum can explain."""

_Q2_0_STEPS = tuple(float(step) for step in np.geomspace(0.4, 1.0, 8))
"""Scales tried, in units of a group's Σ i|w|³ / Σ iw², which outliers move little but enough."""
_F16_MAX = 65504.0
_MXFP4_STEPS = (1, -1)
"""Scale codes tried beside ggml's. Lower ones clip the largest weight, which pays if it matters
less than the others."""
_NVFP4_STEPS = (-4, -3, -2, -1, 1, 2, 3, 4, 5, 6)
_MXFP4_CODES = range(253)
"""Above these, a level can be infinite in float32."""
_NVFP4_CODES = range(1, 127)
"""Codes 0 and 127 decode to zero."""


def encode_rows(
    weights: F32Array, block_type: BlockType, out: U8Array, importance: F32Array | None = None
) -> None:
    """Encode rows of weights: Q2_0, MXFP4 and NVFP4 with our encoders, all else with ggml's.

    The bytes of a row depend on that row and `importance` alone.

    Args:
        weights: float32 (n_rows, width), contiguous, finite.
        block_type: The type to encode to; its block divides `width`.
        out: uint8, exactly the bytes of the encoded rows, contiguous.
        importance: float32 (width,), weight of each column's squared error, finite and not
            negative; None is uniform. A group whose every weight has importance zero is encoded
            as if it were uniform.

    Raises:
        ValueError: The buffers do not match, or the importance is negative or not finite.
    """
    encoder = _ENCODERS.get(block_type.name)
    if encoder is None:
        ggml.encode_rows(weights, block_type, out, importance)
        return
    _check_buffers(weights, block_type, out, importance)
    blocks = out.reshape(-1, block_type.block_bytes)
    groups = weights.reshape(-1, encoder.group)
    per_block = block_type.block_weights // encoder.group
    per_row = weights.shape[1] // encoder.group
    panel = _Panel.allocate(encoder.group, _choose_columns(len(groups), per_row, encoder.group))
    if importance is None:
        importance = np.ones(weights.shape[1], dtype=np.float32)
    loaded = -1
    for first in range(0, len(groups), panel.n_columns):
        last = min(first + panel.n_columns, len(groups))
        # Panels of whole rows all need the same importance.
        if first % per_row != loaded:
            loaded = first % per_row
            panel.load_importance(importance.reshape(-1, encoder.group), first)
        panel.load_weights(groups[first:last])
        encoder.encode(panel, blocks[first // per_block : last // per_block])


def _check_buffers(
    weights: F32Array, block_type: BlockType, out: U8Array, importance: F32Array | None
) -> None:
    n_rows, width = weights.shape
    row_bytes = block_type.row_bytes(width)
    if not (weights.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("weights and room must be contiguous")
    if weights.dtype != np.float32:
        raise ValueError(f"weights are {weights.dtype}, not float32")
    if out.nbytes != n_rows * row_bytes:
        raise ValueError(f"{out.nbytes} bytes of room for {n_rows} rows of {row_bytes}")
    if importance is None:
        return
    if importance.shape != (width,) or importance.dtype != np.float32:
        raise ValueError(f"importance is {importance.dtype} {importance.shape}, not ({width},)")
    wrong = np.flatnonzero(~((importance >= 0) & np.isfinite(importance)))
    if wrong.size:
        raise ValueError(f"importance of column {wrong[0]} is {importance[wrong[0]]}")


def _choose_columns(n_groups: int, per_row: int, group: int) -> int:
    """Groups a panel holds: whole rows if one fits."""
    most = _PANEL_WEIGHTS // group
    columns = most if per_row > most else most // per_row * per_row
    return max(_MIN_COLUMNS, min(columns, n_groups))


@dataclass(frozen=True)
class _Panel:
    """A batch of groups and room to work on them; every array is float32 (group, n_columns)."""

    weights: F32Array
    """Of a group a column; scaled by a power of two once `normalize` was called."""
    importance: F32Array
    weighted: F32Array
    """Importance times weights; only Q2_0 fills it."""
    ratios: F32Array
    """Scratch that survives `levels`; only Q2_0 uses it."""
    levels: F32Array
    """What the weights become, in units of a scale."""
    work: F32Array
    """Scratch that no call leaves in use."""

    @classmethod
    def allocate(cls, group: int, n_columns: int) -> _Panel:
        """Make room for a panel; pages that an encoder never touches cost nothing."""
        return cls(*(np.empty((group, n_columns), dtype=np.float32) for _ in range(6)))

    @property
    def n_columns(self) -> int:
        return int(self.weights.shape[1])

    def load_importance(self, row: F32Array, first: int) -> None:
        """Take the importance of groups `first` onwards; `row` is (groups of a row, group).

        Each group's is brought to about 1 by a power of two, so that no sum over- or underflows.
        """
        columns = np.arange(first, first + self.n_columns) % len(row)
        self.importance[:] = row[columns].T
        largest = np.maximum.reduce(self.importance, axis=0)
        factor = np.ldexp(np.float32(1), np.clip(-np.frexp(largest)[1], -126, 126))
        np.multiply(self.importance, factor, out=self.importance)
        self.importance[:, largest == 0] = 1

    def load_weights(self, groups: F32Array) -> None:
        """Take float32 (at most n_columns, group); columns to spare become zero."""
        self.weights[:, : len(groups)] = groups.T
        self.weights[:, len(groups) :] = 0

    def normalize(self) -> tuple[F32Array, F32Array]:
        """Scale each group, exactly, so that its largest weight lies in [1, 2) or below.

        Returns:
            That weight before scaling, and the factor; float32 (n_columns,) each.
        """
        magnitudes = np.abs(self.weights, out=self.work)
        largest: F32Array = np.maximum.reduce(magnitudes, axis=0)
        exponent = np.frexp(largest)[1]
        factor = np.ldexp(np.float32(1), np.clip(1 - exponent, -126, 126))
        np.multiply(self.weights, factor, out=self.weights)
        return largest, factor

    def measure_error(self, scale: F32Array) -> F32Array:
        """Sum importance times squared error of levels times scale; overwrites the levels."""
        residual = np.multiply(self.levels, scale, out=self.levels)
        np.subtract(residual, self.weights, out=residual)
        np.square(residual, out=residual)
        return _sum_columns(np.multiply(residual, self.importance, out=residual))


def _sum_columns(array: F32Array) -> F32Array:
    total: F32Array = np.add.reduce(array, axis=0)
    return total


def _divide_or_zero(numerator: F32Array, denominator: F32Array) -> F32Array:
    quotient = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


# Q2_0: 64 weights in 18 bytes. A float16 d, then codes 0..3 of levels -d, 0, d, 2d, four a byte.


def _encode_q2_0(panel: _Panel, out: U8Array) -> None:
    largest, factor = panel.normalize()
    np.multiply(panel.weights, panel.importance, out=panel.weighted)
    scale = _search_signed_scale(panel)
    _choose_levels(panel, scale)
    scale, _ = _fit_scale(panel)
    stored = _round_to_f16(scale / factor)
    reference = _round_to_f16(largest)
    reference_error = _measure_levels(panel, reference * factor)
    better = _measure_levels(panel, stored * factor) < reference_error * _MARGIN
    stored = np.where(better, stored, reference)
    _choose_levels(panel, stored * factor)
    codes = (panel.levels + np.float32(1)).astype(np.uint8).reshape(16, 4, -1)
    packed = codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
    out[:, :2] = stored[: len(out), None].view(np.uint8)
    out[:, 2:] = packed.T[: len(out)]


def _search_signed_scale(panel: _Panel) -> F32Array:
    """Try some magnitudes with both signs, each followed by a fit; keep the best fit."""
    base = _find_typical_magnitude(panel)
    best, best_gain = base.copy(), np.zeros_like(base)
    for step in _Q2_0_STEPS:
        np.divide(panel.weights, base * np.float32(step), out=panel.ratios)
        np.rint(panel.ratios, out=panel.ratios)
        for sign, lowest, highest in ((1, -1, 2), (-1, -2, 1)):
            np.clip(panel.ratios, lowest, highest, out=panel.levels)
            scale, gain = _fit_scale(panel)
            better = gain > best_gain
            np.copyto(best, sign * scale, where=better)
            np.copyto(best_gain, gain, where=better)
    return best


def _find_typical_magnitude(panel: _Panel) -> F32Array:
    """Σ i|w|³ / Σ iw² of each group; 1 where that is nothing."""
    energies = np.multiply(panel.weighted, panel.weights, out=panel.work)
    energy = _sum_columns(energies)
    magnitudes = np.abs(panel.weights, out=panel.ratios)
    magnitude = _divide_or_zero(
        _sum_columns(np.multiply(energies, magnitudes, out=panel.work)), energy
    )
    magnitude[magnitude == 0] = 1
    return magnitude


def _choose_levels(panel: _Panel, scale: F32Array) -> None:
    """Set the levels to the nearest of -1, 0, 1, 2 times the scale, which may be negative."""
    np.divide(panel.weights, np.where(scale == 0, np.float32(1), scale), out=panel.levels)
    np.rint(panel.levels, out=panel.levels)
    np.clip(panel.levels, -1, 2, out=panel.levels)


def _fit_scale(panel: _Panel) -> tuple[F32Array, F32Array]:
    """The scale of least error for the levels, and how much of the energy it explains."""
    product = _sum_columns(np.multiply(panel.levels, panel.weighted, out=panel.work))
    np.square(panel.levels, out=panel.work)
    norm = _sum_columns(np.multiply(panel.work, panel.importance, out=panel.work))
    scale = _divide_or_zero(product, norm)
    return scale, product * scale


def _measure_levels(panel: _Panel, scale: F32Array) -> F32Array:
    _choose_levels(panel, scale)
    return panel.measure_error(scale)


def _round_to_f16(scale: F32Array) -> F16Array:
    return np.clip(scale, -_F16_MAX, _F16_MAX).astype(np.float16)


# MXFP4 and NVFP4: a scale code, then E2M1 codes of sign and 0, ½, 1, 1½, 2, 3, 4 or 6 scales.


def _encode_mxfp4(panel: _Panel, out: U8Array) -> None:
    """32 weights in 17 bytes: exponent e of the scale 2^(e - 127), then weights j and j + 16."""
    negative = np.signbit(panel.weights)
    largest, factor = panel.normalize()
    # The exponent of the largest weight less that of 6; frexp counts one more.
    start = np.frexp(largest)[1] + (127 - 2 - 1)
    code = _search_scale_code(panel, factor, start, _MXFP4_STEPS, _MXFP4_CODES, _list_e8m0())
    nibbles = _number_e2m1(panel, negative)
    out[:, 0] = np.where(largest > 0, code, 0)[: len(out)]
    out[:, 1:] = (nibbles[:16] | nibbles[16:] << 4).T[: len(out)]


def _encode_nvfp4(panel: _Panel, out: U8Array) -> None:
    """64 weights in 36 bytes: four UE4M3 scales, then of each 16 weights j and j + 8."""
    negative = np.signbit(panel.weights)
    largest, factor = panel.normalize()
    start = _number_ue4m3(largest / np.float32(6))
    code = _search_scale_code(panel, factor, start, _NVFP4_STEPS, _NVFP4_CODES, _list_ue4m3())
    nibbles = _number_e2m1(panel, negative)
    out[:, :4] = np.where(largest > 0, code, 0).reshape(-1, 4)[: len(out)]
    out[:, 4:] = (nibbles[:8] | nibbles[8:] << 4).T.reshape(-1, 32)[: len(out)]


@functools.cache
def _list_e8m0() -> F32Array:
    """The value of each code: an exponent."""
    values: F32Array = np.ldexp(np.float32(1), np.arange(_MXFP4_CODES.stop) - 127)
    return values


@functools.cache
def _list_ue4m3() -> F32Array:
    """The value of each code: 4 exponent bits of bias 7 and 3 mantissa bits, no sign."""
    exponent, mantissa = np.divmod(np.arange(_NVFP4_CODES.stop), 8)
    significand = np.where(exponent == 0, mantissa, 8 + mantissa).astype(np.float32)
    values: F32Array = np.ldexp(significand, np.maximum(exponent, 1) - 10)
    return values


def _number_ue4m3(values: F32Array) -> I32Array:
    """The code that ggml gives a value: the nearest, but the last for all from 256 on."""
    normal = ((values.view(np.int32) + (1 << 19)) >> 20) - ((127 - 7) << 3)
    normal[normal >= 15 << 3] = _NVFP4_CODES[-1]
    least_normal = np.float32(2.0**-6)
    small = np.minimum(values, least_normal) * 512 + np.float32(0.5)
    return np.where(values < least_normal, np.minimum(small, 7).astype(np.int32), normal)


def _search_scale_code(
    panel: _Panel,
    factor: F32Array,
    start: I32Array,
    steps: tuple[int, ...],
    allowed: range,
    values: F32Array,
) -> I32Array:
    """Try scale codes around `start`, which is ggml's; keep the one of least error.

    Leaves magnitudes in the panel's weights, and in its levels what the codes make of them.
    """
    np.abs(panel.weights, out=panel.weights)
    best = np.clip(start, allowed[0], allowed[-1])
    _round_to_e2m1(panel, values[best] * factor)
    best_error = panel.measure_error(values[best] * factor)
    for step in steps:
        code = np.clip(start + step, allowed[0], allowed[-1])
        scale = values[code] * factor
        _round_to_e2m1(panel, scale)
        error = panel.measure_error(scale)
        better = error < best_error * _MARGIN
        np.copyto(best, code, where=better)
        np.copyto(best_error, error, where=better)
    _round_to_e2m1(panel, values[best] * factor)
    return best


def _round_to_e2m1(panel: _Panel, scale: F32Array) -> None:
    """Set the levels to magnitudes over scale, rounded to 0, ½, 1, 1½, 2, 3, 4 or 6."""
    levels, magic, bits = panel.levels, panel.work, panel.work.view(np.int32)
    np.divide(panel.weights, scale, out=levels)
    np.clip(levels, 0, 6, out=levels)
    # To add and subtract 1.5 * 2^22 times a number's power of two leaves one bit after its
    # first. Below 1 the step stays that of [1, 2).
    np.bitwise_and(levels.view(np.int32), np.int32(0xFF << 23), out=bits)
    np.clip(bits, np.int32(127 << 23), np.int32(129 << 23), out=bits)
    np.add(bits, np.int32((22 << 23) + (1 << 22)), out=bits)
    np.add(levels, magic, out=levels)
    np.subtract(levels, magic, out=levels)


def _number_e2m1(panel: _Panel, negative: npt.NDArray[np.bool_]) -> U8Array:
    """E2M1 codes 0..15 of the levels: 0..7 number the magnitudes, 8 is the sign."""
    doubled = np.multiply(panel.levels, np.float32(2), out=panel.work).astype(np.uint8)
    codes = np.minimum(doubled, np.uint8(4))
    for above in (4, 6, 8):
        codes += doubled > above
    codes |= negative.view(np.uint8) << np.uint8(3)
    return codes


@dataclass(frozen=True)
class _Encoder:
    group: int
    """Weights that share a scale."""
    encode: Callable[[_Panel, U8Array], None]
    """Encode a panel into uint8 (blocks, bytes of a block); as many blocks as are wanted."""


_ENCODERS = {
    "q2_0": _Encoder(64, _encode_q2_0),
    "mxfp4": _Encoder(32, _encode_mxfp4),
    "nvfp4": _Encoder(16, _encode_nvfp4),
}
