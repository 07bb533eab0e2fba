"""Importance matrices: the file format against llama.cpp's own, the estimate by its properties."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp

from quantize.convert import quantize_checkpoint
from quantize.errors import GGUFError, OutputError
from quantize.ggml import encode_rows, type_named
from quantize.gguf import open_gguf
from quantize.importance import (
    FEW_SAMPLES,
    FLOOR,
    PRIOR_SAMPLES,
    Importance,
    Moments,
    join_moments,
    read_importance,
    split_moments,
    write_importance,
)
from tests.quantize.ggufs import read_natively
from tests.quantize.models import ODD_EXPERTS, make_checkpoint

REFERENCE = Path(__file__).parents[1] / "vectors" / "imatrix_odd_experts.gguf"
UP, OUT = "blk.1.ffn_up_exps.weight", "blk.0.ssm_out.weight"


def draw_importance(counts: tuple[int, ...] = (900, 40, 0), width: int = 6) -> Importance:
    rng = np.random.default_rng(3)
    n = np.array(counts, np.float64)
    sums = rng.random((len(counts), width)) * n[:, None]
    matrices = {
        OUT: Moments(rng.random((1, 4)) * 940, np.array([940.0])),
        UP: Moments(sums, n),
    }
    return Importance(matrices, {"blk.1": 0.5 * n}, ("a.txt", "b.jsonl"), 7, 512)


# ---- files -------------------------------------------------------------------------------------


def test_a_file_of_llama_cpp_is_read_and_written_again_to_the_byte(tmp_path: Path) -> None:
    importance = read_importance(REFERENCE)
    assert importance.datasets == ("tokens.i32",)
    assert (importance.n_chunks, importance.chunk_tokens) == (3, 256)
    assert importance.matrices["blk.0.ffn_up_exps.weight"].sums.shape == (12, 40)
    assert importance.matrices["blk.2.attn_q.weight"].sums.shape == (1, 104)
    write_importance(tmp_path / "again.gguf", importance)
    assert (tmp_path / "again.gguf").read_bytes() == REFERENCE.read_bytes()


def test_what_is_written_is_what_others_read(tmp_path: Path) -> None:
    path, importance = tmp_path / "i.gguf", draw_importance()
    write_importance(path, importance)
    view = read_natively(path)
    assert view is not None and view.texts["general.type"] == "imatrix"
    reader = gguf.GGUFReader(path)
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt", "b.jsonl"]
    assert reader.fields["imatrix.chunk_count"].contents() == 7
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert list(tensors) == [
        f"{OUT}.in_sum2", f"{OUT}.counts", f"{UP}.in_sum2", f"{UP}.counts",
        "blk.1.ffn_gate_inp.weight.router_mass",
    ]  # fmt: skip
    np.testing.assert_array_equal(
        tensors[f"{UP}.in_sum2"], importance.matrices[UP].sums.astype(np.float32)
    )
    assert tensors[f"{UP}.counts"].tolist() == [[900], [40], [0]]
    again = read_importance(path)
    assert again.router_mass["blk.1"].tolist() == [450, 20, 0]
    assert list(tmp_path.iterdir()) == [path]


def write_tensors(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> None:
    writer = gguf.GGUFWriter(path, "none")
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("tensors", "kind", "says"),
    [
        ({"a.in_sum2": f32(1), "a.counts": f32(1)}, "model", "general.type is 'model'"),
        ({"a.in_sum2": f32(1, 2)}, "imatrix", "tensor a.counts is missing"),
        ({"a.counts": f32(1)}, "imatrix", "tensor a.in_sum2 is missing"),
        ({"a.in_sum2": f32(1, np.nan), "a.counts": f32(1)}, "imatrix", "a.in_sum2 holds nan at 1"),
        ({"a.in_sum2": f32(-1), "a.counts": f32(1)}, "imatrix", "a.in_sum2 holds -1.0 at 0"),
        ({"a.in_sum2": f32(1), "a.counts": f32(np.inf)}, "imatrix", "a.counts holds inf"),
        ({"a.in_sum2": f32(1, 2, 3), "a.counts": f32(1, 1)}, "imatrix", "3 values for 2 counts"),
        ({"a.in_sum2": f32(1), "a.counts": f32(1).astype("f2")}, "imatrix", "is f16, not f32"),
        ({"a.weight": f32(1)}, "imatrix", "no importance of any matrix"),
    ],
)
def test_what_is_no_importance_matrix_is_refused(
    tensors: dict[str, np.ndarray], kind: str, says: str, tmp_path: Path
) -> None:
    write_tensors(tmp_path / "bad.gguf", tensors, kind)
    with pytest.raises(GGUFError, match=r"bad\.gguf") as caught:
        read_importance(tmp_path / "bad.gguf")
    assert says in caught.value.message
    assert "localcascade calibrate" in caught.value.hint


def test_a_place_that_cannot_be_written_is_an_error_and_an_old_file_stays(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be created"):
        write_importance(tmp_path / "no" / "i.gguf", draw_importance())
    path = tmp_path / "i.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="without matrices"):
        write_importance(path, Importance({}))
    assert path.read_bytes() == b"old"


def test_joining_undoes_splitting() -> None:
    importance = draw_importance()
    matrices, mass = join_moments(split_moments(importance))
    for name, moments in importance.matrices.items():
        np.testing.assert_array_equal(matrices[name].counts, moments.counts)
        np.testing.assert_allclose(matrices[name].sums, moments.sums, rtol=1e-7)
    assert mass["blk.1"].tolist() == importance.router_mass["blk.1"].tolist()


# ---- against the library -----------------------------------------------------------------------

EVEN = ODD_EXPERTS | {
    "hidden_size": 96,
    "mamba_num_heads": 8,
    "n_groups": 4,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 96,
    "moe_latent_size": 32,
}
"""Every width a multiple of 32, so that llama.cpp has no reason for another type."""


def normalize(importance: Importance, expert: int, name: str) -> np.ndarray:
    """What llama-quantize hands to the encoder: float32 sums by counts, ones without any."""
    moments = importance.matrices[name]
    if moments.counts[expert] == 0:
        return np.ones(moments.sums.shape[1], np.float32)
    return moments.sums[expert].astype(np.float32) / np.float32(moments.counts[expert])


def quantize_natively(source: Path, output: Path, importance: Importance) -> int:
    """Run llama_model_quantize to q4_0 with an importance matrix; its code."""
    entries = {
        name: np.concatenate([normalize(importance, e, name) for e in range(len(m.counts))])
        for name, m in importance.matrices.items()
    }
    array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    pointer = ctypes.POINTER(ctypes.c_float)
    for place, (name, values) in zip(array, entries.items(), strict=False):
        place.name, place.size = name.encode(), values.size
        place.data = values.ctypes.data_as(pointer)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.pure = 2, 1, True
    parameters.imatrix = array
    return int(
        llama_cpp.llama_model_quantize(bytes(source), bytes(output), ctypes.byref(parameters))
    )


def test_the_library_quantizes_by_what_was_read_from_our_file(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", EVEN, "F32", seed=2)
    quantize_checkpoint(checkpoint, tmp_path / "f32.gguf", "f32", n_threads=1)
    with open_gguf(tmp_path / "f32.gguf") as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        weights = {n: file.read(n).reshape(-1).view(np.float32).copy() for n in shapes}
    names = ["blk.0.ffn_down_exps.weight", "blk.0.ffn_up_exps.weight", "blk.1.ssm_in.weight"]
    rng = np.random.default_rng(0)
    matrices = {}
    for name in names:
        n_experts = shapes[name][0] if len(shapes[name]) == 3 else 1
        counts = rng.integers(0, 3, n_experts).astype(np.float64) * 500 + (n_experts == 1) * 1000
        sums = rng.pareto(1.0, (n_experts, shapes[name][-1])).astype(np.float32) * counts[:, None]
        matrices[name] = Moments(sums, counts)
    write_importance(tmp_path / "i.gguf", Importance(matrices))
    importance = read_importance(tmp_path / "i.gguf")
    importance.check_shapes(shapes)
    assert quantize_natively(tmp_path / "f32.gguf", tmp_path / "q4.gguf", importance) == 0
    q4_0 = type_named("q4_0")
    with open_gguf(tmp_path / "q4.gguf") as file:
        for name in names:
            width = shapes[name][-1]
            experts = weights[name].reshape(len(matrices[name].counts), -1, width)
            for expert, rows in enumerate(experts):
                theirs = file.read(name).reshape(len(experts), -1)[expert]
                vector = (
                    importance.vector(name, 0, width)
                    if len(experts) == 1
                    else normalize(importance, expert, name)
                )
                ours = np.empty(theirs.shape, np.uint8)
                encode_rows(rows, q4_0, ours, vector)
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {expert}")
                encode_rows(rows, q4_0, ours)
                assert len(experts) > 1 or (ours != theirs).any()


# ---- the estimate ------------------------------------------------------------------------------


def test_a_plain_matrix_keeps_its_means() -> None:
    moments = draw_importance().matrices[OUT]
    np.testing.assert_allclose(moments.estimate(0), moments.sums[0] / 940, rtol=1e-7)


def test_many_samples_hardly_shrink_and_few_nearly_reach_the_neutral_vector() -> None:
    raw = np.array([[8.0, 1.0, 3.0], [1.0, 1.0, 1.0]])
    for n, share in ((1, 0.04), (24, 0.5), (2376, 0.99)):
        moments = Moments(raw * [[n], [1e9]], np.array([n, 1e9]))
        neutral = (raw[0] / 4 + 1) / 2
        expected = share * raw[0] + (1 - share) * 4 * neutral
        np.testing.assert_allclose(moments.estimate(0), expected, rtol=1e-6)
    assert PRIOR_SAMPLES == 24


def test_an_expert_without_samples_gets_the_neutral_vector_at_the_others_level() -> None:
    moments = draw_importance().matrices[UP]
    means = moments.sums[:2] / moments.counts[:2, None]
    neutral = (means / means.mean(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(moments.estimate(2), neutral * means.mean(), rtol=1e-6)


@pytest.mark.parametrize("counts", [(0, 0), (5, 0), (5, 3)])
def test_nothing_seen_and_nothing_but_zeros_weigh_the_same(counts: tuple[int, int]) -> None:
    moments = Moments(np.zeros((2, 3)), np.array(counts, np.float64))
    assert moments.estimate(0).tolist() == moments.estimate(1).tolist() == [1, 1, 1]


def test_an_input_that_never_fired_keeps_a_positive_weight() -> None:
    moments = Moments(np.array([[0.0, 6.0, 6.0]]), np.array([3.0]))
    np.testing.assert_allclose(moments.estimate(0), [FLOOR * 4 / 3, 2, 2], rtol=1e-6)


@st.composite
def draw_moments(draw: Any) -> Moments:
    n_experts, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(0, 5000), min_size=n_experts, max_size=n_experts))
    value = st.floats(0, 1e6, width=32)
    rows = st.lists(value, min_size=width, max_size=width)
    means = draw(st.lists(rows, min_size=n_experts, max_size=n_experts))
    return Moments(np.array(means) * np.array(counts)[:, None], np.array(counts, np.float64))


@given(moments=draw_moments(), scale=st.sampled_from([2.0**-20, 2.0**9]))
def test_weights_are_positive_finite_and_follow_the_inputs_scale(
    moments: Moments, scale: float
) -> None:
    scaled = Moments(moments.sums * scale, moments.counts)
    for expert, count in enumerate(moments.counts):
        vector = moments.estimate(expert)
        level = moments.sums[expert].mean() / max(count, 1)
        assert vector.dtype == np.float32 and np.isfinite(vector).all()
        assert not count or level < 1e-30 or (vector > 0).all()
        if count and level > 1e-20:
            assert vector.mean() == pytest.approx(level, rel=1e-4)
            np.testing.assert_allclose(scaled.estimate(expert), vector * scale, rtol=1e-6)


# ---- what the encoder asks for -----------------------------------------------------------------


def test_a_vector_is_given_by_name_expert_and_width() -> None:
    importance = draw_importance()
    vector = importance.vector(UP, 1, 6)
    assert vector is not None and vector.shape == (6,) and vector.dtype == np.float32
    assert importance.vector("token_embd.weight", 0, 96) is None
    with pytest.raises(GGUFError, match=rf"{UP} is for 6 inputs, the model's has 8"):
        importance.vector(UP, 1, 8)
    with pytest.raises(GGUFError, match=rf"{UP} is for 3 experts, not 4"):
        importance.vector(UP, 3, 6)


def test_another_models_importance_is_refused_before_it_is_used() -> None:
    shapes = {OUT: (9, 4), UP: (3, 5, 6), "token_embd.weight": (640, 9)}
    importance = draw_importance()
    importance.check_shapes(shapes)
    for wrong, says in (
        ({OUT: (9, 4)}, f"{UP} is not among"),
        (shapes | {UP: (3, 5, 7)}, "is for 3 x 6 inputs .*, the model has 3 x 7"),
        (shapes | {UP: (4, 5, 6)}, "the model has 4 x 6"),
        (shapes | {OUT: (9, 5)}, f"{OUT} is for 1 x 4"),
    ):
        with pytest.raises(GGUFError, match=says):
            importance.check_shapes(wrong)


def test_coverage_names_the_empty_and_the_few() -> None:
    coverage = draw_importance((900, FEW_SAMPLES, FEW_SAMPLES - 1, 1, 0)).measure_coverage()
    assert (coverage.n_experts, coverage.n_empty, coverage.n_few) == (5, 1, 2)
    assert coverage.empty == {"blk.1": (4,)}
    assert coverage.few == {"blk.1": (2, 3)}
    assert draw_importance((900, 300)).measure_coverage().few == {}
