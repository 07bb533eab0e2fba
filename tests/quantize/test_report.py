"""What a file weighs: numbers computed by hand for a file that the gguf package wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Value

from quantize.errors import GGUFError
from quantize.gguf import TensorSpec, open_gguf, plan_file
from quantize.report import ROLES, find_role, summarize_gguf
from tests.quantize.ggufs import encode_at_random, write_with_gguf


def test_a_file_is_weighed_by_role_and_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_with_gguf(
        path,
        [("general.name", "Tiny", Value.STRING, None)],
        {
            "token_embd.weight": (encode_at_random((10, 64), 32, 34, 0), Kind.Q8_0),
            "blk.0.attn_norm.weight": (np.ones(64, np.float32), None),
            "blk.0.ssm_in.weight": (encode_at_random((6, 64), 32, 34, 1), Kind.Q8_0),
            "blk.0.ssm_a": (np.ones((2, 1), np.float32), None),
            "blk.1.ffn_up_exps.weight": (encode_at_random((4, 3, 64), 32, 18, 2), Kind.Q4_0),
            "blk.1.ffn_up_shexp.weight": (np.ones((5, 64), np.float16), None),
            "blk.1.ffn_gate_inp.weight": (np.ones((4, 64), np.float32), None),
            "output.weight": (np.ones((10, 64), np.float32), None),
        },
    )
    with open_gguf(path) as file:
        summary = summarize_gguf(file)
    report = summary.to_json()
    # Weights: 640 + 64 + 384 + 2 + 768 + 320 + 256 + 640.
    # Bytes: 680 + 256 + 408 + 8 + 432 + 640 + 1024 + 2560.
    assert report["architecture"] == "test"
    assert report["name"] == "Tiny"
    assert report["file_bytes"] == path.stat().st_size
    assert report["n_params"] == 3074
    assert report["bits_per_weight"] == pytest.approx(8 * 6008 / 3074)
    assert report["roles"] == {
        "experts": {"n_params": 768, "bytes": 432, "bits_per_weight": 4.5},
        "shared": {"n_params": 320, "bytes": 640, "bits_per_weight": 16.0},
        "dense": {"n_params": 0, "bytes": 0, "bits_per_weight": 0.0},
        "mamba": {"n_params": 386, "bytes": 416, "bits_per_weight": 8 * 416 / 386},
        "attention": {"n_params": 0, "bytes": 0, "bits_per_weight": 0.0},
        "embeddings": {"n_params": 1280, "bytes": 3240, "bits_per_weight": 20.25},
        "other": {"n_params": 320, "bytes": 1280, "bits_per_weight": 32.0},
    }
    assert report["types"] == {
        "f32": {"n_tensors": 4, "bytes": 3848},
        "q8_0": {"n_tensors": 2, "bytes": 1088},
        "f16": {"n_tensors": 1, "bytes": 640},
        "q4_0": {"n_tensors": 1, "bytes": 432},
    }
    assert list(report["types"]) == ["f32", "q8_0", "f16", "q4_0"]
    assert sum(share["bytes"] for share in report["roles"].values()) == 6008
    assert summary.total.n_bytes == 6008


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("blk.3.ffn_up_exps.weight", "experts"),
        ("blk.3.ffn_down_exps.scale", "experts"),
        ("blk.3.ffn_down_shexp.weight", "shared"),
        ("blk.3.ffn_up.weight", "dense"),
        ("blk.3.ssm_out.weight", "mamba"),
        ("blk.3.ssm_conv1d.bias", "mamba"),
        ("blk.3.ssm_dt.bias", "mamba"),
        ("blk.3.ssm_d", "mamba"),
        ("blk.3.attn_q.weight", "attention"),
        ("blk.3.attn_output.weight", "attention"),
        ("token_embd.weight", "embeddings"),
        ("output.weight", "embeddings"),
        ("blk.3.attn_norm.weight", "other"),
        ("blk.3.ssm_norm.weight", "other"),
        ("output_norm.weight", "other"),
        ("token_embd_norm.weight", "other"),
        ("blk.3.ffn_gate_inp.weight", "other"),
        ("blk.3.exp_probs_b.bias", "other"),
        ("whatever.weight", "other"),
    ],
)
def test_a_tensors_name_tells_its_role(name: str, role: str) -> None:
    assert find_role(name) == role
    assert role in ROLES


def test_the_30b_model_weighs_what_its_card_says(tmp_path: Path) -> None:
    """29.375 B weights of experts, all at 4.5 bits: the geometry of Nemotron-Cascade-2."""
    specs = [
        TensorSpec(f"blk.{i}.ffn_{side}_exps.weight", shape, 20)
        for i in range(23)
        for side, shape in (("up", (128, 1856, 2688)), ("down", (128, 2688, 1856)))
    ]
    plan = plan_file([("general.architecture", "nemotron_h_moe", "str")], specs)
    with (tmp_path / "model.gguf").open("wb") as stream:
        stream.write(plan.header)
        stream.truncate(plan.file_bytes)  # a hole: no disk is used
    with open_gguf(tmp_path / "model.gguf") as file:
        summary = summarize_gguf(file)
    experts = summary.roles["experts"]
    assert experts.n_params == summary.total.n_params == 29_374_808_064
    assert experts.bits_per_weight == 4.5
    assert experts.n_bytes == 29_374_808_064 * 18 // 32
    assert summary.types["iq4_nl"].n_tensors == 46


def test_a_file_of_a_split_model_and_one_without_tensors_are_told(tmp_path: Path) -> None:
    plan = plan_file([("split.count", 4, "u16"), ("split.no", 0, "u16")], [])
    (tmp_path / "part.gguf").write_bytes(plan.header)
    with open_gguf(tmp_path / "part.gguf") as file:
        report = summarize_gguf(file).to_json()
    assert (report["n_splits"], report["n_params"], report["bits_per_weight"]) == (4, 0, 0.0)
    assert report["architecture"] == report["name"] == ""
    assert report["types"] == {}


def test_an_architecture_that_is_no_text_is_refused(tmp_path: Path) -> None:
    plan = plan_file([("general.architecture", 7, "u32")], [])
    (tmp_path / "x.gguf").write_bytes(plan.header)
    with open_gguf(tmp_path / "x.gguf") as file, pytest.raises(GGUFError, match="not text"):
        summarize_gguf(file)
