"""Compute the reference logits of test_fidelity.py with transformers, in float32 on the CPU.

Run from the repository's root, with the extra `oracle` installed:

    python tests/vectors/make_logits.py

Writes logits_<name>.npz beside this file: tokens int32 (n,), logits float32 (n, n_vocab), and the
SHA-256 of the checkpoint's weights, so that a numpy that draws other numbers is told apart from a
converter that errs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, hash_weights, make_checkpoint

N_TOKENS = 72  # more than one chunk of nothing, less than one of 128


def compute_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits float32 (n_tokens, n_vocab) of one forward pass over `tokens`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def main() -> None:
    """Write the vectors of every checkpoint."""
    tokens = np.random.Generator(np.random.PCG64(7)).integers(12, 640, N_TOKENS, dtype=np.int32)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {
            "dense": make_checkpoint(Path(temporary) / "dense", DENSE, "F32", seed=1),
            "odd_experts": make_checkpoint(Path(temporary) / "odd", ODD_EXPERTS, "F16", seed=2),
            "tiny": TINY,
        }
        for name, folder in folders.items():
            logits = compute_logits(folder, tokens)
            path = Path(__file__).with_name(f"logits_{name}.npz")
            np.savez_compressed(path, tokens=tokens, logits=logits, weights=hash_weights(folder))
            print(f"{path.name}: {path.stat().st_size} bytes, logits {logits.min()}…{logits.max()}")


if __name__ == "__main__":
    main()
