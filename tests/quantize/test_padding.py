"""Padding with zeros is exact: the padded file computes what the plain one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.convert import execute_recipe, quantize_checkpoint
from quantize.errors import TypeMismatch, UnsupportedModel
from quantize.families import describe_model
from quantize.gguf import open_gguf
from quantize.recipe import plan_recipe, round_widths
from quantize.safetensors import open_checkpoint
from quantize.tokenizer import read_tokenizer
from tests.llama import compute_logits
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, make_checkpoint

TOKENS = np.arange(20, 84, dtype=np.int32)

INNER_WIDTHS_FIT: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "n_groups": 4,
}
"""Attention's and Mamba's inner widths cannot be padded: here they are 256."""


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        (DENSE, {"n_embd": (72, 256), "n_ff": (110, 256)}),
        (ODD_EXPERTS, {"n_embd": (104, 256), "n_ff_exp": (56, 256)}),
        (ODD_EXPERTS | {"moe_latent_size": None, "hidden_size": 264}, {"n_embd": (264, 512)}),
    ],
)
def test_f32_logits_stay(config: dict[str, Any], widths: Any, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "in", config | INNER_WIDTHS_FIT, "F32", seed=5)
    quantize_checkpoint(source, tmp_path / "plain.gguf", "f32")
    quantize_padded(source, tmp_path / "padded.gguf")
    plain = compute_logits(tmp_path / "plain.gguf", TOKENS)
    padded = compute_logits(tmp_path / "padded.gguf", TOKENS)
    assert np.abs(plain - padded).max() < 2e-5 * np.abs(plain).max()
    with open_gguf(tmp_path / "padded.gguf") as file:
        assert file.tensors["token_embd.weight"].shape == (640, widths["n_embd"][1])
        architecture = file.metadata["general.architecture"]
        assert file.metadata[f"{architecture}.embedding_length"] == widths["n_embd"][1]


def quantize_padded(source: Path, output: Path) -> None:
    """Write f32, which rounds nothing, with the widths that a superblock type would need."""
    with open_checkpoint(source) as checkpoint:
        model = describe_model(checkpoint, round_widths(describe_model(checkpoint).widths, 256))
        vocabulary = read_tokenizer(source, model.n_embeddings, checkpoint.config)
        recipe = plan_recipe(checkpoint, model, vocabulary, {}, name="padded")
        execute_recipe(checkpoint, recipe, output)


def test_pad_makes_a_superblock_type_fit(tmp_path: Path) -> None:
    result = quantize_checkpoint(TINY, tmp_path / "out.gguf", "q6_k", pad=True)
    with open_gguf(tmp_path / "out.gguf") as file:
        matrices = {t.type.name for t in file.tensors.values() if t.type.name != "f32"}
        assert matrices == {"q6_k"}
        assert file.tensors["blk.2.ffn_up_exps.weight"].shape == (16, 512, 256)
    assert any("more weights" in note for note in result.notes)
    assert np.isfinite(compute_logits(tmp_path / "out.gguf", TOKENS)).all()


def test_pad_changes_nothing_where_the_type_fits(tmp_path: Path) -> None:
    for name, pad in (("plain", False), ("padded", True)):
        quantize_checkpoint(TINY, tmp_path / f"{name}.gguf", "q8_0", pad=pad)
    plain, padded = ((tmp_path / f"{n}.gguf").read_bytes() for n in ("plain", "padded"))
    assert plain == padded


def test_what_cannot_be_padded_is_still_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "odd", ODD_EXPERTS, "F32", seed=5)
    with pytest.raises(TypeMismatch, match=r"ssm_out.weight: rows of 80"):
        quantize_checkpoint(source, tmp_path / "out.gguf", "q6_k", pad=True)
    tied = make_checkpoint(tmp_path / "tied", DENSE | {"tie_word_embeddings": True}, "F32", seed=5)
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings"):
        quantize_checkpoint(tied, tmp_path / "out.gguf", "q6_k", pad=True)
