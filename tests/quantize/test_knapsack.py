"""The knapsack against brute force, and its bound against both."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.knapsack import TOLERANCE, Group, Packing, pack


def make_group(options: list[tuple[int, float]]) -> Group:
    return Group(
        np.array([n for n, _ in options], np.int64), np.array([cost for _, cost in options])
    )


def find_least_cost(groups: list[Group], budget_bytes: int) -> float | None:
    """The optimum, by trying every combination."""
    fitting = [
        sum(float(g.costs[i]) for g, i in zip(groups, picks, strict=True))
        for picks in itertools.product(*(range(len(g.costs)) for g in groups))
        if sum(int(g.n_bytes[i]) for g, i in zip(groups, picks, strict=True)) <= budget_bytes
    ]
    return min(fitting, default=None)


def check_packing(groups: list[Group], budget_bytes: int, packing: Packing) -> None:
    picked = list(zip(groups, packing.picks, strict=True))
    assert packing.n_bytes == sum(int(g.n_bytes[i]) for g, i in picked) <= budget_bytes
    assert packing.cost == pytest.approx(math.fsum(float(g.costs[i]) for g, i in picked))
    assert packing.gap <= TOLERANCE


OPTIONS = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0, 1).map(lambda x: x**4)), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=5), st.integers(0, 300))
def test_it_is_as_good_as_trying_everything(
    options: list[list[tuple[int, float]]], budget_bytes: int
) -> None:
    groups = [make_group(own) for own in options]
    least, packing = find_least_cost(groups, budget_bytes), pack(groups, budget_bytes)
    if least is None or packing is None:
        assert least is None and packing is None
        return
    check_packing(groups, budget_bytes, packing)
    assert packing.cost <= least * (1 + TOLERANCE) + 1e-15
    assert packing.bound <= least * (1 + 1e-9) + 1e-15


def draw_groups(seed: int, n_groups: int, n_options: int) -> list[Group]:
    """Groups of very different sizes whose costs fall with their bytes, but not on a curve."""
    rng = np.random.Generator(np.random.PCG64(seed))
    groups = []
    for _ in range(n_groups):
        scale = 10 ** rng.uniform(5, 9)
        bits = rng.uniform(1.5, 9, n_options)
        noise = rng.uniform(0.7, 1.4, n_options)
        costs = rng.uniform(0.1, 2) * 4.0**-bits * noise
        groups.append(Group((bits * scale).astype(np.int64), costs))
    return groups


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_hundred_groups_are_within_the_proved_tolerance(share: float) -> None:
    groups = draw_groups(7, 100, 14)
    low, high = (sum(int(f(g.n_bytes)) for g in groups) for f in (np.min, np.max))
    budget_bytes = int(low + share * (high - low))
    packing = pack(groups, budget_bytes)
    assert packing is not None
    check_packing(groups, budget_bytes, packing)
    assert pack(groups, budget_bytes) == packing
    # What one more byte budget could buy is bounded too: more room never costs more.
    roomier = pack(groups, budget_bytes + (high - low) // 20)
    assert roomier is not None and roomier.cost < packing.cost and roomier.bound <= packing.bound


def test_the_bound_is_that_of_linear_programming_where_prices_are_exact() -> None:
    # Three equal groups, two options: at 2/3 of the way two of them can be large.
    groups = [make_group([(1, 1.0), (4, 0.0)])] * 3
    packing = pack(groups, 9)
    assert packing is not None
    assert (packing.n_bytes, packing.cost) == (9, 1.0)
    assert packing.bound == pytest.approx(1.0)


def test_options_off_the_convex_hull_are_used() -> None:
    # (3, 0.9) lies above the line from (1, 1) to (10, 0), yet it is all that fits.
    packing = pack([make_group([(1, 1.0), (3, 0.9), (10, 0.0)])], 9)
    assert packing is not None
    assert packing.picks == (1,)
    assert packing.gap <= TOLERANCE


def test_what_cannot_fit_is_none_and_what_just_fits_is_taken() -> None:
    groups = [make_group([(5, 0.1), (3, 0.4)]), make_group([(7, 0.2)])]
    assert pack(groups, 9) is None
    packing = pack(groups, 10)
    assert packing is not None and packing.picks == (1, 0)
