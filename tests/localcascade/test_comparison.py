"""Two models read one text: windows, memory, refusals, and figures of a bare loop."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from localcascade.engine.wire import ModelInfo
from localcascade.errors import EvaluationError, ModelFileError
from localcascade.evaluate import comparison
from localcascade.evaluate.comparison import (
    PART_TOKENS,
    Comparison,
    check_vocabularies,
    compare_models,
    cut_windows,
    split_scored,
)
from tests.llama import requantize
from tests.localcascade import models
from tests.localcascade.bare import BareModel
from tests.localcascade.models import IM_START, write_model

N_CTX = 64
TEXT = "When the sun had set, they went on; 3 + 4 = 7, said the other. " * 4
FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama_ftype


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f32.gguf, and what llama.cpp's own quantizer makes of it."""
    folder = tmp_path_factory.mktemp("comparison")
    write_model(folder / "f32.gguf", n_ctx_train=2048)
    for name, file_type in FILE_TYPES.items():
        requantize(folder / "f32.gguf", folder / f"{name}.gguf", file_type)
    return folder


@pytest.fixture(scope="module")
def compared(folder: Path) -> dict[str, Comparison]:
    reference = folder / "f32.gguf"
    return {
        name: compare_models(folder / f"{name}.gguf", reference, TEXT, n_ctx=N_CTX)
        for name in ("f32", *FILE_TYPES)
    }


# ---- windows ---------------------------------------------------------------------------------


def test_windows_leave_the_rest_of_the_text_out() -> None:
    windows = cut_windows(range(35), 10, bos=None)
    assert windows.tolist() == np.arange(30).reshape(3, 10).tolist()


def test_a_bos_opens_the_text_and_replaces_each_windows_first_token() -> None:
    windows = cut_windows(range(1, 31), 10, bos=99)
    assert windows.tolist() == [
        [99, *range(1, 10)],
        [99, *range(11, 20)],
        [99, *range(21, 30)],
    ]


@pytest.mark.parametrize(("n_tokens", "bos", "n_windows"), [(20, None, 2), (19, 7, 2), (39, 7, 4)])
def test_a_bos_counts_as_a_token_of_the_text(
    n_tokens: int, bos: int | None, n_windows: int
) -> None:
    assert cut_windows(range(n_tokens), 10, bos).shape == (n_windows, 10)


@pytest.mark.parametrize(
    ("n_tokens", "advice"), [(19, "a longer text, or --ctx 9."), (15, "Give a longer text.")]
)
def test_less_than_two_windows_are_refused(n_tokens: int, advice: str) -> None:
    with pytest.raises(EvaluationError, match=f"has {n_tokens} tokens.*need 20") as caught:
        cut_windows(range(n_tokens), 10, bos=None)
    assert advice in caught.value.hint


@pytest.mark.parametrize("n_ctx", [8, 9, 64, 511, 512, 513, 1000, 1024, 2048, 8191, 8192])
def test_parts_cover_the_second_half_and_end_with_micro_batches(n_ctx: int) -> None:
    parts = list(split_scored(n_ctx))
    positions = [i for start, end in parts for i in range(start, end)]
    assert positions == list(range(n_ctx // 2, n_ctx - 1))
    assert all(0 < end - start <= PART_TOKENS for start, end in parts)
    assert all(end % PART_TOKENS == 0 for _, end in parts[:-1])


# ---- figures ---------------------------------------------------------------------------------


def test_a_model_is_at_distance_zero_from_itself(compared: dict[str, Comparison]) -> None:
    figures = compared["f32"].figures
    assert (figures.mean_kl.value, figures.max_kl) == (0, 0)
    assert figures.same_top1.value == 1
    assert (figures.perplexity_ratio.value, figures.perplexity_ratio.error) == (1, 0)
    assert figures.perplexity == figures.reference_perplexity


def test_fewer_bits_are_farther_away(compared: dict[str, Comparison]) -> None:
    q8_0, q4_0 = compared["q8_0"].figures, compared["q4_0"].figures
    assert 0 < q8_0.mean_kl.value < 0.05
    assert q4_0.mean_kl.value > 10 * q8_0.mean_kl.value
    assert q4_0.same_top1.value < q8_0.same_top1.value <= 1
    assert q4_0.p99_kl > q8_0.p99_kl
    assert q4_0.reference_perplexity == q8_0.reference_perplexity


def test_every_scored_token_is_counted_once(compared: dict[str, Comparison]) -> None:
    result = compared["q8_0"]
    n_scored = N_CTX - 1 - N_CTX // 2
    assert result.n_windows >= 3
    assert result.figures.n_tokens == result.n_windows * n_scored
    assert sum(bucket.figures.n_tokens for bucket in result.by_context) == result.figures.n_tokens
    assert result.by_context[0].first_context_tokens == N_CTX // 2 + 1
    assert result.by_context[-1].last_context_tokens == N_CTX - 1
    weighted = sum(b.figures.mean_kl.value * b.figures.n_tokens for b in result.by_context)
    assert weighted == pytest.approx(result.figures.mean_kl.value * result.figures.n_tokens)


def test_figures_equal_those_of_a_bare_loop(folder: Path, compared: dict[str, Comparison]) -> None:
    data = TEXT.encode()  # a byte is a token in this vocabulary, but for two words
    tokens = [257 if part == "the" else part for part in split_words(data)]
    n_windows = len(tokens) // N_CTX
    log_softmaxes = []
    for name in ("q4_0", "f32"):
        bare = BareModel(folder / f"{name}.gguf")
        rows = []
        for i in range(n_windows):
            logits = bare.read_logits(tokens[i * N_CTX : (i + 1) * N_CTX])
            rows.append(logits[N_CTX // 2 : N_CTX - 1].astype(np.float64))
        bare.close()
        logits = np.concatenate(rows)
        log_softmaxes.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    log_q, log_p = log_softmaxes
    targets = np.array(tokens[: n_windows * N_CTX]).reshape(-1, N_CTX)[:, N_CTX // 2 + 1 :].ravel()
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    figures = compared["q4_0"].figures
    assert figures.n_tokens == len(kl)
    assert figures.mean_kl.value == pytest.approx(kl.mean(), rel=0.02)
    assert figures.max_kl == pytest.approx(kl.max(), rel=0.05)
    nll = -log_p[np.arange(len(targets)), targets]
    assert figures.reference_perplexity.value == pytest.approx(np.exp(nll.mean()), rel=2e-3)
    same = (log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean()
    assert figures.same_top1.value == pytest.approx(same, abs=2 / len(kl))


def split_words(data: bytes) -> list[Any]:
    """Bytes, with "the" and "th" merged as the vocabulary's two merges do."""
    parts: list[Any] = []
    i = 0
    while i < len(data):
        if data[i : i + 3] == b"the":
            parts.append("the")
            i += 3
        else:
            parts.append(256 if data[i : i + 2] == b"th" else data[i])
            i += 2 if data[i : i + 2] == b"th" else 1
    return parts


def test_a_long_window_is_read_in_parts_and_counts_the_same(folder: Path) -> None:
    text = TEXT * 12
    told: list[tuple[str, int, int]] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    model = folder / "q8_0.gguf"
    result = compare_models(model, folder / "f32.gguf", text, n_ctx=1200, on_progress=tell)
    assert result.figures.n_tokens == result.n_windows * (1200 - 1 - 600)
    assert 0 < result.figures.mean_kl.value < 0.05
    compared = [(done, total) for stage, done, total in told if stage == "compare"]
    total = result.n_windows * 1200
    assert compared[:2] == [(1025, total), (1200, total)]
    assert compared[-1] == (total, total)
    for stage in ("load reference", "load candidate"):
        assert [call for call in told if call[0] == stage][-1] == (stage, 100, 100)
    assert {stage for stage, _, _ in told} == {"load reference", "load candidate", "compare"}


# ---- what is asked of the engines ------------------------------------------------------------

FAKE_VOCAB = 2048


class FakeEngine:
    """Logits that are cheap, and a note of every request."""

    requests: list[tuple[str, list[int], int]]
    bos: int | None = None
    bad: str = ""

    def __init__(self, path: Path, *, n_ctx: int) -> None:
        self.name = path.stem

    def load(self, on_progress: Callable[[str, int, int], None]) -> ModelInfo:
        on_progress("load", 100, 100)
        return ModelInfo("fake", 512, 512, FAKE_VOCAB, 0.0, (), self.bos)

    def tokenize(self, text: str) -> list[int]:
        return [ord(character) % FAKE_VOCAB for character in text]

    def logits(self, tokens: Sequence[int], first: int) -> np.ndarray:
        self.requests.append((self.name, list(tokens), first))
        rng = np.random.default_rng(len(self.name))
        logits = rng.random((len(tokens) - first, FAKE_VOCAB), np.float32)
        if self.name == self.bad:
            logits[0, 0] = np.nan
        return logits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    engine = type("Engine", (FakeEngine,), {"requests": []})
    monkeypatch.setattr(comparison, "Engine", engine)
    monkeypatch.setattr(comparison, "check_vocabularies", lambda candidate, reference: None)
    return engine


def compare_fakes(text: str, n_ctx: int = 512) -> Comparison:
    return compare_models(Path("candidate"), Path("reference"), text, n_ctx=n_ctx)


def test_both_models_read_the_same_tokens(fake: type[FakeEngine]) -> None:
    fake.bos = 9
    compare_fakes("abcdefghijklmnopqrstuvwxyz\n\n", n_ctx=9)
    text = [9, *b"abcdefghijklmnopqrstuvwxyz\n"]  # one newline at the end is dropped
    windows = [[9, *text[i + 1 : i + 8]] for i in range(0, 27, 9)]
    expected = [(name, tokens, 4) for tokens in windows for name in ("reference", "candidate")]
    assert fake.requests == expected


def test_memory_does_not_grow_with_the_text(fake: type[FakeEngine]) -> None:
    def find_peak_bytes(n_windows: int) -> int:
        tracemalloc.start()
        try:
            compare_fakes("x" * (512 * n_windows))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            fake.requests.clear()

    find_peak_bytes(2)
    part_bytes = 256 * FAKE_VOCAB * 4
    few, many = find_peak_bytes(2), find_peak_bytes(20)
    assert few > 2 * part_bytes
    assert many - few < part_bytes  # 18 more windows of logits would be 36 times that


@pytest.mark.parametrize("bad", ["candidate", "reference"])
def test_a_model_that_computes_no_numbers_is_named(fake: type[FakeEngine], bad: str) -> None:
    fake.bad = bad
    with pytest.raises(ModelFileError, match=f"^{bad}: .* no finite numbers"):
        compare_fakes("x" * 1100)


def test_a_window_too_small_is_misuse(fake: type[FakeEngine]) -> None:
    with pytest.raises(ValueError, match="n_ctx is 7"):
        compare_fakes("x" * 100, n_ctx=7)


def test_a_text_too_short_is_found_before_the_candidate_is_loaded(folder: Path) -> None:
    stages: list[str] = []
    with pytest.raises(EvaluationError, match="has 4 tokens, but two windows of 512 need 1024"):
        compare_models(
            folder / "q8_0.gguf",
            folder / "f32.gguf",
            "abcd\n",
            on_progress=lambda stage, done, total: stages.append(stage),
        )
    assert set(stages) <= {"load reference"}


# ---- vocabularies ----------------------------------------------------------------------------


def test_a_beginning_of_sequence_token_is_told_only_if_the_file_adds_it(folder: Path) -> None:
    from localcascade.engine.client import Engine

    path = folder / "bos.gguf"
    entry = b"tokenizer.ggml.add_bos_token" + struct.pack("<I", 7)
    data = (folder / "f32.gguf").read_bytes()
    assert data.count(entry + b"\0") == 1
    path.write_bytes(data.replace(entry + b"\0", entry + b"\1"))
    for file, bos in (("f32.gguf", None), ("bos.gguf", IM_START)):
        with Engine(folder / file, n_ctx=N_CTX, n_threads=1) as engine:
            assert engine.load().bos == bos


def test_another_token_is_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    entry = struct.pack("<Q", 3) + b"the"
    data = (folder / "f32.gguf").read_bytes()
    other.write_bytes(data.replace(entry, entry.replace(b"the", b"tho")))
    with pytest.raises(EvaluationError, match=r"other\.gguf: token 257 is 'tho', but 'the' in .*f"):
        check_vocabularies(other, folder / "f32.gguf")


def test_another_number_of_tokens_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SPECIAL", models.SPECIAL[:-1])
    monkeypatch.setattr(models, "N_VOCAB", models.N_VOCAB - 1)
    fewer = write_model(tmp_path / "fewer.gguf", n_token_types=models.N_VOCAB)
    with pytest.raises(EvaluationError, match=r"fewer\.gguf has 264 tokens, but .* has 265"):
        check_vocabularies(fewer, folder / "f32.gguf")


def test_a_damaged_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes((folder / "f32.gguf").read_bytes()[:5000])
    with pytest.raises(ModelFileError, match=r"short\.gguf"):
        compare_models(short, folder / "f32.gguf", TEXT)
