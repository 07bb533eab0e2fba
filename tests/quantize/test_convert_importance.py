"""Conversion with an importance matrix: it reaches the encoder, expert by expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantize.convert import quantize_checkpoint
from quantize.errors import GGUFError
from quantize.ggml import decode_rows
from quantize.gguf import open_gguf
from quantize.importance import Importance, Moments, read_importance, write_importance
from tests.quantize.models import TINY

UP = "blk.2.ffn_up_exps.weight"


def write_skewed(path: Path, n_experts: int = 16, width: int = 224) -> Path:
    """Write an importance matrix in which each expert of one layer cares for inputs of its own."""
    rng = np.random.Generator(np.random.PCG64(9))
    means = np.exp(3 * rng.standard_normal((n_experts, width)))
    counts = np.full(n_experts, 10_000.0)
    counts[5] = 0
    moments = Moments(means * counts[:, None], counts)
    # The router is calibrated too, though it is never quantized.
    router = Moments(means[:1] * 10_000, np.array([10_000.0]))
    matrices = {UP: moments, "blk.2.ffn_gate_inp.weight": router}
    write_importance(path, Importance(matrices, datasets=("skewed",), n_chunks=7))
    return path


def measure_errors(path: Path, exact: Path, weights: np.ndarray) -> np.ndarray:
    """Weighted squared error of each expert of UP, float64 (n_experts,)."""
    with open_gguf(path) as file, open_gguf(exact) as reference:
        tensor = file.tensors[UP]
        decoded = decode_rows(file.read(UP), tensor.type, tensor.shape[-1])[:, :224]
        wanted = decode_rows(reference.read(UP), reference.tensors[UP].type, 224)
    rows = tensor.shape[1]
    squares = np.square(decoded.reshape(16, rows, 224)[:, :288] - wanted.reshape(16, 288, 224))
    return np.asarray((squares * weights[:, None]).sum((1, 2)))


@pytest.mark.parametrize(("name", "pad"), [("q2_0", True), ("q4_0", False), ("iq3_s", True)])
def test_every_expert_s_own_error_falls(name: str, pad: bool, tmp_path: Path) -> None:
    matrix = write_skewed(tmp_path / "skewed.imatrix.gguf")
    quantize_checkpoint(TINY, tmp_path / "exact.gguf", "f32")
    options = {"pad": pad} if pad else {}
    quantize_checkpoint(TINY, tmp_path / "blind.gguf", name, **options)
    result = quantize_checkpoint(TINY, tmp_path / "seeing.gguf", name, importance=matrix, **options)
    importance = read_importance(matrix)
    vectors = [importance.vector(UP, expert, 224) for expert in range(16)]
    weights = np.array([v for v in vectors if v is not None], dtype=np.float64)
    blind = measure_errors(tmp_path / "blind.gguf", tmp_path / "exact.gguf", weights)
    seeing = measure_errors(tmp_path / "seeing.gguf", tmp_path / "exact.gguf", weights)
    assert (seeing < blind).all()
    assert any("of 16 experts 1 have no samples" in note for note in result.notes)
    with open_gguf(tmp_path / "seeing.gguf") as file:
        assert file.metadata["quantize.imatrix.file"] == "skewed.imatrix.gguf"
        assert file.metadata["quantize.imatrix.chunks_count"] == 7


@pytest.mark.parametrize(("n_experts", "width"), [(15, 224), (16, 256)])
def test_another_model_s_importance_is_refused(n_experts: int, width: int, tmp_path: Path) -> None:
    matrix = write_skewed(tmp_path / "other.imatrix.gguf", n_experts, width)
    with pytest.raises(GGUFError, match=r"importance of blk\.2\.ffn"):
        quantize_checkpoint(TINY, tmp_path / "out.gguf", "q4_0", importance=matrix)
    assert not (tmp_path / "out.gguf").exists()
