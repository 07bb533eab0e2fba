"""How many damaged files a test tries: a sample in `make test`, a sweep in `make soak`."""

from __future__ import annotations

from tests.soak import SOAK

N_DAMAGED_FILES = 20_000 if SOAK else 150
