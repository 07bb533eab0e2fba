"""Conversion: what is refused, what is left behind, what the file says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize import convert, part
from quantize.convert import quantize_checkpoint
from quantize.errors import (
    CheckpointError,
    NotFinite,
    OutputError,
    QuantizeError,
    TypeMismatch,
    UnsupportedModel,
)
from quantize.gguf import open_gguf
from quantize.recipe import FILE_TYPES
from tests.llama import compute_logits
from tests.quantize.checkpoints import write_safetensors
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, draw_weights, make_checkpoint
from tests.soak import sample

Weights = dict[str, tuple[str, np.ndarray]]


def rewrite(folder: Path, config: dict[str, Any], change: Any = None, dtype: str = "F32") -> Path:
    """Write a checkpoint whose weights `change` has had its hands on."""
    make_checkpoint(folder, config, dtype, seed=1)
    weights: Weights = {name: (dtype, w) for name, w in draw_weights(config, 1).items()}
    if change:
        change(weights)
    write_safetensors(folder / "model.safetensors", weights)
    return folder


def refuse(source: Path, output: Path, type_name: str = "f32", **options: Any) -> QuantizeError:
    """Convert, expect a refusal, and check that nothing is left behind."""
    before = set(output.parent.iterdir())
    with pytest.raises(QuantizeError) as caught:
        quantize_checkpoint(source, output, type_name, **options)
    assert set(output.parent.iterdir()) == before
    assert caught.value.message
    return caught.value


def test_f16_and_bf16_and_f32_sources_agree(tmp_path: Path) -> None:
    def round_all(weights: Weights) -> None:
        for name, (dtype, w) in weights.items():
            # Multiples of 1/32 below 4 in size are exact in all three dtypes.
            weights[name] = (dtype, np.clip(np.round(w * 32) / 32, -3.875, 3.875))

    files = []
    for dtype in ("F32", "F16", "BF16"):
        source = rewrite(tmp_path / dtype, DENSE, round_all, dtype)
        quantize_checkpoint(source, tmp_path / f"{dtype}.gguf", "f32", name="same")
        files.append((tmp_path / f"{dtype}.gguf").read_bytes())
    assert files[0] == files[1] == files[2]


def test_both_spellings_of_the_pattern_give_the_same_file(tmp_path: Path) -> None:
    words = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
    listed = DENSE | {"layers_block_type": [words[k] for k in DENSE["hybrid_override_pattern"]]}
    del listed["hybrid_override_pattern"]
    for name, config in (("a", DENSE), ("b", listed)):
        source = make_checkpoint(tmp_path / name, config, "BF16", seed=1)
        quantize_checkpoint(source, tmp_path / f"{name}.gguf", "f16", name="same")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_thread_count_does_not_change_the_file(tmp_path: Path) -> None:
    for n_threads in (1, 5):
        quantize_checkpoint(TINY, tmp_path / f"{n_threads}.gguf", "q8_0", n_threads=n_threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "5.gguf").read_bytes()


def test_tied_embeddings_answer_like_untied_ones(tmp_path: Path) -> None:
    def copy_head(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["backbone.embeddings.weight"]

    tied = make_checkpoint(tmp_path / "tied", DENSE | {"tie_word_embeddings": True}, "F32", seed=1)
    untied = rewrite(tmp_path / "untied", DENSE, copy_head)
    # The head is drawn last, so that all other weights are the same.
    tokens = np.arange(20, 60, dtype=np.int32)
    logits = []
    for source in (tied, untied):
        quantize_checkpoint(source, source.with_suffix(".gguf"), "f32")
        logits.append(compute_logits(source.with_suffix(".gguf"), tokens))
    assert np.array_equal(*logits)


def test_only_the_large_matrices_are_quantized(tmp_path: Path) -> None:
    quantize_checkpoint(TINY, tmp_path / "out.gguf", "q4_0")
    with open_gguf(tmp_path / "out.gguf") as file:
        plain = {
            re.sub(r"blk\.\d+\.", "", n) for n, t in file.tensors.items() if t.type.name == "f32"
        }
        assert plain == {
            "attn_norm.weight", "ssm_conv1d.weight", "ssm_conv1d.bias", "ssm_dt.bias", "ssm_a",
            "ssm_d", "ssm_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias",
            "output_norm.weight",
        }  # fmt: skip
        assert {t.type.name for t in file.tensors.values()} == {"f32", "q4_0"}
        assert file.tensors["blk.2.ffn_up_exps.weight"].shape == (16, 288, 224)


def test_type_that_does_not_fit_is_refused_and_named(tmp_path: Path) -> None:
    error = refuse(TINY, tmp_path / "out.gguf", "q6_k")
    assert isinstance(error, TypeMismatch)
    assert (error.tensor, error.width, error.block) == ("token_embd.weight", 224, 256)
    assert "q8_0" in error.fitting and "q6_k" not in error.fitting
    assert "q6_k" in error.message and "--fallback" in error.hint


def test_fallback_is_used_only_where_needed_and_said(tmp_path: Path) -> None:
    result = quantize_checkpoint(TINY, tmp_path / "out.gguf", "q6_k", fallback="q8_0")
    with open_gguf(tmp_path / "out.gguf") as file:
        types = {name: tensor.type.name for name, tensor in file.tensors.items()}
        assert file.metadata["general.file_type"] == FILE_TYPES["q8_0"]  # most of its weights
    # Mamba's and attention's inner width is 256; hidden (224) and expert (288) widths are not.
    assert types["blk.0.ssm_out.weight"] == "q6_k"
    assert types["blk.1.attn_output.weight"] == "q6_k"
    assert types["blk.2.ffn_up_exps.weight"] == types["token_embd.weight"] == "q8_0"
    assert any("q8_0" in note for note in result.notes)


def test_fallback_that_does_not_fit_either_is_refused(tmp_path: Path) -> None:
    error = refuse(TINY, tmp_path / "out.gguf", "q6_k", fallback="iq3_s")
    assert isinstance(error, TypeMismatch) and "iq3_s" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_named_with_their_position(value: float, tmp_path: Path) -> None:
    name = "backbone.layers.3.mixer.experts.7.up_proj.weight"

    def poison(weights: Weights) -> None:
        weights[name][1][41, 13] = value

    error = refuse(rewrite(tmp_path / "in", ODD_EXPERTS, poison), tmp_path / "out.gguf")
    assert isinstance(error, NotFinite)
    assert (error.tensor, error.position) == (name, (41, 13))


def test_an_old_file_survives_a_refused_conversion(tmp_path: Path) -> None:
    def poison(weights: Weights) -> None:
        weights["lm_head.weight"][1][-1, -1] = np.nan

    (tmp_path / "out.gguf").write_text("old")
    refuse(rewrite(tmp_path / "in", DENSE, poison), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "old"


def test_missing_and_surplus_and_misshapen_tensors(tmp_path: Path) -> None:
    key = "backbone.layers.0.mixer.in_proj.weight"
    changes = {
        "missing": lambda w: w.pop(key),
        "shape": lambda w: w.update({key: ("F32", np.zeros((4, 72), np.float32))}),
        "surplus": lambda w: w.update({"backbone.layers.0.mixer.in_proj.bias": w[key]}),
    }
    found = {
        name: refuse(rewrite(tmp_path / name, DENSE, change), tmp_path / "out.gguf")
        for name, change in changes.items()
    }
    assert isinstance(found["missing"], CheckpointError) and found["missing"].tensor == key
    assert "[4, 72]" in found["shape"].message and key in found["shape"].message
    assert (
        isinstance(found["surplus"], UnsupportedModel)
        and "in_proj.bias" in found["surplus"].message
    )


def test_the_draft_head_is_left_out_and_said(tmp_path: Path) -> None:
    def add_head(weights: Weights) -> None:
        weights["mtp.layers.0.eh_proj.weight"] = ("F32", np.zeros((4, 4), np.float32))

    result = quantize_checkpoint(
        rewrite(tmp_path / "in", DENSE, add_head), tmp_path / "out.gguf", "f32"
    )
    assert any("draft head" in note and "mtp.layers.0" in note for note in result.notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"hybrid_override_pattern": "M-*E-"}, "mix"),
        ({"hybrid_override_pattern": "M-*X-"}, "hybrid_override_pattern: 'X'"),
        ({"hybrid_override_pattern": ""}, "0 layers"),
        ({"hybrid_override_pattern": None}, "names no layers"),
        ({"hybrid_override_pattern": "M" * 513}, "513 layers"),
        ({"layers_block_type": ["mamba"]}, "disagrees with layers_block_type"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"hidden_size": -1}, "hidden_size: -1"),
        ({"hidden_size": True}, "hidden_size: True"),
        ({"hidden_size": "72"}, "hidden_size: '72'"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon: nan"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: 2 does not divide 3"),
        ({"n_groups": 4}, "n_groups: 4 does not divide 6"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_conv_bias": False}, "use_conv_bias"),
        ({"vocab_size": 641}, "[641, 72]"),
        ({"vocab_size": 639}, "token"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "in", DENSE, "F32", seed=1)
    config = {k: v for k, v in (DENSE | changes).items() if v is not None}
    (source / "config.json").write_text(json.dumps(config))
    assert says in refuse(source, tmp_path / "out.gguf").message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_group": 5}, "n_group: 5"),
        ({"n_group": 12, "topk_group": 3}, "n_group: 12"),
        ({"topk_group": 1, "num_experts_per_tok": 4}, "topk_group: 1"),
        ({"topk_group": 5}, "topk_group: 5"),
        ({"num_experts_per_tok": 13}, "num_experts_per_tok: 13"),
        ({"n_routed_experts": 1025}, "n_routed_experts: 1025"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: 1"),
    ],
)
def test_routing_that_llama_cpp_would_abort_on(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "in", ODD_EXPERTS, "F32", seed=1)
    (source / "config.json").write_text(json.dumps(ODD_EXPERTS | changes))
    assert says in refuse(source, tmp_path / "out.gguf").message


def test_all_groups_in_use_is_plain_routing(tmp_path: Path) -> None:
    tokens = np.arange(20, 60, dtype=np.int32)
    logits = []
    for name, n_groups in (("plain", 1), ("grouped", 3)):
        config = ODD_EXPERTS | {"n_group": n_groups, "topk_group": n_groups}
        source = make_checkpoint(tmp_path / name, config, "F32", seed=2)
        quantize_checkpoint(source, tmp_path / f"{name}.gguf", "f32")
        logits.append(compute_logits(tmp_path / f"{name}.gguf", tokens))
    assert np.array_equal(*logits)


def test_code_of_the_repository_is_never_run(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "in", DENSE, "F32", seed=1)
    (source / "config.json").write_text(
        json.dumps(DENSE | {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    quantize_checkpoint(source, tmp_path / "out.gguf", "f32")
    assert not (tmp_path / "ran").exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be created"):
        quantize_checkpoint(TINY, tmp_path / "none" / "out.gguf", "f32")
    (tmp_path / "folder.gguf").mkdir()
    assert isinstance(refuse(TINY, tmp_path / "folder.gguf"), OutputError)


def test_a_full_disk_is_said_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(part.shutil, "disk_usage", lambda _path: usage)
    assert "needs" in refuse(TINY, tmp_path / "out.gguf").message


def test_two_runs_to_one_file_do_not_mix(tmp_path: Path) -> None:
    def start_another(stage: str, done: int, total: int) -> None:
        if (stage, done) != ("write", total):
            return
        with pytest.raises(OutputError, match="another run"):
            quantize_checkpoint(TINY, tmp_path / "out.gguf", "q4_0")

    quantize_checkpoint(TINY, tmp_path / "out.gguf", "q8_0", on_progress=start_another)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors["output.weight"].type.name == "q8_0"


def test_a_disk_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def flip_late_bit(file: int, data: Any, offset: int) -> int:
        damaged = bytearray(data)
        if offset > 1_000_000:
            damaged[len(damaged) // 2] ^= 4
        return real(file, damaged, offset)

    monkeypatch.setattr(convert.os, "pwrite", flip_late_bit)
    assert "does not read back" in refuse(TINY, tmp_path / "out.gguf", "q8_0").message


def run_killed(folder: Path, after_bytes: int) -> None:
    """Convert tiny in a process that kills itself once so many bytes are written."""
    code = f"""
import os, signal
from pathlib import Path
from quantize.convert import quantize_checkpoint
def die(stage, done, total):
    if stage == "verify" or done >= {after_bytes}:
        os.kill(os.getpid(), signal.SIGKILL)
out = Path({str(folder)!r}) / "out.gguf"
quantize_checkpoint(Path({str(TINY)!r}), out, "q8_0", on_progress=die)
"""
    process = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after_bytes", sample([1, 300_000, 2_500_000, 5_999_000, 6_200_000]))
def test_a_killed_run_is_continued_to_the_same_bytes(after_bytes: int, tmp_path: Path) -> None:
    quantize_checkpoint(TINY, tmp_path / "whole.gguf", "q8_0")
    run_killed(tmp_path, after_bytes)
    assert not (tmp_path / "out.gguf").exists()
    seen: list[tuple[str, int, int]] = []
    quantize_checkpoint(
        TINY, tmp_path / "out.gguf", "q8_0", on_progress=lambda *step: seen.append(step)
    )
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"out.gguf", "whole.gguf"}
    # Whole tensors are kept; the largest has 1.1 MB.
    stage, done, _ = seen[0]
    assert stage == "verify" or done > after_bytes - 1_200_000


def test_other_work_does_not_continue_a_killed_run(tmp_path: Path) -> None:
    run_killed(tmp_path, 3_000_000)
    quantize_checkpoint(TINY, tmp_path / "out.gguf", "q4_0")
    quantize_checkpoint(TINY, tmp_path / "whole.gguf", "q4_0")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_part_damaged_between_runs_is_found_out(tmp_path: Path) -> None:
    run_killed(tmp_path, 5_000_000)
    with (tmp_path / "out.gguf.part").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"damage")
    assert "does not read back" in refuse_rest(tmp_path).message
    quantize_checkpoint(TINY, tmp_path / "out.gguf", "q8_0")


def refuse_rest(folder: Path) -> QuantizeError:
    """Continue a run, expect a refusal, and check that part and journal are gone."""
    with pytest.raises(QuantizeError) as caught:
        quantize_checkpoint(TINY, folder / "out.gguf", "q8_0")
    assert list(folder.iterdir()) == []
    return caught.value


def test_interruption_leaves_only_what_can_be_continued(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(TINY, tmp_path / "out.gguf", "q8_0", on_progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf.part", "out.gguf.journal"}


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = quantize_checkpoint(
        TINY, tmp_path / "out.gguf", "q8_0", on_progress=lambda *s: seen.append(s)
    )
    for stage in ("write", "verify"):
        done = [d for s, d, _ in seen if s == stage]
        totals = {t for s, _, t in seen if s == stage}
        assert done == sorted(done) and {done[-1]} == totals
    assert seen[-1][1] <= result.file_bytes
