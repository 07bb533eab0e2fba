"""The table of experts that a conversion leaves in the file, against the file's own weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.expert_errors import ROW_STRIDE, read_experts
from quantize.gguf import open_gguf
from quantize.importance import Importance, Moments, write_importance
from quantize.quality import read_quality
from quantize.transform import NONE
from tests.quantize.models import TINY

STACKS = ("ffn_down_exps", "ffn_up_exps")


def read_stacks(path: Path) -> dict[str, np.ndarray]:
    """The experts' weights as the gguf package decodes them."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
        if any(stack in tensor.name for stack in STACKS)
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_the_table_is_what_the_gguf_package_decodes(tmp_path: Path, weighted: bool) -> None:
    exact, coarse = tmp_path / "exact.gguf", tmp_path / "coarse.gguf"
    quantize_checkpoint(TINY, exact, "f32")
    original = read_stacks(exact)
    rng = np.random.default_rng(5)
    moments = {
        name: Moments(
            np.exp(rng.standard_normal((len(stack), stack.shape[-1]))) * 1000,
            np.arange(len(stack)) + 900.0,
        )
        for name, stack in original.items()
    }
    importance = Importance(moments, n_chunks=1, chunk_tokens=512)
    write_importance(tmp_path / "imatrix.gguf", importance)
    given = tmp_path / "imatrix.gguf" if weighted else None
    quantize_checkpoint(TINY, coarse, "q4_0", importance=given)
    decoded = read_stacks(coarse)
    with open_gguf(coarse) as file:
        table = read_experts(file)
        assert read_quality(file) is None
        summary = {k: v for k, v in file.metadata.items() if k.startswith("localcascade.imatrix.")}
    assert len(table) == sum(map(len, original.values())) > 0
    n_experts = sum(len(stack) for name, stack in original.items() if "_up_" in name)
    assert summary == (
        {
            "localcascade.imatrix.tokens": 512,
            "localcascade.imatrix.experts": n_experts,
            "localcascade.imatrix.experts_empty": 0,
            "localcascade.imatrix.experts_few": 0,
        }
        if weighted
        else {}
    )
    for row in table:
        name = f"blk.{row.layer}.ffn_{row.projection}_exps.weight"
        before, after = (
            stack[name][row.expert][::ROW_STRIDE].astype(np.float64)
            for stack in (original, decoded)
        )
        factor = moments[name].estimate(row.expert).astype(np.float64) if weighted else 1.0
        wanted = (factor * (before - after) ** 2).sum() / (factor * before**2).sum()
        assert row.error == pytest.approx(wanted, rel=1e-4)
        assert row.samples == (900 + row.expert if weighted else None)
        assert row.type == "q4_0"


def test_an_exact_file_has_no_errors(tmp_path: Path) -> None:
    quantize_checkpoint(TINY, tmp_path / "exact.gguf", "bf16")
    with open_gguf(tmp_path / "exact.gguf") as file:
        assert {row.error for row in read_experts(file)} == {0.0}


@dataclass(frozen=True)
class LowRank:
    """Second moments of inputs of which all vary together, of every plain and stacked matrix."""

    path: Path
    widths: dict[str, int]

    def matrix(self, tensor_name: str, expert: int = 0) -> np.ndarray | None:
        rng = np.random.default_rng(expert)
        width = self.widths[tensor_name]
        inputs = rng.standard_normal((4 * width, 12)) @ rng.standard_normal((12, width))
        inputs += 0.2 * rng.standard_normal(inputs.shape)
        return np.asarray(inputs.T @ inputs / len(inputs))

    def count(self, tensor_name: str, expert: int = 0) -> int:
        return 10**6

    def check_shapes(self, shapes: object) -> None:
        """They fit."""


@pytest.mark.parametrize("width", [288, 256, 320])
def test_feedback_lowers_what_each_expert_s_outputs_err(tmp_path: Path, width: int) -> None:
    """By second moments of the neurons as they are placed, found from `up`, kept in f32."""
    up, down = "blk.2.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"
    seen = LowRank(tmp_path / "imatrix.gguf", {down: 288})
    squares = np.stack([np.diag(seen.matrix(down, i)) for i in range(16)])
    importance = Importance({down: Moments(squares * 1e6, np.full(16, 1e6))}, datasets=("drawn",))
    write_importance(seen.path, importance)
    quantize_checkpoint(TINY, tmp_path / "exact.gguf", "f32")
    original = read_stacks(tmp_path / "exact.gguf")
    errors = []
    for feedback in (False, True):
        transforms = replace(NONE, deal_neurons=True, feedback=feedback)
        quantize_checkpoint(
            TINY, tmp_path / "out.gguf", choices=Choices({down: "q4_0"}, expert_widths={2: width}),
            importance=seen.path, moments=seen, transforms=transforms,
        )  # fmt: skip
        changed = read_stacks(tmp_path / "out.gguf")
        errors.append([])
        for i in range(16):
            rows = changed[up][i][: min(width, 288)]
            places = (rows @ original[up][i].T / np.linalg.norm(original[up][i], axis=1)).argmax(1)
            moments = seen.matrix(down, i)[np.ix_(places, places)]
            wrong = changed[down][i][:, : len(places)] - original[down][i][:, places]
            errors[-1].append(np.einsum("ij,jk,ik", wrong, moments, wrong, optimize=True))
    assert np.sum(errors[1]) < 0.6 * np.sum(errors[0])
    assert (np.array(errors[1]) < errors[0]).all()
