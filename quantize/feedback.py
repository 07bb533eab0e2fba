"""Error feedback: columns that are still to be encoded make up for the errors of those that are.

The inputs of a matrix vary together, so an error in some columns can be undone in part by changing
others. Columns are encoded block by block; after each, the rest is changed to what makes the
expected squared error of the result least, given the errors so far. Within a block the encoder
chooses the scales; then each column's codes are chosen anew, in the same way one after the other,
where that is better. The bytes stay as many.

With H, the mean of x xT, as U UT for an upper triangular U, errors e of all columns cost |e U|²,
and term B of that, e_A U_AB + e_B U_BB, has the errors of the columns A before B and its own: later
columns have no part in it. So a block B is encoded not as w_B but as what makes that term nothing,
w_B + e_A U_AB inv(U_BB), and its own errors d from there cost |d U_BB|². Its importance is the
diagonal of U_BB U_BBT. Within the block the same holds column by column.

Source: Frantar et al., GPTQ (arXiv:2210.17323), which has the inverse of H where this has H, and
with it the same codes. What it earns: docs/quantization.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.codes import PLANES, U32Array, write_codes
from quantize.encoders import encode_rows
from quantize.ggml import F32Array, U8Array, decode_rows
from quantize.gguf import BlockType
from quantize.levels import list_choices

F64Array = npt.NDArray[np.float64]

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
    moments: F32Array
    """What the squared error of a result is by, [width, width]: the inputs' second moments, of
    few samples drawn towards independent inputs."""
    factor: F32Array
    """Their upper triangular factor U, [width, width]: the moments are U UT."""
    inverses: tuple[F32Array, ...]
    """For each block, the inverse of its part of the factor, [block, block]."""


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
    own = [slice(start, start + block) for start in range(0, width, block)]
    left_over = np.concatenate([np.square(factor[b, b]).sum(axis=1) for b in own])
    return Feedback(
        left_over.astype(np.float32),
        blended.astype(np.float32),
        np.ascontiguousarray(factor, dtype=np.float32),
        tuple(np.linalg.inv(factor[b, b]).astype(np.float32) for b in own),
    )


def _blend(moments: F64Array, n_samples: int, importance: F32Array) -> F64Array:
    """Second moments with the importance as their diagonal, drawn towards independent inputs."""
    magnitudes = np.sqrt(moments.diagonal())
    scale = np.zeros_like(magnitudes)  # an input that never fired goes with no other
    np.divide(np.sqrt(importance), magnitudes, out=scale, where=magnitudes > 0)
    blended: F64Array = moments * np.outer(scale, scale)
    blended *= n_samples / (n_samples + len(importance))
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
    for i, inverse in enumerate(feedback.inverses):
        first, own = i * block, slice(i * block, (i + 1) * block)
        pull = errors[:, :first] @ feedback.factor[:first, own]
        wanted = np.add(weights[:, own], pull @ inverse, dtype=np.float32)
        encoded = np.empty((n_rows, n_bytes), np.uint8)
        encode_rows(wanted, block_type, encoded, feedback.importance[own])
        if block_type.name in PLANES:
            _refine(wanted, block_type, encoded, feedback.factor[own, own])
        errors[:, own] = weights[:, own] - decode_rows(encoded, block_type, block)
        room[:, i] = encoded


def _refine(weights: F32Array, block_type: BlockType, blocks: U8Array, factor: F32Array) -> None:
    """Choose the codes of encoded blocks anew, each column making up for those before it.

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
    own_factors = _cut_diagonal(factor, span)
    importance, shares = np.square(own_factors).sum(axis=2), _share(factor, own_factors)
    pull, errors = np.zeros((2, *wanted.shape), np.float32)
    codes = np.empty((len(wanted) // span, wanted.shape[1]), np.uint32)
    for first in range(0, len(wanted), STRIDE):
        last = min(first + STRIDE, len(wanted))
        for j in range(first, last, span):
            own, rest = slice(j, j + span), slice(j + span, last)
            i, values = j // span, wanted[own] + pull[own]
            codes[i], decoded = choices.choose(j, values, importance[i])
            np.subtract(wanted[own], decoded, out=errors[own])
            pull[rest] += shares[own, rest].T @ errors[own]
        pull[last:] += shares[first:last, last:].T @ errors[first:last]
    return np.ascontiguousarray(codes.T)


def _cut_diagonal(factor: F32Array, span: int) -> F32Array:
    """The blocks on the diagonal, [width / span, span, span]."""
    each = np.arange(len(factor) // span)
    cut: F32Array = factor.reshape(len(each), span, len(each), span)[each, :, each]
    return cut


def _share(factor: F32Array, own_factors: F32Array) -> F32Array:
    """What of an error comes upon each column: the factor, each block column by its own inverse."""
    n, span = own_factors.shape[:2]
    columns = factor.reshape(-1, n, span).transpose(1, 0, 2) @ np.linalg.inv(own_factors)
    return np.ascontiguousarray(columns.transpose(1, 0, 2).reshape(factor.shape))


def _measure_cost(
    weights: F32Array, block_type: BlockType, blocks: U8Array, factor: F32Array
) -> F32Array:
    """What later blocks cannot make up for, of each row."""
    errors = weights - decode_rows(blocks.reshape(-1), block_type, weights.shape[1])
    costs: F32Array = np.square(errors @ factor).sum(axis=1)
    return costs
