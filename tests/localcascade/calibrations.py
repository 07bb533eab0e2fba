"""The model and the tokens that are calibrated by us and, for tests/vectors, by llama.cpp.

python -m tests.localcascade.calibrations FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from quantize.convert import quantize_checkpoint
from tests.quantize.models import ODD_EXPERTS, make_checkpoint

N_CTX = 256
N_CHUNKS = 3
N_VOCAB = 640
N_USED = 3


def write_model(folder: Path) -> Path:
    """Twelve experts in four groups with a latent width, f32."""
    checkpoint = make_checkpoint(folder / "checkpoint", ODD_EXPERTS, "F32", seed=11)
    quantize_checkpoint(checkpoint, folder / "model.gguf", "f32", n_threads=1)
    return folder / "model.gguf"


def draw_tokens() -> list[int]:
    """N_CHUNKS contexts of plain tokens, the same every time."""
    rng = np.random.Generator(np.random.PCG64(5))
    tokens: list[int] = rng.integers(16, N_VOCAB, N_CTX * N_CHUNKS).tolist()
    return tokens


def main() -> None:
    """Write both for tests/vectors/make_imatrix.cpp."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder)
    np.array(draw_tokens(), np.int32).tofile(folder / "tokens.i32")


if __name__ == "__main__":
    main()
