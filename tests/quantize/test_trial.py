"""Trial encodings: against a decoder that we did not write, and against the whole of a matrix."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantize.costs import AssumedSensitivity
from quantize.encoders import encode_rows
from quantize.families import describe_model
from quantize.ggml import type_named
from quantize.importance import Importance, Moments
from quantize.safetensors import open_checkpoint
from quantize.trial import make_costs, measure_error, measure_trims, try_types
from tests.quantize.models import TINY

UP, DOWN = "blk.2.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"


def draw(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "iq4_nl"])
def test_errors_are_those_of_the_gguf_packages_decoder(name: str) -> None:
    block_type = type_named(name)
    samples = [(draw(i, 3, 512), np.exp(draw(9 + i, 512)), float(1 + i)) for i in range(3)]
    error = energy = 0.0
    for rows, weights, use in samples:
        encoded = np.empty(3 * block_type.row_bytes(512), np.uint8)
        encode_rows(rows, block_type, encoded, weights)
        decoded = gguf.quants.dequantize(
            encoded.reshape(3, -1), gguf.GGMLQuantizationType[name.upper()]
        )
        error += use * (weights * (decoded - rows).astype(np.float64) ** 2).sum()
        energy += use * (weights * rows.astype(np.float64) ** 2).sum()
    assert measure_error(samples, block_type) == pytest.approx(error / energy, rel=1e-6)


def test_columns_beyond_the_last_block_are_left_out_and_short_rows_filled() -> None:
    rows, q4_k = draw(1, 4, 300), type_named("q4_k")
    assert measure_error([(rows, None, 1.0)], q4_k) == measure_error(
        [(rows[:, :256], None, 1)], q4_k
    )
    short = np.ascontiguousarray(rows[:, :100])
    padded = np.concatenate([short, np.zeros((4, 156), np.float32)], axis=1)
    assert measure_error([(short, None, 1.0)], q4_k) == measure_error([(padded, None, 1.0)], q4_k)


def make_importance() -> Importance:
    """One stack of experts of tiny, of which expert 3 alone is ever used."""
    counts = np.zeros(16)
    counts[3] = 100.0
    matrices = {
        UP: Moments(np.square(draw(5, 16, 224).astype(np.float64)) * counts[:, None], counts),
        DOWN: Moments(np.square(draw(6, 16, 288).astype(np.float64)) * counts[:, None], counts),
    }
    mass = np.zeros(16)
    mass[3] = 50.0
    return Importance(matrices, {"blk.2": mass})


def test_only_experts_that_are_used_count() -> None:
    importance, types = make_importance(), ("q4_0", "q2_0")
    with open_checkpoint(TINY) as checkpoint:
        model = describe_model(checkpoint)
        tried = try_types(checkpoint, model, types, importance)
        source = next(t for t in model.tensors if t.name == UP).sources[3]
        rows = checkpoint.read_f32(source)
    weights = importance.matrices[UP].estimate(3)
    for name in types:
        whole = measure_error([(rows[:, :224], weights, 1.0)], type_named(name))
        # A few rows of that one expert, against all of them.
        assert tried[UP][name] == pytest.approx(whole, rel=0.4)


def test_a_sample_of_tiny_is_near_the_whole(tmp_path: Path) -> None:
    with open_checkpoint(TINY) as checkpoint:
        model = describe_model(checkpoint)
        seen: list[int] = []
        tried = try_types(
            checkpoint, model, ("q4_0",), on_progress=lambda _stage, done, _total: seen.append(done)
        )
        assert seen == list(range(1, len(tried) + 1))
        assert set(tried) == {t.name for t in model.tensors if t.matrix}
        assert tried == try_types(checkpoint, model, ("q4_0",))
        for tensor in model.tensors:
            if tensor.matrix:
                rows = [checkpoint.read_f32(source) for source in tensor.sources]
                whole = measure_error([(r, None, 1.0) for r in rows], type_named("q4_0"))
                assert tried[tensor.name]["q4_0"] == pytest.approx(whole, rel=0.3)


def test_types_that_need_importance_are_not_tried_without() -> None:
    with open_checkpoint(TINY) as checkpoint:
        model = describe_model(checkpoint)
        tried = try_types(checkpoint, model, ("iq2_xxs", "q4_0"), make_importance())
    assert set(tried[UP]) == {"iq2_xxs", "q4_0"}
    assert set(tried["output.weight"]) == {"q4_0"}


def test_trims_lose_what_the_least_active_neurons_of_each_expert_put_out() -> None:
    squares = np.array([[4.0, 1.0, 0.0, 5.0], [1.0, 1.0, 2.0, 6.0]])
    counts = np.array([1e9, 1e9])  # so that the prior does not matter
    lost = measure_trims(Moments(squares * counts[:, None], counts), np.array([3.0, 1.0]))
    # Ascending: 0 1 4 5 (used three times as much) and 1 1 2 6; 40 in all.
    assert lost == pytest.approx([0, 1 / 40, 5 / 40, 19 / 40, 1], abs=1e-5)


def test_costs_know_what_the_importance_says() -> None:
    importance = make_importance()
    costs = make_costs(AssumedSensitivity(frozenset([UP, DOWN])), importance, {})
    assert costs.weighted == {UP, DOWN}
    assert set(costs.contributions) == {2}
    own = np.sort(importance.matrices[DOWN].estimate(3).astype(np.float64))
    assert costs.find_trim_error(2, 256, 288) == pytest.approx(own[:32].sum() / own.sum())
