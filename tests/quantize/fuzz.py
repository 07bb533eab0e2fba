"""How many damaged files a test tries: a sample in `make test`, a sweep in `make soak`."""

from __future__ import annotations

import os

N_DAMAGED_FILES = 20_000 if os.environ.get("LOCALCASCADE_SOAK") else 150
