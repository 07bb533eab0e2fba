"""Experts whose two matrices change together: one file, whatever threads, order or kills."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from quantize import work
from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.errors import UnsupportedModel
from quantize.gguf import open_gguf
from quantize.importance import Importance, Moments, write_importance
from quantize.transform import Transforms
from tests.quantize.checkpoints import write_checkpoint
from tests.quantize.models import ODD_EXPERTS, TINY, draw_weights, make_checkpoint
from tests.soak import sample

DOWN = "blk.2.ffn_down_exps.weight"
CHOICES = Choices(
    {"blk.2.ffn_up_exps.weight": "nvfp4", DOWN: "q2_k", "blk.6.ffn_down_exps.weight": "iq4_nl"},
    n_embd=256,
    expert_widths={2: 256},
)


@dataclass(frozen=True)
class DrawnMoments:
    """Second moments of correlated inputs, a file of their own beside them."""

    path: Path

    def matrix(self, tensor_name: str, expert: int = 0) -> np.ndarray | None:
        if tensor_name != DOWN or expert % 8:
            return None
        rng = np.random.Generator(np.random.PCG64(expert))
        inputs = rng.standard_normal((300, 288))
        return np.asarray(inputs.T @ inputs / 300)

    def count(self, tensor_name: str, expert: int = 0) -> int:
        return 300

    def check_shapes(self, shapes: object) -> None:
        """They fit."""


def make(output: Path, **options: object) -> bytes:
    """Convert tiny with everything that can be on, importance and moments lying beside `output`."""
    folder = output.parent
    matrix = folder / "drawn.imatrix"
    if not matrix.exists():
        rng = np.random.Generator(np.random.PCG64(8))
        means = np.exp(rng.standard_normal((16, 288)))
        moments = Moments(1000 * means, np.full(16, 1000.0))
        write_importance(matrix, Importance({DOWN: moments}, datasets=("drawn",)))
        (folder / "drawn.moments").write_bytes(b"1")
    quantize_checkpoint(
        TINY, output, choices=CHOICES, importance=matrix,
        moments=DrawnMoments(folder / "drawn.moments"), **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return output.read_bytes()


def test_threads_do_not_change_the_file(tmp_path: Path) -> None:
    one = make(tmp_path / "out.gguf", n_threads=1)
    assert make(tmp_path / "out.gguf", n_threads=5) == one


def run_killed(output: Path, after_bytes: int) -> None:
    """Convert in a process that kills itself once so many bytes are written."""
    code = f"""
import os, signal
from pathlib import Path
from tests.quantize.test_convert_pairs import make
def die(stage, done, total):
    if stage == "verify" or done >= {after_bytes}:
        os.kill(os.getpid(), signal.SIGKILL)
make(Path({str(output)!r}), on_progress=die)
"""
    root = Path(__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, cwd=root)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after_bytes", sample([1, 2_000_000, 9_000_000, 14_000_000], 2))
def test_a_killed_run_is_continued_to_the_same_bytes(after_bytes: int, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.gguf")
    run_killed(tmp_path / "out.gguf", after_bytes)
    assert not (tmp_path / "out.gguf").exists()
    seen: list[tuple[str, int, int]] = []
    assert make(tmp_path / "out.gguf", on_progress=lambda *step: seen.append(step)) == whole
    assert seen[0][0] == "verify" or seen[0][1] > after_bytes - 1_500_000


def test_other_transforms_moments_or_importance_are_other_work(tmp_path: Path) -> None:
    run_killed(tmp_path / "out.gguf", 9_000_000)
    for change in ("transforms", "moments", "importance"):
        journal = (tmp_path / "out.gguf.journal").read_text()
        part = (tmp_path / "out.gguf.part").read_bytes()
        if change == "moments":
            (tmp_path / "drawn.moments").write_bytes(b"22")
        if change == "importance":
            data = bytearray((tmp_path / "drawn.imatrix").read_bytes())
            data[-400] ^= 1  # of a sum
            (tmp_path / "drawn.imatrix").write_bytes(data)
        transforms = Transforms(refit=False) if change == "transforms" else None
        begun: list[int] = []

        def note(_stage: str, done: int, _total: int, begun: list[int] = begun) -> None:
            begun.append(done)

        make(tmp_path / "out.gguf", transforms=transforms, on_progress=note)
        assert begun[0] < 2_000_000
        (tmp_path / "out.gguf.journal").write_text(journal)
        (tmp_path / "out.gguf.part").write_bytes(part)


def test_halves_far_apart_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ups in one shard and downs in another make the file that lying side by side makes."""
    near = make_checkpoint(tmp_path / "near", ODD_EXPERTS, "F32", seed=1)
    far = make_checkpoint(tmp_path / "far", ODD_EXPERTS, "F32", seed=1)
    (far / "model.safetensors").unlink()
    weights = draw_weights(ODD_EXPERTS, 1)
    names = sorted(weights, key=lambda name: ("down_proj" in name, name))
    write_checkpoint(far, ODD_EXPERTS, {n: ("F32", weights[n]) for n in names}, n_shards=2)
    choices = Choices({}, expert_widths={0: 40, 3: 48})
    files = []
    for source in (near, far):
        quantize_checkpoint(source, tmp_path / "out.gguf", choices=choices, name="same")
        files.append((tmp_path / "out.gguf").read_bytes())
    assert files[0] == files[1]
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors["blk.3.ffn_down_exps.weight"].shape == (12, 40, 48)
    monkeypatch.setattr(work, "MAX_WAITING_BYTES", 100_000)
    (tmp_path / "out.gguf").unlink()
    with pytest.raises(UnsupportedModel, match="so far apart"):
        quantize_checkpoint(far, tmp_path / "out.gguf", choices=choices)
    assert not list(tmp_path.glob("out*"))
