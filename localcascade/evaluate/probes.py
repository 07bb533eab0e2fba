"""How much a model's predictions suffer when the weights of one matrix err.

Each matrix in turn gets the noise added to its results that small independent errors of its
weights would make, while the model reads a short text, and the divergence from the undisturbed
predictions is measured. Divided by the errors' relative variance it says what a squared error of
that matrix costs the model as a whole, which no error of the matrix itself can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from localcascade.engine.calibrate import read_tokens
from localcascade.engine.client import Engine
from localcascade.errors import EngineDied, EvaluationError, ModelFileError
from localcascade.evaluate.divergence import score_tokens
from quantize.ggml import decode_rows
from quantize.gguf import open_gguf
from quantize.importance import join_moments
from quantize.sensitivity import Sensitivity

OnProgress = Callable[[str, int, int], None]
F32Array = npt.NDArray[np.float32]

VARIANCES = (0.01, 0.04)
"""Variances of the errors relative to the weights' mean square, each with a seed of its own: of
encodings of 4 and of 3 bits. Where errors change which experts are chosen, the divergence grows
less than in proportion, so what matters is measured where it will lie."""
_SAMPLED_ROWS = 512
"""Of each expert, to estimate the mean square of its weights."""
WINDOW_TOKENS = 256
"""Tokens read from an empty context; the second half is scored."""
DEFAULT_N_TOKENS = 512
"""Tokens scored in each probe."""


def probe_matrices(
    engine: Engine,
    model: Path,
    texts: Sequence[Path] = (),
    *,
    n_tokens: int = DEFAULT_N_TOKENS,
    variances: Sequence[float] = VARIANCES,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Sensitivity:
    """Measure what noise in the results of each matrix of a model costs.

    Args:
        engine: Of the model, made to collect, with a context of WINDOW_TOKENS or more.
        model: The model's GGUF file.
        texts: Files for read_documents; none takes the text that ships with the package.
        n_tokens: Tokens to score in each probe; as many are read before them for context.
        variances: Of the errors, relative to the mean square of the weights.
        on_progress: Called with ("probe", probes done, probes in all).

    Returns:
        The mean over the variances of KL divergence over variance, matrix by matrix.

    Raises:
        EvaluationError: The text is too short.
        ModelFileError: The model computes no finite numbers.
        EngineDied: The worker died on the way.
        CascadeError: As Engine.logits does.
    """
    windows = choose_windows(read_tokens(engine, texts), n_tokens)
    engine.watch(())
    clean = [_read_scored(engine, window) for window in windows]
    if not all(np.isfinite(logits).all() for logits in clean):
        raise ModelFileError(model, "it computes logits that are no finite numbers")
    matrices = list_matrices(engine, windows[0])
    factors: dict[str, float] = {}
    for i, matrix in enumerate(matrices):
        on_progress("probe", i, len(matrices))
        squares = measure_squares(model, matrix)
        ratios = []
        for seed, variance in enumerate(variances):
            engine.disturb(matrix, (variance * squares).tolist(), seed)
            ratios.append(_measure_divergence(engine, windows, clean) / variance)
        factors[matrix] = float(np.mean(ratios))
    on_progress("probe", len(matrices), len(matrices))
    engine.watch(())
    if not any(factors.values()):
        raise EngineDied("the engine died and forgot the noise", hint="Try again.")
    names = tuple(path.name for path in texts)
    n_scored = sum(map(len, clean))
    return Sensitivity(factors, model.name, names, n_scored, tuple(variances))


def list_matrices(engine: Engine, tokens: Sequence[int]) -> list[str]:
    """List the matrices that a model multiplies inputs with.

    Args:
        engine: Of the model, made to collect.
        tokens: Any that fit its context.

    Returns:
        Their names in the model's GGUF, ascending.
    """
    engine.watch(())
    engine.collect(tokens)
    return list(join_moments(engine.read_inputs())[0])


def measure_squares(model: Path, matrix: str) -> F32Array:
    """Estimate the mean square of the weights of each expert from some of its rows.

    Args:
        model: A GGUF file.
        matrix: Name of a matrix or a stack of experts.

    Returns:
        float32 [n_experts]; one value for a plain matrix.
    """
    with open_gguf(model) as file:
        tensor = file.tensors[matrix]
        n_rows, width = tensor.shape[-2:]
        step = -(-n_rows // _SAMPLED_ROWS)
        stored = file.read(matrix).reshape(-1, n_rows, tensor.type.row_bytes(width))
        rows = np.ascontiguousarray(stored[:, ::step])
    weights = decode_rows(rows, tensor.type, width).reshape(len(rows), -1)
    squares: F32Array = np.square(weights).mean(axis=1)
    return squares


def choose_windows(tokens: Sequence[int], n_scored: int) -> list[list[int]]:
    """Choose windows, spread evenly over a text, of which the second halves hold n_scored tokens.

    Args:
        tokens: Of the whole text.
        n_scored: Tokens to score, rounded up to whole windows.

    Returns:
        Windows of WINDOW_TOKENS; fewer if the text is shorter.

    Raises:
        EvaluationError: It is shorter than one window.
    """
    n_there = len(tokens) // WINDOW_TOKENS
    if n_there == 0:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens, but a probe needs {WINDOW_TOKENS}",
            "Give a longer text.",
        )
    n_windows = min(n_there, -(-n_scored // (WINDOW_TOKENS // 2)))
    chosen = [i * n_there // n_windows * WINDOW_TOKENS for i in range(n_windows)]
    return [list(tokens[start : start + WINDOW_TOKENS]) for start in chosen]


def _read_scored(engine: Engine, window: Sequence[int]) -> F32Array:
    return engine.logits(window, WINDOW_TOKENS // 2)


def _measure_divergence(
    engine: Engine, windows: Sequence[Sequence[int]], clean: Sequence[F32Array]
) -> float:
    """Mean KL divergence of what the engine predicts from clean logits, in nats."""
    means = []
    for window, reference in zip(windows, clean, strict=True):
        got = _read_scored(engine, window)
        # Only the divergence is asked for, so any tokens do.
        tokens = np.zeros(len(got), np.int32)
        means.append(score_tokens(got, reference, tokens).kl.mean())
    return float(np.mean(means))
