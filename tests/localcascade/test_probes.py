"""Sensitivities: their probes predict what encodings of a trained model cost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine.client import Engine
from localcascade.errors import EvaluationError
from localcascade.evaluate.divergence import score_tokens
from localcascade.evaluate.probes import choose_windows, measure_squares, probe_matrices
from quantize.convert import quantize_checkpoint
from quantize.ggml import decode_rows, encode_rows, type_named
from quantize.gguf import open_gguf
from quantize.importance import Moments
from tests.quantize.models import TINY

CHOSEN = (
    "blk.0.ssm_in.weight", "blk.1.attn_q.weight", "blk.2.ffn_up_exps.weight",
    "blk.6.ffn_down_shexp.weight", "output.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probes") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "f32", n_threads=1)
    return path


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with Engine(path, n_ctx=256, n_threads=1, collects=True) as engine:
        yield engine


def encode_one(path: Path, name: str, output: Path) -> float:
    """Put a matrix's q4_0 into a copy of the model; returns its relative squared error."""
    shutil.copy(path, output)
    block_type = type_named("q4_0")
    with open_gguf(path) as file, output.open("r+b") as copy:
        tensor = file.tensors[name]
        weights = file.read(name).reshape(-1).view(np.float32).reshape(-1, tensor.shape[-1]).copy()
        room = np.empty(len(weights) * block_type.row_bytes(tensor.shape[-1]), np.uint8)
        encode_rows(weights, block_type, room)
        decoded = decode_rows(room, block_type, tensor.shape[-1])
        copy.seek(tensor.offset)
        copy.write(decoded.tobytes())
    return float(np.square(decoded - weights).mean() / np.square(weights).mean())


def test_probes_predict_what_encoding_a_matrix_costs(
    path: Path, engine: Engine, tmp_path: Path
) -> None:
    sensitivity = probe_matrices(engine, path, n_tokens=128)
    text = "Anna has 12 apples and gives 5 away. How many are left? 12 - 5 = 7.\n" * 8
    tokens = engine.tokenize(text)[:256]
    clean = engine.logits(tokens)
    predicted, measured = [], []
    for name in CHOSEN:
        error = encode_one(path, name, tmp_path / "one.gguf")
        with Engine(tmp_path / "one.gguf", n_ctx=256, n_threads=1) as encoded:
            logits = encoded.logits(tokens)
        measured.append(score_tokens(logits, clean, np.array(tokens)).kl.mean())
        predicted.append(sensitivity.factor(name) * error)
    # They span a factor of a hundred; the errors themselves one of two.
    correlation = np.corrcoef(np.log(predicted), np.log(measured))[0, 1]
    assert correlation > 0.7, (predicted, measured)
    assert max(measured) > 10 * min(measured)


def test_every_matrix_of_the_model_is_probed_and_told(path: Path, engine: Engine) -> None:
    told: list[tuple[str, int, int]] = []
    sensitivity = probe_matrices(
        engine, path, n_tokens=1, variances=(0.05,),
        on_progress=lambda *progress: told.append(progress),
    )  # fmt: skip
    with open_gguf(path) as file:
        matrices = {
            name
            for name, tensor in file.tensors.items()
            if len(tensor.shape) > 1 and not name.endswith(("ssm_a", "ssm_d"))
            and not {"norm", "conv1d", "token"} & set(name.replace(".", "_").split("_"))
        }  # fmt: skip
    assert set(sensitivity.factors) == matrices
    assert told[0] == ("probe", 0, len(matrices)) and told[-1][1] == len(matrices)
    assert sensitivity.n_tokens == 192
    assert sensitivity.model == "tiny.gguf"
    assert all(factor >= 0 for factor in sensitivity.factors.values())
    engine.watch(())


def test_squares_weigh_a_column_by_its_input(path: Path) -> None:
    name = "blk.2.ffn_up_exps.weight"
    with open_gguf(path) as file:
        weights = file.read(name).reshape(-1).view(np.float32).reshape(16, -1, 224)
        squares = np.square(weights.astype(np.float64)).mean(axis=1)
        even = Moments(np.ones((16, 224)), np.ones(16))
        sampled = measure_squares(path, name, even)
        assert sampled.shape == (16,)
        np.testing.assert_allclose(sampled, squares.mean(axis=1), rtol=1e-5)
        sums = np.full((1, 224), 1e-9)
        sums[0, 7] = 1.0  # of a plain matrix, the output, one column is used
        used = measure_squares(path, "output.weight", Moments(sums, np.ones(1)))
        output = file.read("output.weight").reshape(-1).view(np.float32).reshape(-1, 224)
        np.testing.assert_allclose(used, np.square(output[::2, 7]).mean(), rtol=0.2)


def test_windows_are_spread_over_the_text() -> None:
    tokens = list(range(256 * 10 + 3))
    windows = choose_windows(tokens, 400)
    assert [window[0] for window in windows] == [0, 3 * 256, 6 * 256]
    assert all(len(window) == 256 for window in windows)
    assert len(choose_windows(tokens, 10**6)) == 10
    with pytest.raises(EvaluationError, match="255 tokens, but a probe needs 256"):
        choose_windows(tokens[:255], 10)
