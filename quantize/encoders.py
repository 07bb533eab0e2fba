"""Our own encoders for the types whose reference encoder is poor: Q2_0, MXFP4 and NVFP4.

All three give a group of weights one scale and a few bits each; what matters is the scale. Ggml
derives it from the largest weight; here several are tried and the one whose decoded weights lie
nearest, weighed by importance, is kept. Ggml's own choice is always among them.

A batch of groups is a panel with one group a column, so that each step is one pass along whole
vectors and the sums of a group are added in one fixed order, whatever the machine and the batch.

Source: the reference decoders in ggml/src/ggml-quants.c of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize import ggml
from quantize.ggml import F32Array, U8Array
from quantize.gguf import BlockType

I32Array = npt.NDArray[np.int32]

_PANEL_WEIGHTS = 1 << 15
"""128 KiB an array; the six that a panel needs stay in the L2 cache."""
_MIN_COLUMNS = 16
"""A panel of one column would be summed in another order."""
_MARGIN = np.float32(1 - 1e-5)
"""Ggml's scale is given up only for an error lower than rounding of its sum can explain."""

_Q2_0_STEPS = tuple(float(step) for step in np.geomspace(0.4, 1.0, 8))
"""Scales tried, in units of the group's Σ i|w|³ / Σ iw², which outliers move little but enough."""
_F16_MAX = 65504.0
_MXFP4_STEPS = (0, 1, -1)
_MXFP4_MAX_CODE = 252
"""The largest exponent whose every level is finite in float32."""
_NVFP4_STEPS = (0, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8)
_NVFP4_MAX_CODE = 126
"""448; code 127 decodes to zero."""


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
    scaled = _scale_importance(importance, weights.shape[1]).reshape(-1, encoder.group)
    loaded = -1
    for first in range(0, len(groups), panel.n_columns):
        last = min(first + panel.n_columns, len(groups))
        # Panels of whole rows all need the same importance.
        if first % per_row != loaded:
            loaded = first % per_row
            panel.load_importance(scaled, first)
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


def _scale_importance(importance: F32Array | None, width: int) -> F32Array:
    """Bring importance to at most 1 by a power of two, so that no sum overflows."""
    if importance is None:
        return np.ones(width, dtype=np.float32)
    return np.ldexp(importance, -np.frexp(importance.max())[1])


@dataclass(frozen=True)
class _Panel:
    """A batch of groups and room to work on them; every array is float32 (group, n_columns)."""

    weights: F32Array
    """Of a group a column; scaled by a power of two once `normalize` was called."""
    importance: F32Array
    rooms: tuple[F32Array, ...]
    """Free for the encoder."""

    @classmethod
    def allocate(cls, group: int, n_columns: int) -> _Panel:
        weights, importance, *rooms = (
            np.empty((group, n_columns), dtype=np.float32) for _ in range(6)
        )
        return cls(weights, importance, tuple(rooms))

    @property
    def n_columns(self) -> int:
        return self.weights.shape[1]

    def load_importance(self, scaled: F32Array, first: int) -> None:
        """Take the importance of groups `first` onwards; `scaled` is (groups of a row, group)."""
        columns = np.arange(first, first + self.n_columns) % len(scaled)
        self.importance[:] = scaled[columns].T
        self.importance[:, ~self.importance.any(axis=0)] = 1

    def load_weights(self, groups: F32Array) -> None:
        """Take float32 (at most n_columns, group); columns to spare become zero."""
        self.weights[:, : len(groups)] = groups.T
        self.weights[:, len(groups) :] = 0

    def normalize(self) -> tuple[F32Array, F32Array]:
        """Scale each group, exactly, so that its largest weight lies in [1, 2) or below.

        Returns:
            That weight before scaling, and the factor; float32 (n_columns,) each.
        """
        magnitude = np.abs(self.weights, out=self.rooms[0])
        largest = np.maximum.reduce(magnitude, axis=0)
        exponent = np.frexp(largest)[1]
        factor = np.ldexp(np.float32(1), np.clip(1 - exponent, -126, 126))
        np.multiply(self.weights, factor, out=self.weights)
        return largest, factor

    def sum_squares(self, residual: F32Array) -> F32Array:
        """Sum importance times squared residual over each group; `residual` is overwritten."""
        np.square(residual, out=residual)
        np.multiply(residual, self.importance, out=residual)
        return _sum_columns(residual)


def _sum_columns(array: F32Array) -> F32Array:
    # Adds row after row, so each column's order is fixed.
    return np.add.reduce(array, axis=0, dtype=np.float32)


def _divide_or_zero(numerator: F32Array, denominator: F32Array) -> F32Array:
    quotient = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


# Q2_0: 64 weights in 18 bytes. A float16 d, then codes 0..3 of levels -d, 0, d, 2d, four a byte.


def _encode_q2_0(panel: _Panel, out: U8Array) -> None:
    largest, factor = panel.normalize()
    weighted = np.multiply(panel.weights, panel.importance, out=panel.rooms[0])
    scale = _search_signed_scale(panel, weighted)
    scale, _ = _fit_scale(panel, weighted, _choose_levels(panel, scale))
    stored = _round_to_f16(scale / factor)
    reference = _round_to_f16(largest)
    errors = [
        _measure_q2_0(panel, candidate.astype(np.float32) * factor)
        for candidate in (reference, stored)
    ]
    stored = np.where(errors[1] < errors[0] * _MARGIN, stored, reference)
    levels = _choose_levels(panel, stored.astype(np.float32) * factor)
    codes = (levels + np.float32(1)).astype(np.uint8).reshape(16, 4, -1)
    packed = codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
    out[:, :2] = stored[: len(out), None].view(np.uint8)
    out[:, 2:] = packed.T[: len(out)]


def _search_signed_scale(panel: _Panel, weighted: F32Array) -> F32Array:
    """Try some magnitudes with both signs, each followed by a fit; keep the best fit."""
    _, ratios, levels, work = panel.rooms
    squares = np.multiply(weighted, panel.weights, out=work)
    energy = _sum_columns(squares)
    np.multiply(squares, np.abs(panel.weights, out=ratios), out=squares)
    base = _divide_or_zero(_sum_columns(squares), energy)
    base[base == 0] = 1
    best, best_gain = base.copy(), np.zeros_like(base)
    for step in _Q2_0_STEPS:
        np.divide(panel.weights, base * np.float32(step), out=ratios)
        np.rint(ratios, out=ratios)
        for sign, lowest, highest in ((1, -1, 2), (-1, -2, 1)):
            np.clip(ratios, lowest, highest, out=levels)
            scale, gain = _fit_scale(panel, weighted, levels)
            better = gain > best_gain
            np.copyto(best, sign * scale, where=better)
            np.copyto(best_gain, gain, where=better)
    return best


def _choose_levels(panel: _Panel, scale: F32Array) -> F32Array:
    """The nearest of -1, 0, 1, 2 times the scale, which may be negative, for each weight."""
    levels = panel.rooms[2]
    np.divide(panel.weights, np.where(scale == 0, np.float32(1), scale), out=levels)
    np.rint(levels, out=levels)
    return np.clip(levels, -1, 2, out=levels)


def _fit_scale(panel: _Panel, weighted: F32Array, levels: F32Array) -> tuple[F32Array, F32Array]:
    """The scale of least error for given levels, and how much of the energy it explains."""
    work = panel.rooms[3]
    product = _sum_columns(np.multiply(levels, weighted, out=work))
    np.square(levels, out=work)
    norm = _sum_columns(np.multiply(work, panel.importance, out=work))
    scale = _divide_or_zero(product, norm)
    return scale, product * scale


def _measure_q2_0(panel: _Panel, scale: F32Array) -> F32Array:
    residual = _choose_levels(panel, scale)
    np.multiply(residual, scale, out=residual)
    return panel.sum_squares(np.subtract(residual, panel.weights, out=residual))


def _round_to_f16(scale: F32Array) -> npt.NDArray[np.float16]:
    return np.clip(scale, -_F16_MAX, _F16_MAX).astype(np.float16)


# MXFP4 and NVFP4: a scale code, then E2M1 codes of sign and 0, ½, 1, 1½, 2, 3, 4 or 6 scales.


def _encode_mxfp4(panel: _Panel, out: U8Array) -> None:
    """32 weights in 17 bytes: exponent e of the scale 2^(e - 127), then weights j and j + 16."""
    negative = np.signbit(panel.weights)
    largest, factor = panel.normalize()
    start = np.frexp(largest)[1] + (127 - 3)
    code, levels = _search_e2m1(
        panel, factor, start, _MXFP4_STEPS, 0, _MXFP4_MAX_CODE,
        lambda codes: np.ldexp(np.float32(1), codes - 127),
    )  # fmt: skip
    nibbles = _number_e2m1(levels, negative)
    out[:, 0] = np.where(largest > 0, code, 0)[: len(out)]
    out[:, 1:] = (nibbles[:16] | nibbles[16:] << 4).T[: len(out)]


def _encode_nvfp4(panel: _Panel, out: U8Array) -> None:
    """64 weights in 36 bytes: four UE4M3 scales, then of each 16 weights j and j + 8."""
    negative = np.signbit(panel.weights)
    largest, factor = panel.normalize()
    code, levels = _search_e2m1(
        panel, factor, _number_ue4m3(largest / np.float32(6)), _NVFP4_STEPS, 1, _NVFP4_MAX_CODE,
        _VALUES_UE4M3.__getitem__,
    )  # fmt: skip
    nibbles = _number_e2m1(levels, negative)
    packed = (nibbles[:8] | nibbles[8:] << 4).T
    out[:, :4] = np.where(largest > 0, code, 0).reshape(-1, 4)[: len(out)]
    out[:, 4:] = packed.reshape(-1, 32)[: len(out)]


def _list_ue4m3() -> F32Array:
    codes = np.arange(_NVFP4_MAX_CODE + 1)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(np.float32(1), exponent - 10) * (8 + mantissa)
    return np.where(exponent == 0, np.ldexp(np.float32(1), -9) * mantissa, normal).astype(
        np.float32
    )


_VALUES_UE4M3 = _list_ue4m3()
"""Unsigned, 4 exponent bits of bias 7, 3 mantissa bits; the value of each code."""


def _number_ue4m3(values: F32Array) -> I32Array:
    """The code that ggml gives a value: the nearest, the greater of two."""
    rounded = (values.view(np.int32) + (1 << 19) >> 20) - ((127 - 7) << 3)
    small = np.minimum(values * 512 + np.float32(0.5), 7).astype(np.int32)
    return np.clip(np.where(values < 2.0**-6, small, rounded), 0, _NVFP4_MAX_CODE)


def _search_e2m1(
    panel: _Panel,
    factor: F32Array,
    start: I32Array,
    steps: tuple[int, ...],
    lowest: int,
    highest: int,
    decode: Callable[[I32Array], F32Array],
) -> tuple[I32Array, F32Array]:
    """Try scale codes around `start`, which is ggml's; keep the one of least error.

    Returns:
        The codes (n_columns,) and the E2M1 magnitudes (group, n_columns) that they lead to.
    """
    np.abs(panel.weights, out=panel.weights)
    best = np.clip(start + steps[0], lowest, highest)
    best_error = _measure_e2m1(panel, decode(best) * factor)
    for step in steps[1:]:
        code = np.clip(start + step, lowest, highest)
        error = _measure_e2m1(panel, decode(code) * factor)
        better = error < best_error * _MARGIN
        np.copyto(best, code, where=better)
        np.copyto(best_error, error, where=better)
    return best, _round_to_e2m1(panel, decode(best) * factor)


def _measure_e2m1(panel: _Panel, scale: F32Array) -> F32Array:
    residual = _round_to_e2m1(panel, scale)
    np.multiply(residual, scale, out=residual)
    return panel.sum_squares(np.subtract(residual, panel.weights, out=residual))


def _round_to_e2m1(panel: _Panel, scale: F32Array) -> F32Array:
    """Magnitudes over scale, rounded to 0, ½, 1, 1½, 2, 3, 4 or 6."""
    levels, magic = panel.rooms[0], panel.rooms[1]
    np.divide(panel.weights, scale, out=levels)
    np.minimum(levels, np.float32(6), out=levels)
    # Adding 1.5 * 2^22 times a number's power of two leaves one bit after its first.
    bits = magic.view(np.int32)
    np.bitwise_and(levels.view(np.int32), np.int32(0x7F800000), out=bits)
    np.maximum(bits, np.int32(127 << 23), out=bits)
    np.add(bits, np.int32((22 << 23) + (1 << 22)), out=bits)
    np.add(levels, magic, out=levels)
    return np.subtract(levels, magic, out=levels)


def _number_e2m1(levels: F32Array, negative: npt.NDArray[np.bool_]) -> U8Array:
    """E2M1 codes 0..15: 0..7 number the magnitudes, 8 is the sign."""
    doubled = np.multiply(levels, np.float32(2), out=levels).astype(np.uint8)
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
