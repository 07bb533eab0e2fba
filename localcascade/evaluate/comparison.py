"""Two models read the same text; what they expect is compared as it comes.

The text is cut into windows as llama-perplexity does it: each is read from an empty context, its
first half is context only, and the tokens after that are scored. Logits never reach the disk and
at most PART_TOKENS rows of each model are in memory; a scored token leaves 25 bytes behind, for
the percentiles and the standard errors.
Source: perplexity and kl_divergence in tools/perplexity/perplexity.cpp of llama.cpp.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from localcascade.engine.client import Engine
from localcascade.engine.header import check_header
from localcascade.engine.wire import ModelInfo
from localcascade.errors import EvaluationError, ModelFileError
from localcascade.evaluate.divergence import (
    Bucket,
    Figures,
    TokenScores,
    join_scores,
    score_tokens,
    summarize_by_context,
    summarize_scores,
)
from quantize.gguf import open_gguf

OnProgress = Callable[[str, int, int], None]
Tokens = npt.NDArray[np.int32]

MIN_N_CTX = 8
PART_TOKENS = 512
"""Of the engine's micro-batch: parts end where it would end, so nothing is read in smaller ones."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a candidate did against a reference."""

    n_windows: int
    figures: Figures
    """Of all scored tokens."""
    by_context: tuple[Bucket, ...]
    """The same of early and of late tokens of the windows."""
    elapsed_s: float


def compare_models(
    candidate: Path,
    reference: Path,
    text: str,
    *,
    n_ctx: int = 512,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Comparison:
    """Measure how far a candidate's predictions are from a reference's.

    Args:
        candidate: A GGUF file.
        reference: Another one of the same vocabulary; it cuts the text into tokens.
        text: What both read; as llama-perplexity does, one newline at its end is dropped.
        n_ctx: Tokens of a window, at least MIN_N_CTX.
        on_progress: Called with "load reference" and "load candidate" and per cent done, then
            with "compare" and tokens done.

    Returns:
        The figures.

    Raises:
        EvaluationError: The vocabularies differ, or the text is shorter than two windows.
        ModelFileError: A file is damaged, llama.cpp refuses it, or it computes no numbers.
        CascadeError: As Engine.load and Engine.logits do.
        ValueError: n_ctx is too small.
    """
    if n_ctx < MIN_N_CTX:
        raise ValueError(f"n_ctx is {n_ctx}, but must be at least {MIN_N_CTX}")
    started_s = time.perf_counter()
    check_vocabularies(candidate, reference)
    with Engine(reference, n_ctx=n_ctx) as theirs, Engine(candidate, n_ctx=n_ctx) as ours:
        bos = _load(theirs, "load reference", on_progress).bos
        windows = cut_windows(theirs.tokenize(text.removesuffix("\n")), n_ctx, bos)
        _load(ours, "load candidate", on_progress)
        parts = _read_windows(ours, theirs, windows, on_progress)
        scores = join_scores(_check_scores(part, candidate, reference) for part in parts)
    first = n_ctx // 2
    return Comparison(
        n_windows=len(windows),
        figures=summarize_scores(scores),
        by_context=summarize_by_context(scores, n_ctx - 1 - first, first + 1),
        elapsed_s=time.perf_counter() - started_s,
    )


def check_vocabularies(candidate: Path, reference: Path) -> None:
    """Check that two files have the same tokens, so that their logits can be compared.

    Args:
        candidate: A GGUF file.
        reference: Another one.

    Raises:
        EvaluationError: The tokens differ; the first that does is named.
        ModelFileError: A file is damaged.
    """
    check_header(candidate)
    check_header(reference)
    with open_gguf(candidate) as ours, open_gguf(reference) as theirs:
        left, right = (file.metadata["tokenizer.ggml.tokens"] for file in (ours, theirs))
        hint = "Compare with a file made from the same checkpoint."
        if len(left) != len(right):
            problem = f"has {len(left)} tokens, but {reference} has {len(right)}"
            raise EvaluationError(f"{candidate} {problem}", hint)
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            if one != other:
                problem = f"token {i} is {one!r}, but {other!r} in {reference}"
                raise EvaluationError(f"{candidate}: {problem}", hint)


def cut_windows(tokens: Sequence[int], n_ctx: int, bos: int | None) -> Tokens:
    """Cut a text's tokens into windows; what is left over at the end is not used.

    Args:
        tokens: Of the whole text, without a beginning-of-sequence token.
        n_ctx: Tokens of a window.
        bos: Opens the text, and then stands in the place of each window's first token.

    Returns:
        int32 [n_windows, n_ctx].

    Raises:
        EvaluationError: There are fewer than two windows.
    """
    text = np.array([*([] if bos is None else [bos]), *tokens], np.int32)
    if len(text) < 2 * n_ctx:
        shorter = f", or --ctx {len(text) // 2}" if len(text) >= 2 * MIN_N_CTX else ""
        raise EvaluationError(
            f"the text has {len(text)} tokens, but two windows of {n_ctx} need {2 * n_ctx}",
            f"Give a longer text{shorter}.",
        )
    windows = text[: len(text) // n_ctx * n_ctx].reshape(-1, n_ctx)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _load(engine: Engine, stage: str, on_progress: OnProgress) -> ModelInfo:
    info = engine.load(lambda _, done, total: on_progress(stage, done, total))
    on_progress(stage, 100, 100)  # a quick load does not say so itself
    return info


def _read_windows(
    candidate: Engine, reference: Engine, windows: Tokens, on_progress: OnProgress
) -> Iterator[TokenScores]:
    """Let both read, one after the other, so that they do not fight for the processor."""
    n_ctx = windows.shape[1]
    for i, window in enumerate(windows):
        tokens = window.tolist()
        for start, end in split_scored(n_ctx):
            expected = reference.logits(tokens[:end], start)
            got = candidate.logits(tokens[:end], start)
            yield score_tokens(got, expected, window[start + 1 : end + 1])
            on_progress("compare", i * n_ctx + end + 1, windows.size)


def split_scored(n_ctx: int) -> Iterator[tuple[int, int]]:
    """Split the positions of a window whose next token is scored into parts to ask for at once.

    Args:
        n_ctx: Tokens of the window.

    Yields:
        First position and the one after the last. The last token of a window has no next one.
    """
    start = n_ctx // 2
    while start < n_ctx - 1:
        end = min(n_ctx - 1, (start // PART_TOKENS + 1) * PART_TOKENS)
        yield start, end
        start = end


def _check_scores(scores: TokenScores, candidate: Path, reference: Path) -> TokenScores:
    """Refuse what is not a number; the reference is blamed only for what it does on its own."""
    if np.isfinite(scores.kl).all() and np.isfinite(scores.nll).all():
        return scores
    is_theirs = not np.isfinite(scores.reference_nll).all()
    raise ModelFileError(
        reference if is_theirs else candidate,
        "it computes logits that are no finite numbers",
        hint="Its weights are damaged or too large for its types: convert it again.",
    )
