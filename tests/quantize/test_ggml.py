"""Our files hold the bytes that llama.cpp's own quantizer writes, type by type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantize.convert import quantize_checkpoint
from quantize.ggml import (
    ENCODABLE,
    decode_rows,
    encode_rows,
    requires_importance,
    type_named,
    widen,
)
from quantize.gguf import open_gguf
from quantize.recipe import FILE_TYPES
from tests.llama import load_model, requantize
from tests.quantize.models import ODD_EXPERTS, make_checkpoint

WIDE = ODD_EXPERTS | {
    "layers_block_type": ["moe", "mamba", "attention"],
    "hidden_size": 256,
    "head_dim": 128,
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "n_groups": 2,
    "n_routed_experts": 3,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 256,
    "moe_shared_expert_intermediate_size": 256,
    "moe_latent_size": None,
    "vocab_size": 640,
}
"""Every width a multiple of 256, so that every type fits every matrix."""

OURS_IS_NEARER = {"mxfp4", "q2_0"}
"""Encoded by encoders.py, not by ggml."""
# llama_model_quantize has no file type for nvfp4, and wants an importance matrix for the others.
NOT_COMPARABLE = {"nvfp4", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"}
COMPARABLE = sorted(set(FILE_TYPES) - NOT_COMPARABLE - OURS_IS_NEARER - {"f32", "f16", "bf16"})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("wide"), WIDE, "BF16", seed=3)


@pytest.fixture(scope="module")
def ready(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ready") / "bf16.gguf"
    quantize_checkpoint(source, path, "bf16")
    return path


@pytest.mark.parametrize("name", COMPARABLE)
def test_bytes_equal_llama_quantize(name: str, source: Path, ready: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "ours.gguf", name)
    requantize(ready, tmp_path / "theirs.gguf", FILE_TYPES[name])
    with open_gguf(tmp_path / "ours.gguf") as ours, open_gguf(tmp_path / "theirs.gguf") as theirs:
        assert ours.tensors.keys() == theirs.tensors.keys()
        for tensor in ours.tensors.values():
            assert tensor.type == theirs.tensors[tensor.name].type, tensor.name
            assert np.array_equal(ours.read(tensor.name), theirs.read(tensor.name)), tensor.name


@pytest.mark.parametrize("name", sorted(OURS_IS_NEARER))
def test_our_weights_are_nearer_than_those_of_llama_quantize(
    name: str, source: Path, ready: Path, tmp_path: Path
) -> None:
    quantize_checkpoint(source, tmp_path / "ours.gguf", name)
    requantize(ready, tmp_path / "theirs.gguf", FILE_TYPES[name])
    with (
        open_gguf(ready) as exact,
        open_gguf(tmp_path / "ours.gguf") as ours,
        open_gguf(tmp_path / "theirs.gguf") as theirs,
    ):
        for tensor in ours.tensors.values():
            if tensor.type.name == name:
                width = tensor.shape[-1]
                weights = decode_rows(exact.read(tensor.name), type_named("bf16"), width)
                errors = [
                    np.square(decode_rows(file.read(tensor.name), tensor.type, width) - weights)
                    for file in (ours, theirs)
                ]
                assert errors[0].sum() < errors[1].sum(), tensor.name


@pytest.mark.parametrize("name", ENCODABLE)
def test_every_type_loads(name: str, source: Path, tmp_path: Path) -> None:
    result = quantize_checkpoint(source, tmp_path / "out.gguf", name)
    with load_model(tmp_path / "out.gguf"):
        pass
    blind = requires_importance(type_named(name))
    assert any("importance" in note for note in result.notes) == blind


@pytest.mark.parametrize("name", ENCODABLE)
def test_decoding_comes_back_near(name: str) -> None:
    block_type = type_named(name)
    rows = np.random.Generator(np.random.PCG64(4)).standard_normal((4, 512), dtype=np.float32)
    encoded = np.empty(4 * block_type.row_bytes(512), dtype=np.uint8)
    encode_rows(rows, block_type, encoded)
    error = np.mean((decode_rows(encoded, block_type, 512) - rows) ** 2) / np.mean(rows**2)
    # Rate-distortion: no code of b bits a weight can err less than 4^-b on Gaussian weights.
    assert 4.0**-block_type.bits_per_weight * 0.5 < error + 1e-15 < 0.7


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_widening_is_exact_for_every_bit_pattern(dtype: str) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    widened = np.empty(65536, dtype=np.float32)
    widen(bits.view(np.uint8), dtype, widened)
    exact = (
        (bits.astype(np.uint32) << 16).view(np.float32)
        if dtype == "BF16"
        else bits.view(np.float16).astype(np.float32)
    )
    assert np.array_equal(widened, exact, equal_nan=True)


def test_buffers_that_ggml_would_overrun_are_refused() -> None:
    rows = np.zeros((2, 64), dtype=np.float32)
    with pytest.raises(ValueError, match="bytes of room"):
        encode_rows(rows, type_named("q8_0"), np.empty(10, dtype=np.uint8))
    with pytest.raises(ValueError, match="whole q6_k blocks"):
        encode_rows(rows, type_named("q6_k"), np.empty(10, dtype=np.uint8))
    with pytest.raises(ValueError, match="importance"):
        room = np.empty(2 * 68, dtype=np.uint8)
        encode_rows(rows, type_named("q8_0"), room, np.ones(3, dtype=np.float32))
