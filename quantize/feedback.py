"""Error feedback: columns that are still to be encoded make up for the errors of those that are.

The inputs of a matrix vary together, so an error in some columns can be undone in part by changing
others. Columns are encoded block by block; after each, the rest is changed to what makes the
expected squared error of the result least, given the errors so far. The bytes stay as many.

With H the mean of x xT and P = L LT its inverse, eliminating the first block B leaves for the rest
R the change -e L_RB inv(L_BB) for an error e, and of the error what the rest cannot undo, which
inv(L_BB)T inv(L_BB) weighs: its diagonal is the importance with which the block is encoded.

Source: Frantar et al., GPTQ (arXiv:2210.17323), for columns; here for whole blocks, since a block's
columns share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.encoders import encode_rows
from quantize.ggml import F32Array, U8Array, decode_rows
from quantize.gguf import BlockType

F64Array = npt.NDArray[np.float64]

GAINS = ("q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", "nvfp4")
"""Types with which feedback is used: those of small blocks. Mean KL divergence on tiny at the same
bytes, without and with it, all matrices of that type, scored on text that was not collected on:
q2_0 2.042, 1.219; mxfp4 0.362, 0.172; q4_0 0.203, 0.088; nvfp4 0.186, 0.095; iq4_nl 0.148, 0.083;
q4_1 0.126, 0.069; q5_0 0.070, 0.035; q5_1 0.042, 0.019. Experts alone: q2_0 0.0500, 0.0260; q4_0
0.0031, 0.0020; iq4_nl 0.0044, 0.0013. Matrices of tiny are one superblock wide, so a superblock has
no other to make up for it there, and nothing shows: q3_k 0.471, 0.478; iq3_s 0.452, 0.450; q4_k
0.136, 0.133; iq2_s 1.113, 1.094; experts alone within 3 % either way."""

RIDGE = 0.01
"""Added to each input's mean square, as a share of their mean: without it a column that hardly
matters takes over the errors of all others, and a large weight there spoils its block's scale."""


@dataclass(frozen=True)
class Feedback:
    """How errors of a matrix's columns are made up for; the same for all of its rows."""

    importance: F32Array
    """Weight of each column's squared error once later columns have made up for it, [width]."""
    moments: F32Array
    """What the squared error of a result is by, [width, width]: the inputs' second moments, of
    few samples drawn towards independent inputs."""
    changes: tuple[F32Array, ...]
    """For each block but the last, what its columns' errors add to all later ones,
    [block, width left]."""


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
    lower = np.linalg.cholesky(np.linalg.inv(blended))
    left, changes = [], []
    for start in range(0, width, block):
        own = slice(start, start + block)
        undo = np.linalg.inv(lower[own, own])
        left.append(np.square(undo).sum(axis=0))
        changes.append((-(lower[start + block :, own] @ undo).T).astype(np.float32))
    left_over = np.concatenate(left).astype(np.float32)
    return Feedback(left_over, blended.astype(np.float32), tuple(changes[:-1]))


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
    rows, room = weights.copy(), out.reshape(n_rows, -1, n_bytes)
    for i in range(width // block):
        columns = slice(i * block, (i + 1) * block)
        part = np.ascontiguousarray(rows[:, columns])
        encoded = np.empty((n_rows, n_bytes), np.uint8)
        encode_rows(part, block_type, encoded, feedback.importance[columns])
        room[:, i] = encoded
        if i < len(feedback.changes):
            errors = part - decode_rows(encoded, block_type, block)
            rows[:, columns.stop :] += errors @ feedback.changes[i]
