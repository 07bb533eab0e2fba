"""Long sweeps: `make soak` runs them whole, `make test` a sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SOAK = os.environ.get("LOCALCASCADE_SOAK") == "1"


def sample(cases: Sequence[T], n_cases: int = 3) -> Sequence[T]:
    """All of `cases` in a soak, else `n_cases` of them, spread evenly and the last included."""
    if SOAK or len(cases) <= n_cases:
        return cases
    return [cases[round(i * (len(cases) - 1) / (n_cases - 1))] for i in range(n_cases)]
