"""At f32, llama.cpp on our files computes what transformers computes on the checkpoints.

The vectors were made by `python tests/vectors/make_logits.py` with torch 2.13.0 and
transformers 5.23.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantize.convert import quantize_checkpoint
from tests.llama import compute_logits
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, hash_weights, make_checkpoint

VECTORS = Path(__file__).parents[1] / "vectors"


def make_source(name: str, folder: Path) -> Path:
    """The checkpoint that the vectors of this name were computed from."""
    if name == "tiny":
        return TINY
    config, dtype, seed = {"dense": (DENSE, "F32", 1), "odd_experts": (ODD_EXPERTS, "F16", 2)}[name]
    return make_checkpoint(folder / name, config, dtype, seed)


def mean_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL divergence in nats between two (n, n_vocab) arrays of logits."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", ["dense", "odd_experts", "tiny"])
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    vectors = np.load(VECTORS / f"logits_{name}.npz")
    source = make_source(name, tmp_path)
    assert hash_weights(source) == str(vectors["weights"]), "other weights than the vectors'"
    quantize_checkpoint(source, tmp_path / "out.gguf", "f32")
    logits = compute_logits(tmp_path / "out.gguf", vectors["tokens"])
    assert np.abs(logits - vectors["logits"]).max() <= 5e-3
    assert mean_divergence(vectors["logits"], logits) <= 1e-6
