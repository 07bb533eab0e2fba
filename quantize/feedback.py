"""Error feedback: columns that are still to be encoded make up for the errors of those that are.

The inputs of a matrix vary together, so an error in some columns can be undone in part by changing
others. Columns are encoded block by block; after each, the rest is changed to what makes the
expected squared error of the result least, given the errors so far. Within a block the encoder
chooses the scales; then the codes are chosen anew, in the same way one after the other, where that
is better. The bytes stay as many.

With H, the mean of x xT, as U UT for an upper triangular U, errors e of all columns cost |e U|²,
and term B of that, e_A U_AB + e_B U_BB, has the errors of the columns A before B and its own: later
columns have no part in it. So a block B is encoded not as w_B but as what makes that term nothing,
w_B + e_A U_AB inv(U_BB), and its own errors d from there cost |d U_BB|². Its importance is the
diagonal of U_BB U_BBT. Within the block the same holds code by code, of one column or of some.

Source: Frantar et al., GPTQ (arXiv:2210.17323), which has the inverse of H where this has H, and
with it the same codes. What it earns: docs/quantization.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quantize.codes import PLANES, U32Array, write_codes
from quantize.encoders import encode_rows
from quantize.ggml import F32Array, U8Array, decode_rows
from quantize.gguf import BlockType
from quantize.levels import list_choices

F64Array = npt.NDArray[np.float64]
Array = TypeVar("Array", F32Array, F64Array)

RIDGE = 0.01
"""Added to each input's mean square, as a share of their mean: without it a column that hardly
matters takes over the errors of all others, and a large weight there spoils its block's scale."""

STRIDE = 32
"""Columns whose errors are handed on to all later ones of their block together."""


@dataclass(frozen=True)
class Feedback:
    """How errors of a matrix's columns are made up for; the same for all of its rows."""

    importance: F32Array
    """Weight of each column's squared error once later columns have made up for it, [width]."""
    factor: F32Array
    """Upper triangular, [width, width]: errors e cost the square of e U. U UT are the second
    moments of the inputs, of few samples drawn towards independent ones."""
    shares: F32Array
    """How a block is changed for each error in a column before it, [width, width]."""


def plan_feedback(
    moments: F64Array, n_samples: int, importance: F32Array, block_type: BlockType
) -> Feedback:
    """Plan error feedback for one matrix or expert.

    How much each input matters is taken from its importance, how they vary together from the
    second moments; few samples count for little beside inputs that are independent.

    Args:
        moments: Mean or sum of x xT over inputs x, float64 [width, width].
        n_samples: How many inputs that were.
        importance: Mean square of each input, float32 [width], positive.
        block_type: What the matrix will be encoded to.

    Returns:
        The plan.

    Raises:
        ValueError: The block does not divide the width, or the shapes do not match.
    """
    width, block = len(importance), block_type.block_weights
    if moments.shape != (width, width) or width % block:
        raise ValueError(f"moments {moments.shape}, width {width}, blocks of {block}")
    blended = _blend(moments, n_samples, importance)
    # The lower factor of the moments taken backwards, taken backwards.
    factor = np.linalg.cholesky(blended[::-1, ::-1])[::-1, ::-1]
    del blended  # 63 MB at the widest rows of the 30 B model
    left_over, shares = _share(factor, block)
    return Feedback(*(a.astype(np.float32, "C") for a in (left_over, factor, shares)))


def _share(factor: Array, span: int) -> tuple[Array, Array]:
    """Take columns together by so many.

    Returns:
        The weight of each column's squared error, [width], and how later columns are changed for
        it, [width, width]: the factor, each of its parts times the inverse of its own part.
    """
    n = len(factor) // span
    own = factor.reshape(n, span, n, span)[range(n), :, range(n)]
    parts = factor.reshape(-1, n, span).transpose(1, 0, 2) @ np.linalg.inv(own)
    return np.square(own).sum(axis=2).reshape(-1), parts.transpose(1, 0, 2).reshape(factor.shape)


def _blend(moments: F64Array, n_samples: int, importance: F32Array) -> F64Array:
    """Second moments with the importance as their diagonal, drawn towards independent inputs."""
    magnitudes = np.sqrt(moments.diagonal())
    scale = np.zeros_like(magnitudes)  # an input that never fired goes with no other
    np.divide(np.sqrt(importance), magnitudes, out=scale, where=magnitudes > 0)
    blended: F64Array = moments * scale
    blended *= scale[:, None] * (n_samples / (n_samples + len(importance)))
    np.fill_diagonal(blended, importance + RIDGE * importance.mean(dtype=np.float64))
    return blended


def encode_with_feedback(
    weights: F32Array, block_type: BlockType, out: U8Array, feedback: Feedback
) -> None:
    """Encode rows of weights, each block making up for the errors of those before it.

    The bytes of a row depend on that row and the feedback alone. Where inputs are independent,
    our own encoders give the bytes of encode_rows; ggml's weigh by a row's magnitude, which is
    that of the block here.

    Args:
        weights: float32 (n_rows, width), contiguous, finite.
        block_type: The type that the feedback was planned for.
        out: uint8, exactly the bytes of the encoded rows, contiguous.
        feedback: Of this matrix.

    Raises:
        ValueError: The buffers do not match.
    """
    n_rows, width = weights.shape
    block, n_bytes = block_type.block_weights, block_type.block_bytes
    if len(feedback.importance) != width or out.nbytes != n_rows * block_type.row_bytes(width):
        raise ValueError(f"{out.nbytes} bytes, feedback of {len(feedback.importance)} columns")
    errors, room = np.empty_like(weights), out.reshape(n_rows, -1, n_bytes)
    for first in range(0, width, block):
        own = slice(first, first + block)
        wanted = weights[:, own] + errors[:, :first] @ feedback.shares[:first, own]
        encoded = np.empty((n_rows, n_bytes), np.uint8)
        encode_rows(wanted, block_type, encoded, feedback.importance[own])
        if block_type.name in PLANES:
            _refine(wanted, block_type, encoded, feedback.factor[own, own])
        errors[:, own] = weights[:, own] - decode_rows(encoded, block_type, block)
        room[:, first // block] = encoded


def _refine(weights: F32Array, block_type: BlockType, blocks: U8Array, factor: F32Array) -> None:
    """Choose the codes of encoded blocks anew, each making up for the errors of those before it.

    Scales stay as the encoder chose them, and so does a row that would get no better.

    Args:
        weights: float32 [n_rows, block].
        block_type: One of PLANES.
        blocks: uint8 [n_rows, bytes of a block], changed.
        factor: The block's part of Feedback.factor.
    """
    changed = blocks.copy()
    write_codes(changed, block_type, _choose_codes(weights, block_type, blocks, factor))
    costs = (_measure_cost(weights, block_type, each, factor) for each in (changed, blocks))
    better = np.less(*costs)
    blocks[better] = changed[better]


def _choose_codes(
    weights: F32Array, block_type: BlockType, blocks: U8Array, factor: F32Array
) -> U32Array:
    choices, wanted = list_choices(blocks, block_type), weights.T
    span = choices.span
    importance, shares = _share(factor, span)
    pull, errors = np.zeros((2, *wanted.shape), np.float32)
    codes = np.empty((len(wanted) // span, wanted.shape[1]), np.uint32)
    for first in range(0, len(wanted), STRIDE):
        last = min(first + STRIDE, len(wanted))
        for j in range(first, last, span):
            own, rest = slice(j, j + span), slice(j + span, last)
            found = choices.choose(j, wanted[own] + pull[own], importance[own])
            codes[j // span], decoded = found
            np.subtract(wanted[own], decoded, out=errors[own])
            pull[rest] += shares[own, rest].T @ errors[own]
        pull[last:] += shares[first:last, last:].T @ errors[first:last]
    return np.ascontiguousarray(codes.T)


def _measure_cost(
    weights: F32Array, block_type: BlockType, blocks: U8Array, factor: F32Array
) -> F32Array:
    """What later blocks cannot make up for, of each row."""
    errors = weights - decode_rows(blocks.reshape(-1), block_type, weights.shape[1])
    costs: F32Array = np.square(errors @ factor).sum(axis=1)
    return costs
