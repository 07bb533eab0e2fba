"""How much a model's predictions suffer when the weights of one matrix err.

Each matrix in turn computes as if its weights had small random errors, the same ones for all
tokens, while the model reads a short text, and the divergence from the undisturbed predictions is
measured. Divided by the errors' relative variance it says what a squared error of that matrix costs
the model as a whole, which no error of the matrix itself can tell.
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
from quantize.importance import Moments, join_moments
from quantize.sensitivity import Sensitivity

OnProgress = Callable[[str, int, int], None]
F32Array = npt.NDArray[np.float32]

VARIANCES = (0.01, 0.04)
"""Variances of the errors relative to the weights' mean square, in turn from window to window: of
encodings of 4 and of 3 bits. Where errors change which experts are chosen, the divergence grows
less than in proportion, so what matters is measured where it will lie."""
MOST_KL = 1.0
"""Nats that one token may count: more are a choice overturned, and of a few thousand tokens the two
or three to which that happens would decide a matrix's sensitivity by chance."""
_SAMPLED_ROWS = 512
"""Of each expert, to estimate the mean square of its weights."""
WINDOW_TOKENS, FIRST_SCORED = 256, 64
"""Tokens read from an empty context, and the first that is scored."""
DEFAULT_N_TOKENS = 2048
"""Tokens scored in each probe. A few tokens carry most of a divergence: of 512 a probe of tiny
missed those on which one matrix's errors tell, and found a ninth of what 4096 show."""


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
        n_tokens: Tokens to score in each probe, rounded up to whole windows.
        variances: Of the errors, relative to the mean square of the weights.
        on_progress: Called with ("probe", probes done, probes in all).

    Returns:
        The mean over the windows of KL divergence over variance, matrix by matrix.

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
    matrices = collect_inputs(engine, windows)
    factors: dict[str, float] = {}
    for i, (matrix, inputs) in enumerate(matrices.items()):
        on_progress("probe", i, len(matrices))
        squares = measure_squares(model, matrix, inputs)
        ratios = []
        for seed, (window, expected) in enumerate(zip(windows, clean, strict=True)):
            variance = variances[seed % len(variances)]
            engine.disturb(matrix, (variance * squares).tolist(), seed)
            ratios.append(_measure_divergence(engine, window, expected) / variance)
        factors[matrix] = float(np.mean(ratios))
    on_progress("probe", len(matrices), len(matrices))
    engine.watch(())
    if not any(factors.values()):
        raise EngineDied("the engine died and forgot the noise", hint="Try again.")
    names = tuple(path.name for path in texts)
    n_scored = sum(map(len, clean))
    return Sensitivity(factors, model.name, names, n_scored, tuple(variances))


def collect_inputs(engine: Engine, windows: Sequence[Sequence[int]]) -> dict[str, Moments]:
    """Collect how large the inputs are that a model multiplies its matrices with.

    Args:
        engine: Of the model, made to collect.
        windows: Tokens that fit its context.

    Returns:
        By the matrices' names in the model's GGUF, ascending.
    """
    engine.watch(())
    for window in windows:
        engine.collect(window)
    return join_moments(engine.read_inputs())[0]


def measure_squares(model: Path, matrix: str, inputs: Moments) -> F32Array:
    """Estimate the mean square of the weights of each expert from some of its rows.

    Args:
        model: A GGUF file.
        matrix: Name of a matrix or a stack of experts.
        inputs: Of the matrix; a weight counts as much as the input it is multiplied with, as an
            encoding's error does.

    Returns:
        float32 [n_experts]; one value for a plain matrix.
    """
    with open_gguf(model) as file:
        tensor = file.tensors[matrix]
        n_rows, width = tensor.shape[-2:]
        step = -(-n_rows // _SAMPLED_ROWS)
        stored = file.read(matrix).reshape(-1, n_rows, tensor.type.row_bytes(width))
        rows = np.ascontiguousarray(stored[:, ::step])
    weights = decode_rows(rows, tensor.type, width).reshape(len(rows), -1, width)
    columns = np.square(weights).mean(axis=1)  # [n_experts, width]
    shares = [inputs.estimate(expert) for expert in range(len(columns))]
    return np.array([np.average(c, weights=s) for c, s in zip(columns, shares, strict=True)], "f4")


def choose_windows(tokens: Sequence[int], n_scored: int) -> list[list[int]]:
    """Choose windows, spread evenly over a text, in which n_scored tokens are scored.

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
    n_windows = min(n_there, -(-n_scored // (WINDOW_TOKENS - FIRST_SCORED)))
    chosen = [i * n_there // n_windows * WINDOW_TOKENS for i in range(n_windows)]
    return [list(tokens[start : start + WINDOW_TOKENS]) for start in chosen]


def _read_scored(engine: Engine, window: Sequence[int]) -> F32Array:
    return engine.logits(window, FIRST_SCORED)


def _measure_divergence(engine: Engine, window: Sequence[int], clean: F32Array) -> float:
    """Mean KL divergence of what the engine predicts in a window from clean logits, in nats."""
    got = _read_scored(engine, window)
    # Only the divergence is asked for, so any tokens do.
    kl = score_tokens(got, clean, np.zeros(len(got), np.int32)).kl
    return float(np.minimum(kl, MOST_KL).mean())
