"""Second moments and disturbed matrices: what the engine does equals arithmetic in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localcascade.engine.calibrate import collect_moments, cut_chunks, list_stacks, plan_passes
from localcascade.engine.client import Engine
from localcascade.errors import ConfigError, EngineDied, OutOfBudget
from quantize.gguf import open_gguf
from quantize.importance import join_moments
from quantize.moments import Stack, read_moments, unpack_triangle
from tests.localcascade.calibrations import N_CTX, draw_tokens, write_model
from tests.localcascade.test_engine_calibrate import choose_experts

TOKENS = draw_tokens()
UP, DOWN = "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"
TEXT = "Twelve and thirty make forty-two.\n" * 30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("moments"))


def open_engine(path: Path, n_ctx: int = N_CTX) -> Engine:
    return Engine(path, n_ctx=n_ctx, n_threads=1, collects=True)


def read_weights(path: Path, name: str) -> np.ndarray:
    with open_gguf(path) as file:
        flat = file.read(name).reshape(-1).view(np.float32)
        return flat.reshape(file.tensors[name].shape).astype(np.float64)


def read_first_inputs(path: Path) -> np.ndarray:
    """What the first layer's experts read, [n_tokens, width]."""
    x = read_weights(path, "token_embd.weight")[TOKENS]
    gain = read_weights(path, "blk.0.attn_norm.weight")
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    inputs: np.ndarray = normed @ read_weights(path, "blk.0.ffn_latent_down.weight").T
    return inputs


# ---- second moments ----------------------------------------------------------------------------


def test_outer_products_equal_a_forward_pass_and_the_squares(path: Path) -> None:
    with open_engine(path) as engine:
        for chunk in cut_chunks(TOKENS, N_CTX, None):
            engine.collect(chunk)
        squares, _ = join_moments(engine.read_inputs())
        engine.watch([UP, DOWN])
        for chunk in cut_chunks(TOKENS, N_CTX, None):
            engine.collect(chunk)
        shared, n_shared = engine.read_outer(UP)
        outers = [engine.read_outer(DOWN, expert) for expert in range(12)]
        after, _ = join_moments(engine.read_inputs())
    latent = read_first_inputs(path)
    expected = latent.T @ latent
    assert n_shared == len(TOKENS)
    np.testing.assert_allclose(
        unpack_triangle(shared), expected, rtol=1e-4, atol=1e-5 * expected.max()
    )
    for expert, (packed, count) in enumerate(outers):
        matrix = unpack_triangle(packed)
        assert count == squares[DOWN].counts[expert]
        sums = squares[DOWN].sums[expert]
        np.testing.assert_allclose(matrix.diagonal(), sums, rtol=1e-5, atol=1e-6 * sums.max())
        assert np.linalg.eigvalsh(matrix)[0] > -1e-5 * sums.max()
    # What `down` reads is relu squared of what `up` makes of the shared input.
    hidden = np.maximum(latent @ read_weights(path, UP)[3].T, 0) ** 2
    routed = hidden[find_routed(path, 3)]
    assert len(routed) == outers[3][1]
    routed = routed.T @ routed
    np.testing.assert_allclose(
        unpack_triangle(outers[3][0]), routed, rtol=1e-3, atol=1e-4 * routed.max()
    )
    np.testing.assert_array_equal(after[UP].sums, squares[UP].sums)


def find_routed(path: Path, expert: int) -> np.ndarray:
    """The tokens that the first layer's router sends to an expert, by the model's own rule."""
    x = read_weights(path, "token_embd.weight")[TOKENS]
    gain = read_weights(path, "blk.0.attn_norm.weight")
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    scores = 1 / (1 + np.exp(-normed @ read_weights(path, "blk.0.ffn_gate_inp.weight").T))
    chosen = choose_experts(scores + read_weights(path, "blk.0.exp_probs_b.bias"))
    return np.flatnonzero((chosen == expert).any(axis=1))


def test_a_file_is_the_same_in_one_pass_and_in_many(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    stacks = list_stacks(path)
    # All that an importance matrix has but the routers, which are not quantized.
    with open_engine(path, 64) as engine:
        engine.collect(TOKENS[:40])
        squares, _ = join_moments(engine.read_inputs())
    quantized = {name for name in squares if "gate_inp" not in name}
    assert {stack.name for stack in stacks} == quantized
    routed = {stack.name: stack.n_matrices for stack in stacks if stack.n_matrices > 1}
    assert [s for s in stacks if s.name not in routed] == list_stacks(path, has_routed=False)
    assert routed == {"blk.0.ffn_down_exps.weight": 12, "blk.3.ffn_down_exps.weight": 12}
    files, told = [], []
    for passes in ([stacks], [[stack] for stack in stacks]):
        with open_engine(path, 64) as engine:
            n_tokens = collect_moments(
                engine, tmp_path / "m.gguf", passes, [tmp_path / "t.txt"], identity="a",
                n_ctx=64, on_progress=lambda *progress: told.append(progress),
            )  # fmt: skip
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1]
    assert told[-1] == ("moments", *(2 * [len(stacks) * n_tokens]))
    with read_moments(tmp_path / "m.gguf") as moments, open_gguf(path) as file:
        moments.check_shapes({name: tensor.shape for name, tensor in file.tensors.items()})
        assert moments.count(UP) == n_tokens
        assert sum(moments.count(DOWN, expert) for expert in range(12)) == 3 * n_tokens


def test_passes_keep_to_the_memory() -> None:
    stacks = [Stack(f"blk.{i}.ffn_down_exps.weight", 2, 8) for i in range(5)]
    assert stacks[0].square_bytes == 512
    assert [len(group) for group in plan_passes(stacks, 1100)] == [2, 2, 1]
    assert [stack for group in plan_passes(stacks, 10**9) for stack in group] == stacks
    with pytest.raises(OutOfBudget) as caught:
        plan_passes(stacks, 511)
    assert (caught.value.need_bytes, caught.value.have_bytes) == (512, 511)


def test_layers_are_chosen_and_those_beyond_the_last_refused(path: Path) -> None:
    chosen = {stack.name for stack in list_stacks(path, {3, 5})}
    assert {"blk.3.ffn_up_exps.weight", "blk.3.ffn_latent_down.weight"} < chosen
    assert all(name.startswith("blk.3.") for name in chosen)
    with pytest.raises(ConfigError, match="its layers are 0 to 4"):
        list_stacks(path, {7, 8})


class MortalEngine(Engine):
    """Loses its worker once all is read."""

    def collect(self, *arguments: object, **options: object) -> None:
        super().collect(*arguments, **options)  # type: ignore[arg-type]
        self.close()


def test_sums_lost_with_a_worker_leave_no_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("12 + 30 = 42\n")
    passes = [list_stacks(path)]
    with (
        MortalEngine(path, n_ctx=64, n_threads=1, collects=True) as engine,
        pytest.raises(EngineDied, match="lost what it had collected"),
    ):
        collect_moments(
            engine, tmp_path / "m.gguf", passes, [tmp_path / "t.txt"], identity="a", n_ctx=64
        )
    assert not (tmp_path / "m.gguf").exists()


# ---- noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", ["output.weight", "blk.3.ffn_down_exps.weight"])
def test_noise_is_repeatable_and_over_when_told(path: Path, matrix: str) -> None:
    with open_engine(path) as engine:
        n_variances = 12 if "exps" in matrix else 1
        clean = engine.logits(TOKENS[:40])
        engine.disturb(matrix, [1e-3] * n_variances, 1)
        first = engine.logits(TOKENS[:40])
        engine.disturb(matrix, [1e-3] * n_variances, 1)
        again = engine.logits(TOKENS[:40])
        engine.disturb(matrix, [1e-3] * n_variances, 2)
        other = engine.logits(TOKENS[:40])
        engine.watch(())
        after = engine.logits(TOKENS[:40])
    np.testing.assert_array_equal(clean, after)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - clean).max() > 100 * np.abs(after - clean).max()
    assert np.abs(first - other).max() > 0


def test_noise_is_as_large_as_errors_of_the_weights_would_make_it(path: Path) -> None:
    """On the output matrix it is seen itself: its variance is v times x squared."""
    with open_engine(path) as engine:
        clean = engine.logits(TOKENS[:200])
        engine.collect(TOKENS[:200])
        squares, _ = join_moments(engine.read_inputs())
        noises = []
        for seed in range(8):
            engine.disturb("output.weight", [0.01], seed)
            noises.append(engine.logits(TOKENS[:200]).astype(np.float64) - clean)
    mean_square = squares["output.weight"].sums.sum() / squares["output.weight"].counts.sum()
    expected = 0.01 * mean_square * clean.size
    assert np.mean([(noise**2).sum() for noise in noises]) == pytest.approx(expected, rel=0.2)


def test_equal_inputs_get_equal_noise(path: Path) -> None:
    """Errors of weights do not change from token to token, as noise of the results would."""
    with open_engine(path) as engine:
        clean = engine.logits(TOKENS[:1])
        engine.disturb("output.weight", [0.01], 5)
        first = engine.logits(TOKENS[:1]) - clean
        second = engine.logits(TOKENS[:1]) - clean
    assert np.abs(first).max() > 0
    np.testing.assert_array_equal(first, second)


def test_only_the_experts_that_are_named_are_disturbed(path: Path) -> None:
    """In the last layer with experts, tokens that pass by expert 0 stay as they were."""
    with open_engine(path) as engine:
        engine.watch(["blk.3.ffn_down_exps.weight"])
        engine.collect(TOKENS[:60])
        _, n_routed = engine.read_outer("blk.3.ffn_down_exps.weight", 0)
        clean = engine.logits(TOKENS[:60])
        engine.disturb("blk.3.ffn_down_exps.weight", [1.0] + 11 * [0.0], 1)
        moved = np.abs(engine.logits(TOKENS[:60]) - clean).max(axis=1) > 1e-4
    first = np.flatnonzero(moved)[0]  # whatever comes after may be moved through the state
    assert 0 < n_routed < 60 and moved.sum() >= n_routed
    assert not moved[:first].any()
