"""Changes to a model's matrices before they are encoded; pure arithmetic.

Exact ones leave what the model computes as it is and lower what encoding costs: the neurons of an
expert may change places, and factors may move from one matrix to the next, across relu squared or
across the weight of a norm. The lossy one leaves neurons out, so that a width fits a block.

An encoder gives a group of a row's weights one scale, so columns of a group should be of a size;
but the important ones should be the larger. `balance_columns` and `deal_neurons` see to that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
I64Array = npt.NDArray[np.int64]

SCALE_GROUPS = {
    "q2_k": 16, "q3_k": 16, "q6_k": 16, "iq2_s": 16, "nvfp4": 16, "q4_0": 32, "q4_1": 32,
    "q5_0": 32, "q5_1": 32, "q4_k": 32, "q5_k": 32, "iq4_nl": 32, "iq4_xs": 32, "mxfp4": 32,
    "q2_0": 64,
}  # fmt: skip
"""Type -> weights that share a scale, where dealing important neurons out over the groups pays.
With the other IQ2 and IQ3 types it does not: a few weights there share a place in a grid."""

IMPORTANCE_EXPONENT = 0.1
"""How much larger than the others important columns are made. Of 0, 0.05, 0.1, 0.15 and 0.2, and
against evening out half or three quarters of the way, it left the least error over the types."""
_MAX_FACTOR = 256.0
_LEAST_SHARE = 1e-4
"""Of the largest contribution; columns below it count as having it."""
RIDGE = 1e-2
"""Added to second moments, as a share of their mean diagonal: few samples, and neurons that never
fired, leave them singular."""


@dataclass(frozen=True, slots=True)
class Transforms:
    """Which changes may be made; each is on or off for a whole conversion."""

    scale_neurons: bool = True
    """Move factors across relu squared, so that the columns of `down` encode better."""
    deal_neurons: bool = True
    """Give every scale group of `down` its share of the important neurons."""
    scale_norms: bool = True
    """Move factors between a norm's weight and the matrices behind it."""
    scale_experts: bool = True
    """Give each NVFP4 expert a factor of its own, beside the file's small scales."""
    refit: bool = True
    """Let the neurons that stay stand in for those left out, where second moments are known."""
    feedback: bool = True
    """Let later columns make up for the errors of earlier ones, where second moments are known."""


MOVING = frozenset({"scale_neurons", "deal_neurons", "scale_norms"})
"""After these, inputs of a matrix are not where, or as large as, those of the checkpoint are."""

NONE = Transforms(False, False, False, False, False, False)
"""No change that is not asked for by a width."""


class SecondMoments(Protocol):
    """What was collected of the products of a matrix's inputs."""

    @property
    def path(self) -> Path:
        """The file that holds it."""

    def matrix(self, tensor_name: str, expert: int = 0) -> F64Array | None:
        """Sum or mean of h hᵀ over an expert's inputs h, [width, width]; None if unknown."""

    def count(self, tensor_name: str, expert: int = 0) -> int:
        """Number of inputs behind a matrix; 0 if unknown."""

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse what was collected on another model than that of these tensors."""


@dataclass(frozen=True)
class Neurons:
    """Which neurons of an expert stay, in which order, and how each is scaled."""

    order: I64Array
    """Index in the source of each neuron of the output."""
    factors: F64Array
    """Each row of `up` is multiplied by its factor, each column of `down` divided by its square;
    positive, as long as `order`."""

    def change_up(self, up: F32Array) -> F32Array:
        """Choose and scale rows: float32 [n_neurons, n_in] -> [len(order), n_in]."""
        changed = up[self.order]
        return np.multiply(changed, self.factors[:, None].astype(np.float32), out=changed)

    def change_down(self, down: F32Array) -> F32Array:
        """Scale columns that are already chosen: float32 [n_out, len(order)], in place."""
        return np.multiply(down, (self.factors**-2.0).astype(np.float32), out=down)

    def change_mean_squares(self, mean_squares: F32Array) -> F32Array:
        """What the mean squares of `down`'s inputs, float32 [n_neurons], become."""
        changed: F32Array = (mean_squares[self.order] * self.factors**4).astype(np.float32)
        return np.maximum(changed, np.finfo(np.float32).tiny)


def measure_contributions(up: F32Array, down: F32Array, mean_squares: F32Array | None) -> F64Array:
    """Estimate how much each neuron of an expert adds to its output's square.

    Args:
        up: float32 [n_neurons, n_in].
        down: float32 [n_out, n_neurons].
        mean_squares: Of the inputs of `down`, [n_neurons]; None takes those that independent
            inputs of `up`, of equal size, would have, up to a factor.

    Returns:
        float64 [n_neurons].
    """
    if mean_squares is None:
        return _sum_squares(up, axis=1) ** 2 * _sum_squares(down, axis=0)
    return mean_squares.astype(np.float64) * _sum_squares(down, axis=0)


def choose_neurons(contributions: F64Array, n_kept: int) -> I64Array:
    """Choose the neurons that contribute most; of equals, the first.

    Returns:
        Their indices, ascending; all if there are no more than `n_kept`.
    """
    best = np.argsort(-contributions, kind="stable")[:n_kept]
    return np.sort(best)


def deal_neurons(contributions: F64Array, group: int) -> I64Array:
    """Order neurons so that each group of neighbours has its share of the important ones.

    As cards are dealt, largest contribution first, one to each group in turn.

    Args:
        contributions: [n_neurons].
        group: Neighbours that share a scale; the neurons beyond whole groups keep their place.

    Returns:
        Index of the neuron for each place.
    """
    n_dealt = len(contributions) // group * group
    ranked = np.argsort(-contributions[:n_dealt], kind="stable")
    dealt = ranked.reshape(group, -1).T.ravel()
    return np.concatenate([dealt, np.arange(n_dealt, len(contributions))])


def balance_columns(magnitudes: F64Array, mean_squares: F64Array) -> F64Array:
    """Choose divisors of a matrix's columns: all of a size then, the important ones a bit larger.

    Args:
        magnitudes: Root mean square of each column, [width].
        mean_squares: Of each column's inputs, [width].

    Returns:
        Positive, about 1, [width]; 1 for columns of zeros.
    """
    contributions = magnitudes**2 * mean_squares
    known = contributions > 0
    if not known.any():
        return np.ones_like(magnitudes)
    shares = np.maximum(contributions / contributions.max(), _LEAST_SHARE)
    divisors = np.where(known, magnitudes * shares**-IMPORTANCE_EXPONENT, 1.0)
    centre = math.exp(float(np.log(divisors[known]).mean()))
    divisors[known] = np.clip(divisors[known] / centre, 1 / _MAX_FACTOR, _MAX_FACTOR)
    return divisors


def refit_down(down: F32Array, moments: F64Array, kept: I64Array) -> F32Array:
    """Change the columns that stay so that the output without the others is nearest to the whole.

    Least squares over the inputs that were seen: with S kept and D left out, the columns of S get
    down_D H_DS (H_SS + ridge)^-1 added.

    Args:
        down: float32 [n_out, n_neurons].
        moments: H, sum or mean of h hᵀ over the inputs h, float64 [n_neurons, n_neurons].
        kept: Indices of the neurons that stay.

    Returns:
        float32 [n_out, len(kept)].
    """
    dropped = np.setdiff1d(np.arange(down.shape[1]), kept)
    level = float(np.trace(moments)) / len(moments)
    if not dropped.size or level <= 0:
        return down.take(kept, 1)
    inner = moments[np.ix_(kept, kept)] + RIDGE * level * np.eye(len(kept))
    moved = np.linalg.solve(inner, moments[np.ix_(kept, dropped)])
    added = down[:, dropped].astype(np.float64) @ moved.T
    return (down[:, kept] + added).astype(np.float32)


def arrange_neurons(
    kept: I64Array,
    down: F32Array,
    mean_squares: F32Array | None,
    group: int | None,
    *,
    is_scaled: bool,
) -> tuple[Neurons, F32Array]:
    """Order and scale the neurons that stay.

    Args:
        kept: Their indices in the source.
        down: The columns that stay, in the order of `kept`; float32 [n_out, len(kept)].
        mean_squares: Of the source's inputs of `down`, [n_neurons]; None leaves all as it is.
        group: Columns of `down` that share a scale, to deal the neurons out over them; or None.
        is_scaled: Whether the neurons are scaled.

    Returns:
        What was decided, and `down` changed by it.
    """
    factors = np.ones(len(kept))
    if mean_squares is None:
        return Neurons(kept, factors), down
    squares = mean_squares[kept].astype(np.float64)
    if group:
        places = deal_neurons(squares * _sum_squares(down, axis=0), group)
        kept, squares, down = kept[places], squares[places], down.take(places, 1)
    if is_scaled:
        magnitudes = np.sqrt(_sum_squares(down, axis=0) / len(down))
        # As float32 holds them, so that both matrices are changed by the same numbers.
        factors = np.sqrt(balance_columns(magnitudes, squares)).astype(np.float32).astype(float)
    neurons = Neurons(kept, factors)
    return neurons, neurons.change_down(down)


def choose_expert_scale(largest: float) -> float:
    """Choose the factor of an NVFP4 expert: its scales then end well below their largest, 448.

    Their smallest, 2^-9, comes in coarse steps; weights as small as a model's would fall there.

    Args:
        largest: Magnitude of the expert's largest weight.

    Returns:
        A power of two, by which the encoded weights are to be multiplied.
    """
    if largest == 0:
        return 1.0
    # The largest weight becomes 6 times a scale of 64 to 128.
    return math.ldexp(1.0, max(-100, min(100, math.frexp(largest / 6)[1] - 7)))


def _sum_squares(matrix: F32Array, axis: int) -> F64Array:
    """Sum squares along an axis, in float64 and in an order that does not depend on threads."""
    subscripts = "ij,ij->j" if axis == 0 else "ij,ij->i"
    total: F64Array = np.einsum(subscripts, matrix, matrix, dtype=np.float64)
    return total
