"""What the changes promise: exact ones change no logit, the refit is a least-squares fit."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.choices import Choices
from quantize.convert import execute_recipe, quantize_checkpoint
from quantize.encoders import encode_rows
from quantize.errors import ChoiceRefused, TypeMismatch
from quantize.families import ModelSpec, describe_model
from quantize.ggml import decode_rows, type_named
from quantize.gguf import open_gguf
from quantize.importance import Importance, Moments, write_importance
from quantize.pairs import Pair
from quantize.recipe import Recipe, plan_recipe
from quantize.safetensors import Checkpoint, open_checkpoint
from quantize.survey import choose_norm_factors
from quantize.tokenizer import read_tokenizer
from quantize.transform import (
    NONE,
    RIDGE,
    Transforms,
    balance_columns,
    choose_expert_scale,
    choose_neurons,
    deal_neurons,
    measure_contributions,
    refit_down,
)
from tests.llama import compute_logits
from tests.quantize.checkpoints import write_safetensors
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, draw_weights, make_checkpoint

TOKENS = np.arange(20, 84, dtype=np.int32)
UP, DOWN = "blk.2.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"


def draw_importance(model: ModelSpec, path: Path) -> Importance:
    """Write an importance matrix with inputs of very different sizes for every matrix."""
    rng = np.random.Generator(np.random.PCG64(3))
    matrices = {}
    for spec in model.tensors:
        if spec.matrix and spec.name != "token_embd.weight":
            n_experts, width = len(spec.sources), spec.source_shape[-1]
            means = np.exp(rng.standard_normal((n_experts, width)))
            matrices[spec.name] = Moments(means * 1000, np.full(n_experts, 1000.0))
    write_importance(path, Importance(matrices, datasets=("drawn",)))
    return replace(Importance(matrices), path=path)


def plan_f32(checkpoint: Checkpoint, choices: Choices, folder: Path, transforms: Transforms) -> Any:
    """Plan an f32 file, which rounds nothing, with all that a coarse type would be changed by."""
    model = describe_model(checkpoint, choices)
    vocabulary = read_tokenizer(checkpoint.folder, model.n_embeddings, checkpoint.config)
    importance = draw_importance(model, folder / "drawn.imatrix")
    recipe = plan_recipe(
        checkpoint, model, vocabulary, {}, importance=importance, transforms=transforms, name="f32"
    )
    by_name = {tensor.spec.name: tensor for tensor in recipe.tensors}
    coarse = [replace(t, type=type_named("q8_0")) if t.spec.matrix else t for t in recipe.tensors]
    factors = choose_norm_factors(checkpoint, replace(recipe, tensors=tuple(coarse)))
    pairs = tuple(
        Pair(up, by_name[up.spec.feeds], group=8 if transforms.deal_neurons else None)
        for up in recipe.tensors
        if up.spec.feeds
    )
    return replace(recipe, pairs=pairs, norm_factors=factors)


def only(name: str) -> Transforms:
    """One change alone."""
    return replace(NONE, **{name: True})


@pytest.mark.parametrize("config", [DENSE, ODD_EXPERTS, ODD_EXPERTS | {"moe_latent_size": None}])
@pytest.mark.parametrize("transforms", [
    only("scale_neurons"), only("deal_neurons"), only("scale_norms"), Transforms(),
], ids=["scale", "deal", "norms", "all"])  # fmt: skip
def test_exact_changes_leave_the_logits(
    config: dict[str, Any], transforms: Transforms, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "in", config, "F32", seed=5)
    quantize_checkpoint(source, tmp_path / "plain.gguf", "f32")
    plain = compute_logits(tmp_path / "plain.gguf", TOKENS)
    with open_checkpoint(source) as checkpoint:
        recipe: Recipe = plan_f32(checkpoint, Choices(types={}), tmp_path, transforms)
        execute_recipe(checkpoint, recipe, tmp_path / "changed.gguf")
    changed = compute_logits(tmp_path / "changed.gguf", TOKENS)
    # Runs with other thread counts differ by nothing at all, so the measure is one token at a time:
    # other sums, 4e-7 of the largest logit. Here each weight is rounded once or twice more.
    alone = compute_logits(tmp_path / "plain.gguf", TOKENS, 1)
    assert 0 < np.abs(plain - changed).max() < 6 * np.abs(plain - alone).max()
    assert not same_weights(tmp_path / "plain.gguf", tmp_path / "changed.gguf")


def same_weights(left: Path, right: Path) -> bool:
    with open_gguf(left) as one, open_gguf(right) as other:
        return all(np.array_equal(one.read(name), other.read(name)) for name in one.tensors)


@pytest.mark.parametrize(
    "choices",
    [
        Choices({}, n_embd=256),
        Choices({}, expert_widths={2: 320, 6: 512}),
        Choices({}, n_embd=240, expert_widths={6: 300}, shared_width=512),
    ],
)
def test_wider_layers_of_different_widths_leave_the_logits(
    choices: Choices, tmp_path: Path
) -> None:
    quantize_checkpoint(TINY, tmp_path / "plain.gguf", "f32")
    quantize_checkpoint(TINY, tmp_path / "wide.gguf", choices=choices)
    plain = compute_logits(tmp_path / "plain.gguf", TOKENS)
    wide = compute_logits(tmp_path / "wide.gguf", TOKENS)
    assert np.abs(plain - wide).max() < 2e-5 * np.abs(plain).max()
    with open_gguf(tmp_path / "wide.gguf") as file:
        widths = choices.expert_widths
        for layer in (2, 6):
            width = widths.get(layer, 288)
            assert file.tensors[f"blk.{layer}.ffn_up_exps.weight"].shape[1] == width
        said = file.metadata["nemotron_h_moe.expert_feed_forward_length"]
        if widths:
            assert [said[2], said[6]] == [widths.get(2, 288), widths.get(6, 288)]
        else:
            assert said == 288


def test_trimmed_experts_keep_the_neurons_that_contribute(tmp_path: Path) -> None:
    with open_checkpoint(TINY) as checkpoint:
        model = describe_model(checkpoint)
        importance = draw_importance(model, tmp_path / "drawn.imatrix")
        expert = [checkpoint.read_f32(s.sources[3]) for s in model.tensors if s.name in (UP, DOWN)]
    choices = Choices({}, expert_widths={2: 256})
    quantize_checkpoint(
        TINY, tmp_path / "out.gguf", choices=choices, importance=importance.path, transforms=NONE
    )
    squares = importance.vector(DOWN, 3, 288)
    assert squares is not None
    ranked = np.argsort([-s * np.dot(c, c) for s, c in zip(squares, expert[1].T, strict=True)])
    kept = sorted(ranked[:256])
    with open_gguf(tmp_path / "out.gguf") as file:
        up, down = (
            file.read(name).view(np.float32).reshape(file.tensors[name].shape)
            for name in (UP, DOWN)
        )
    assert up.shape == (16, 256, 224) and down.shape == (16, 224, 256)
    assert np.array_equal(up[3], expert[0][kept])
    assert np.array_equal(down[3], expert[1][:, kept])
    assert np.isfinite(compute_logits(tmp_path / "out.gguf", TOKENS)).all()


def test_a_trim_without_importance_says_so(tmp_path: Path) -> None:
    result = quantize_checkpoint(
        TINY, tmp_path / "out.gguf", choices=Choices({}, expert_widths={6: 280})
    )
    assert any("by their weights alone" in note for note in result.notes)


def test_importance_moves_with_the_neurons(tmp_path: Path) -> None:
    """The error of every kept neuron's column, weighed as it was, falls like a plain encoding's."""
    with open_checkpoint(TINY) as checkpoint:
        importance = draw_importance(describe_model(checkpoint), tmp_path / "drawn.imatrix")
    choices = Choices({UP: "f16", DOWN: "q4_0"})
    errors = []
    for transforms in (NONE, Transforms()):
        path = tmp_path / "out.gguf"
        quantize_checkpoint(
            TINY, path, choices=choices, importance=importance.path, transforms=transforms
        )
        errors.append(measure_output_errors(path, importance))
    assert (errors[1] < 0.9 * errors[0]).all()


def measure_output_errors(path: Path, importance: Importance) -> np.ndarray:
    """Weighted squared error of `down` of each expert, neurons and factors found from `up`."""
    with open_checkpoint(TINY) as checkpoint, open_gguf(path) as file:
        specs = {spec.name: spec for spec in describe_model(checkpoint).tensors}
        up, down = (
            decode_rows(file.read(n), file.tensors[n].type, file.tensors[n].shape[-1]).reshape(
                file.tensors[n].shape
            )
            for n in (UP, DOWN)
        )
        norm = file.read("blk.2.attn_norm.weight").view(np.float32)
        norm = norm / checkpoint.read_f32(specs["blk.2.attn_norm.weight"].sources[0])
        errors = []
        for expert in range(16):
            original = [checkpoint.read_f32(specs[n].sources[expert]) for n in (UP, DOWN)]
            rows = up[expert] * norm
            likeness = (rows @ original[0].T) / np.linalg.norm(original[0], axis=1)
            order = likeness.argmax(1)
            assert sorted(order) == list(range(288))
            factors = np.linalg.norm(rows, axis=1) / np.linalg.norm(original[0][order], axis=1)
            restored = down[expert] * np.square(factors)
            weights = importance.matrices[DOWN].sums[expert][order]
            errors.append((np.square(restored - original[1][:, order]) * weights).sum())
    return np.array(errors)


def test_the_refit_is_the_least_squares_fit() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    inputs = rng.standard_normal((4000, 12)) @ rng.standard_normal((12, 12))
    down = rng.standard_normal((5, 12)).astype(np.float32)
    kept = np.array([0, 2, 3, 5, 7, 8, 11])
    refitted = refit_down(down, inputs.T @ inputs / 4000, kept)
    # The same, as a regression on the samples; the ridge is rows that ask for no change.
    ridge = np.sqrt(RIDGE * np.square(inputs).sum() / 12) * np.eye(len(kept))
    design = np.concatenate([inputs[:, kept], ridge])
    wanted = np.concatenate([inputs @ down.T.astype(float), ridge @ down[:, kept].T])
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    assert np.allclose(refitted, solution.T, rtol=1e-4, atol=1e-5)
    losses = [np.square(inputs @ down.T - inputs[:, kept] @ d.T).sum() for d in
              (down[:, kept], refitted)]  # fmt: skip
    assert losses[1] < 0.7 * losses[0]


def test_dealing_spreads_the_important() -> None:
    contributions = np.array([9.0, 8, 7, 0, 0, 0, 5, 0, 0, 4, 3])
    order = deal_neurons(contributions, 5)
    assert sorted(order) == list(range(11)) and order[10] == 10
    groups = contributions[order[:10]].reshape(2, 5)
    assert sorted(groups.sum(1)) == [13 + 0, 20]  # 9, 7, 4 and 8, 5
    assert choose_neurons(contributions, 3).tolist() == [0, 1, 2]
    assert choose_neurons(np.ones(4), 2).tolist() == [0, 1]


def test_contributions_match_samples() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    up, down = (rng.standard_normal(s).astype(np.float32) for s in ((6, 40), (8, 6)))
    up *= np.arange(1, 7, dtype=np.float32)[:, None]
    outputs = np.square(np.maximum(rng.standard_normal((200_000, 40)) @ up.T, 0))
    squares = np.square(outputs).mean(0).astype(np.float32)
    expected = [np.square(np.outer(outputs[:9999, i], down[:, i])).sum(1).mean() for i in range(6)]
    known = measure_contributions(up, down, squares)
    blind = measure_contributions(up, down, None)
    assert np.allclose(known / known.sum(), expected / np.sum(expected), atol=0.03)
    assert np.allclose(blind / blind.sum(), known / known.sum(), atol=0.02)


@pytest.mark.parametrize("name", ["q2_0", "q4_0", "iq3_s", "q4_k"])
def test_balanced_columns_encode_better(name: str) -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    squares = np.exp(rng.standard_normal(512))
    sizes = np.exp(0.3 * rng.standard_normal(512))
    rows = (rng.standard_normal((16, 512)) * sizes * 0.02).astype(np.float32)
    divisors = balance_columns(np.sqrt(np.square(rows, dtype=float).mean(0)), squares)
    errors = []
    for d in (np.ones(512), divisors):
        changed, weights = (rows / d).astype(np.float32), (squares * d**2).astype(np.float32)
        block_type = type_named(name)
        encoded = np.empty(16 * block_type.row_bytes(512), np.uint8)
        encode_rows(changed, block_type, encoded, weights)
        restored = decode_rows(encoded, block_type, 512) * d
        errors.append((np.square(restored - rows) * squares).sum())
    assert errors[1] < 0.9 * errors[0]


def test_small_experts_get_an_nvfp4_scale_of_their_own(tmp_path: Path) -> None:
    config = ODD_EXPERTS | {"moe_intermediate_size": 64, "moe_latent_size": 64}
    source = make_checkpoint(tmp_path / "in", config, "F32", seed=5)
    weights = draw_weights(config, 5)
    # As small as those of a large model, 0.02, and smaller.
    small = {n: ("F32", w * 0.1 if ".experts." in n else w) for n, w in weights.items()}
    write_safetensors(source / "model.safetensors", small)
    name = "blk.0.ffn_up_exps"
    choices = Choices({f"{name}.weight": "nvfp4", "blk.0.ffn_down_exps.weight": "nvfp4"})
    errors = []
    with open_checkpoint(source) as checkpoint:
        spec = next(s for s in describe_model(checkpoint).tensors if s.name == f"{name}.weight")
        exact = np.stack([checkpoint.read_f32(s) for s in spec.sources])
    for transforms in (NONE, only("scale_experts")):
        path = tmp_path / "out.gguf"
        quantize_checkpoint(source, path, choices=choices, transforms=transforms)
        with open_gguf(path) as file:
            decoded = decode_rows(file.read(f"{name}.weight"), type_named("nvfp4"), 64)
            scale = np.ones(12, np.float32)
            if f"{name}.scale" in file.tensors:
                scale = file.read(f"{name}.scale").view(np.float32)
        restored = decoded.reshape(exact.shape) * scale[:, None, None]
        errors.append(np.square(restored - exact).sum() / np.square(exact).sum())
    assert errors[1] < 0.0072 < errors[0]


def test_llama_cpp_applies_the_scales(tmp_path: Path) -> None:
    types = {f"blk.{i}.ffn_{p}_exps.weight": "nvfp4" for i in (2, 6) for p in ("up", "down")}
    choices = Choices(types, n_embd=256, expert_widths={2: 320, 6: 320})
    quantize_checkpoint(TINY, tmp_path / "exact.gguf", "f32")
    quantize_checkpoint(
        TINY, tmp_path / "out.gguf", choices=choices, transforms=only("scale_experts")
    )
    with open_gguf(tmp_path / "out.gguf") as file:
        scales = [t for t in file.tensors if t.endswith(".scale")]
        assert sorted(scales) == sorted(n.replace("weight", "scale") for n in types)
        values = np.concatenate([file.read(n).view(np.float32) for n in scales])
        assert (values < 0.25).all() and np.array_equal(np.exp2(np.rint(np.log2(values))), values)
    exact = compute_logits(tmp_path / "exact.gguf", TOKENS)
    scaled = compute_logits(tmp_path / "out.gguf", TOKENS)
    # Without the factors the experts would be louder by orders of magnitude.
    assert np.abs(scaled - exact).mean() < 0.1 * np.abs(exact).mean()


def test_the_scale_leaves_room_below_the_largest() -> None:
    for largest in (1e-20, 0.02, 1.0, 6.0, 5e4):
        scale = choose_expert_scale(largest)
        assert 64 <= largest / scale / 6 < 128
    assert choose_expert_scale(0) == 1


@pytest.mark.parametrize(
    ("choices", "error", "says"),
    [
        (Choices({}, n_embd=192), ChoiceRefused, "n_embd 192 is less than"),
        (Choices({}, expert_widths={1: 256}), ChoiceRefused, "layer 1 has no routed experts"),
        (Choices({}, expert_widths={2: 0}), ChoiceRefused, "experts of 0 neurons"),
        (Choices({"blk.9.x": "q8_0"}), ChoiceRefused, "no such tensor"),
        (Choices({"blk.0.attn_norm.weight": "q8_0"}), ChoiceRefused, "wants this tensor in f32"),
        (Choices({UP: "q4_k"}), TypeMismatch, "rows of 224"),
    ],
)
def test_choices_that_cannot_be(
    choices: Choices, error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        quantize_checkpoint(TINY, tmp_path / "out.gguf", choices=choices)
    assert not list(tmp_path.iterdir())


def test_transforms_are_all_flags() -> None:
    assert {f.type for f in fields(Transforms)} == {"bool"}
