"""Multiple-choice knapsack: one option of every group, the least cost within a budget of bytes.

Three steps, each of which only narrows what the one before left. A price per byte (Lagrange's
multiplier) gives a lower bound of the cost that no choice can beat, and a first good choice. What
is too dear at that price to be part of anything better is struck out. A table over rounded costs
then finds, for each, the fewest bytes. Rounding is always down, so the table proves a bound too.

Source: Kellerer, Pferschy, Pisinger, Knapsack Problems (2004), chapters 2.6 and 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOLERANCE = 0.001
"""Largest share by which the cost may lie above the least possible one."""

F64Array = npt.NDArray[np.float64]
I64Array = npt.NDArray[np.int64]

_PRICE_STEPS = 100
_ROUNDING = 1e-12
"""Relative error that sums of costs may have."""
_NEVER = np.int64(1) << 62
"""More bytes than any budget."""


@dataclass(frozen=True, slots=True)
class Group:
    """Options of which exactly one is taken."""

    n_bytes: I64Array
    """Bytes of each option, [n_options]."""
    costs: F64Array
    """Cost of each option, at least 0, [n_options]."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What was taken."""

    picks: tuple[int, ...]
    """Index of an option for each group."""
    n_bytes: int
    cost: float
    bound: float
    """No choice within the budget costs less; proved, not estimated."""

    @property
    def gap(self) -> float:
        """Share of the bound by which the cost may lie above the optimum."""
        return self.cost / self.bound - 1 if self.bound > 0 else 0.0 if self.cost == 0 else math.inf


def pack(
    groups: Sequence[Group], budget_bytes: int, tolerance: float = TOLERANCE
) -> Packing | None:
    """Take one option of every group so that the cost is within `tolerance` of the least possible.

    The same groups give the same picks. Options beyond those that a single other one beats in both
    bytes and cost are all considered, whether or not they lie on the convex hull.

    Args:
        groups: At least one option each.
        budget_bytes: What all picks together may take.
        tolerance: Above 0.

    Returns:
        The packing; None if even the smallest options take more than the budget.
    """
    fronts = [_find_front(group) for group in groups]
    slim = [Group(g.n_bytes[f], g.costs[f]) for g, f in zip(groups, fronts, strict=True)]
    if sum(int(group.n_bytes[0]) for group in slim) > budget_bytes:
        return None
    price, bound = _find_price(slim, budget_bytes)
    picks = _fill(slim, _pick_at_price(slim, price), budget_bytes)
    limit = _sum_costs(slim, picks)
    if limit > bound * (1 + tolerance / 4):
        found, table_bound = _search_table(slim, budget_bytes, price, bound, limit, tolerance)
        bound = max(bound, table_bound)
        picks = min(picks, _fill(slim, found, budget_bytes), key=lambda p: _sum_costs(slim, p))
    return Packing(
        picks=tuple(int(front[i]) for front, i in zip(fronts, picks, strict=True)),
        n_bytes=_sum_bytes(slim, picks),
        cost=_sum_costs(slim, picks),
        bound=min(bound, _sum_costs(slim, picks)),
    )


def _find_front(group: Group) -> I64Array:
    """Indices of the options that no other beats in bytes and cost; more bytes, less cost."""
    order = np.lexsort((group.costs, group.n_bytes))
    costs = group.costs[order]
    least_before = np.concatenate([[np.inf], np.minimum.accumulate(costs)[:-1]])
    front: I64Array = order[costs < least_before].astype(np.int64)
    return front


def _sum_bytes(groups: Sequence[Group], picks: Sequence[int]) -> int:
    return sum(int(group.n_bytes[i]) for group, i in zip(groups, picks, strict=True))


def _sum_costs(groups: Sequence[Group], picks: Sequence[int]) -> float:
    return math.fsum(float(group.costs[i]) for group, i in zip(groups, picks, strict=True))


# ---- a price for bytes -------------------------------------------------------------------------


def _find_price(groups: Sequence[Group], budget_bytes: int) -> tuple[float, float]:
    """Find the price per byte at which the cheapest options just fit, and the bound it proves."""
    if _sum_bytes(groups, _pick_at_price(groups, 0.0)) <= budget_bytes:
        return 0.0, _bound_at_price(groups, 0.0, budget_bytes)
    low, high = 0.0, _find_dear_price(groups)
    for _ in range(_PRICE_STEPS):
        middle = (low + high) / 2
        if _sum_bytes(groups, _pick_at_price(groups, middle)) <= budget_bytes:
            high = middle
        else:
            low = middle
    return high, _bound_at_price(groups, high, budget_bytes)


def _find_dear_price(groups: Sequence[Group]) -> float:
    """A price at which every group takes its smallest option: above its steepest slope."""
    steepest = 0.0
    for group in groups:
        if len(group.costs) > 1:
            slopes = -np.diff(group.costs) / np.diff(group.n_bytes)
            steepest = max(steepest, float(slopes.max()))
    return 2 * steepest + 1e-300


def _pick_at_price(groups: Sequence[Group], price: float) -> list[int]:
    # argmin takes the first of equals, which is the smallest.
    return [int(np.argmin(group.costs + price * group.n_bytes)) for group in groups]


def _bound_at_price(groups: Sequence[Group], price: float, budget_bytes: int) -> float:
    least = math.fsum(float((group.costs + price * group.n_bytes).min()) for group in groups)
    # Rounding errors must not make it larger than it is.
    return max(0.0, (least - price * budget_bytes) - _ROUNDING * abs(least))


# ---- what room is left -------------------------------------------------------------------------


def _fill(groups: Sequence[Group], picks: Sequence[int], budget_bytes: int) -> list[int]:
    """Make the change of one pick, or exchange of two, that saves most; until none saves any."""
    filled = list(picks)
    while (change := _find_change(groups, filled, budget_bytes)) is not None:
        for group, option in change.items():
            filled[group] = option
    return filled


def _find_change(
    groups: Sequence[Group], picks: Sequence[int], budget_bytes: int
) -> dict[int, int] | None:
    """Find the options (group -> option) that fit and save most; None if none saves any cost."""
    owner = np.repeat(np.arange(len(groups)), [len(group.costs) for group in groups])
    option = np.concatenate([np.arange(len(group.costs)) for group in groups])
    grown = np.concatenate([g.n_bytes - g.n_bytes[i] for g, i in zip(groups, picks, strict=True)])
    saved = np.concatenate([g.costs[i] - g.costs for g, i in zip(groups, picks, strict=True)])
    # Every option that takes more with every one that takes less; the picks are among both.
    ups, downs = np.flatnonzero(grown >= 0), np.flatnonzero(grown <= 0)
    growth = grown[ups][:, None] + grown[downs][None, :]
    possible = (growth <= budget_bytes - _sum_bytes(groups, picks)) & (
        (owner[ups][:, None] != owner[downs][None, :]) | (grown[downs] == 0)[None, :]
    )
    gain = np.where(possible, saved[ups][:, None] + saved[downs][None, :], -np.inf)
    best = int(np.argmax(gain))
    if not gain.flat[best] > _ROUNDING * _sum_costs(groups, picks):
        return None
    # The up comes last: a down of its own group is that group's pick, which changes nothing.
    pair = (downs[best % len(downs)], ups[best // len(downs)])
    return {int(owner[i]): int(option[i]) for i in pair}


# ---- a table over rounded costs ----------------------------------------------------------------


def _search_table(
    groups: Sequence[Group],
    budget_bytes: int,
    price: float,
    bound: float,
    limit: float,
    tolerance: float,
) -> tuple[list[int], float]:
    """Find picks within half the tolerance of the optimum, which lies from `bound` to `limit`.

    Returns:
        The picks, and the bound that the table proves.
    """
    alive = [_strike_out(group, price, limit - bound) for group in groups]
    n_open = max(1, sum(len(options) > 1 for options in alive))
    step = max(bound, limit / 2) * tolerance / (2 * n_open)
    base = math.fsum(float(g.costs[o].min()) for g, o in zip(groups, alive, strict=True))
    n_cells = int((limit - base) / step) + 2
    table = np.zeros(1, np.int64)
    steps: list[npt.NDArray[np.int16]] = []
    for group, options in zip(groups, alive, strict=True):
        rises = ((group.costs[options] - group.costs[options].min()) / step).astype(np.int64)
        table, taken = _extend_table(table, rises, group.n_bytes[options], n_cells)
        steps.append(taken)
    cell = int(np.argmax(table <= budget_bytes))
    proved = base + cell * step
    picks: list[int] = []
    for group, options, taken in zip(groups[::-1], alive[::-1], steps[::-1], strict=True):
        chosen = options[taken[cell]]
        picks.append(int(chosen))
        cell -= int((group.costs[chosen] - group.costs[options].min()) / step)
    return picks[::-1], proved * (1 - _ROUNDING)


def _strike_out(group: Group, price: float, slack: float) -> I64Array:
    """Indices of the options that may be part of a choice better than the best one known."""
    dearness = group.costs + price * group.n_bytes
    alive: I64Array = np.flatnonzero(dearness - dearness.min() <= slack * (1 + 1e-9))
    return alive


def _extend_table(
    table: I64Array, rises: I64Array, n_bytes: I64Array, n_cells: int
) -> tuple[I64Array, npt.NDArray[np.int16]]:
    """Add a group: fewest bytes at each rounded cost, and which of its options that takes."""
    length = min(n_cells, len(table) + int(rises.max()))
    fewest = np.full(length, _NEVER, np.int64)
    taken = np.zeros(length, np.int16)
    for i, (rise, added) in enumerate(zip(rises, n_bytes, strict=True)):
        end = min(length, len(table) + int(rise))
        if end <= rise:
            continue
        candidate = table[: end - rise] + added
        better = candidate < fewest[rise:end]
        fewest[rise:end][better] = candidate[better]
        taken[rise:end][better] = i
    return fewest, taken
