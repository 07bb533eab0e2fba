"""Transformed conversions as the rest of the house sees them: streamed, and calibrated again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localcascade.download.ahead import Window
from localcascade.download.remote import open_stream
from localcascade.engine.calibrate import calibrate
from localcascade.engine.client import Engine
from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.gguf import open_gguf
from quantize.importance import Importance, write_importance
from quantize.transform import Transforms
from tests.hub import Hub, serve_hub
from tests.quantize.checkpoints import write_checkpoint
from tests.quantize.models import ODD_EXPERTS, TINY, draw_weights

UP, DOWN = "blk.6.ffn_up_exps.weight", "blk.6.ffn_down_exps.weight"
SMALL = Window(chunk_bytes=20_000, ahead_bytes=60_000, n_connections=3)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.mark.parametrize("key", [str, lambda name: ("down_proj" in name, name)])
def test_pairs_stream_whatever_their_order(key: object, hub: Hub, tmp_path: Path) -> None:
    """With room for a few kB ahead only: a matrix that waits for its other must not block it."""
    weights = draw_weights(ODD_EXPERTS, 1)
    names = sorted(weights, key=key)  # type: ignore[call-overload]
    folder = tmp_path / "in"
    write_checkpoint(folder, ODD_EXPERTS, {n: ("F32", weights[n]) for n in names}, n_shards=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    hub.push("org/model", {path.name: path.read_bytes() for path in folder.iterdir()})
    options = {"choices": Choices({}, expert_widths={0: 40, 3: 48}), "name": "same"}
    quantize_checkpoint(folder, tmp_path / "local.gguf", **options)  # type: ignore[arg-type]
    with open_stream("org/model", window=SMALL) as opened:
        result = quantize_checkpoint(
            opened.folder, tmp_path / "out.gguf", shards=opened.shards, **options
        )  # type: ignore[arg-type]
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    assert len(result.verified) == 2


def collect(model: Path, text: Path) -> Importance:
    """Calibrate a model on a text."""
    with Engine(model, n_ctx=256, collects=True) as engine:
        return calibrate(engine, [text], n_ctx=256).importance


def test_importance_of_a_changed_file_is_the_changed_importance(tmp_path: Path) -> None:
    """Only the last layer loses neurons, so all before it computes the same."""
    text = tmp_path / "text.txt"
    text.write_text("What is 457 + 385? The sum is 842. " * 40)
    quantize_checkpoint(TINY, tmp_path / "plain.gguf", "f32")
    plain = collect(tmp_path / "plain.gguf", text)
    write_importance(tmp_path / "plain.imatrix", plain)
    quantize_checkpoint(
        TINY,
        tmp_path / "changed.gguf",
        choices=Choices({DOWN: "q8_0"}, expert_widths={6: 256}),
        importance=tmp_path / "plain.imatrix",
        transforms=Transforms(scale_norms=False, refit=False),
    )
    changed = collect(tmp_path / "changed.gguf", text)
    assert np.allclose(changed.matrices[UP].sums, plain.matrices[UP].sums, rtol=1e-4)
    with open_gguf(tmp_path / "plain.gguf") as left, open_gguf(tmp_path / "changed.gguf") as right:
        ups = [f.read(UP).view(np.float32).reshape(f.tensors[UP].shape) for f in (left, right)]
    for expert in range(16):
        old, new = (up[expert] for up in ups)
        sizes = np.linalg.norm(new, axis=1)
        likeness = (new @ old.T) / np.linalg.norm(old, axis=1)
        order = likeness.argmax(1)
        assert len(set(order)) == 256
        factors = sizes / np.linalg.norm(old[order], axis=1)
        expected = plain.matrices[DOWN].sums[expert][order] * factors**4
        found = changed.matrices[DOWN].sums[expert]
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-6 * expected.max())
