"""Whether `localcascade compare` says what llama-perplexity says of the same models and text.

    python bench/perplexity.py --binary PATH/llama-perplexity [--text FILE] [--ctx 512]

Both compare quantizations of the bundled model with its f32 file. Compared are the digits that
llama-perplexity prints: its perplexity of the reference alone, and what it says of each candidate
when given the reference's logits. Without --text both read 300 invented chats of the kind
that the bundled model was trained on. llama-perplexity keeps the reference's log-probabilities in
16 bits and cuts off the smallest, which changes the reference's perplexity and the percentiles;
the column `at 16 bits` is our candidate and our statistics with that reference instead of ours.
Writes bench/results/perplexity.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tiny.corpus import generate_chats

from localcascade.engine.client import Engine
from localcascade.evaluate.comparison import compare_models
from localcascade.evaluate.divergence import (
    Figures,
    TokenScores,
    join_scores,
    summarize_scores,
)
from localcascade.store import bundled_checkpoint_folder
from quantize.convert import quantize_checkpoint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "perplexity.csv"
CANDIDATES = ("q8_0", "q5_0", "q4_0")
ESTIMATE = r"\s*: *([0-9.]+) ± +([0-9.]+)"
PATTERNS = {
    "perplexity": r"Mean PPL\(Q\)" + ESTIMATE,
    "reference_perplexity": r"Mean PPL\(base\)" + ESTIMATE,
    "perplexity_ratio": r"Mean PPL\(Q\)/PPL\(base\)" + ESTIMATE,
    "mean_kl": r"Mean +KLD" + ESTIMATE,
    "median_kl": r"Median +KLD: +([0-9.]+)",
    "p99_kl": r"99\.0% +KLD: +([0-9.]+)",
    "p999_kl": r"99\.9% +KLD: +([0-9.]+)",
    "max_kl": r"Maximum KLD: +([0-9.]+)",
    "same_top1": r"Same top p" + ESTIMATE,
}


@dataclass(frozen=True)
class SavedLogits:
    """A file of --kl-divergence-base: tokens, and log-probabilities of the scored ones."""

    tokens: npt.NDArray[np.int32]
    """[n_windows, n_ctx]"""
    log_probabilities: npt.NDArray[np.float32]
    """[n_windows, n_scored, n_vocab], of which llama-perplexity keeps 16 bits each."""


def write_chats(path: Path) -> Path:
    """Write what is said and thought in chats that the bundled model can follow."""
    messages = (message for chat in islice(generate_chats(7), 300) for message in chat.messages)
    texts = (
        text for m in messages for text in (m.get("reasoning_content"), m.get("content")) if text
    )
    path.write_text("\n\n".join(texts), "utf-8")
    return path


def read_saved(path: Path) -> SavedLogits:
    """Read the file as tools/perplexity/perplexity.cpp writes it."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    n_ctx, n_vocab, n_windows = np.frombuffer(data, np.int32, 3, 8).tolist()
    tokens = np.frombuffer(data, np.int32, n_windows * n_ctx, 20).reshape(n_windows, n_ctx)
    n_columns = 2 * ((n_vocab + 1) // 2) + 4
    rows = np.frombuffer(data, np.uint16, offset=20 + tokens.nbytes).reshape(-1, n_columns)
    scale, least = rows[:, :4].copy().view(np.float32).T[..., None]
    log_probabilities = scale * rows[:, 4 : 4 + n_vocab] + least
    return SavedLogits(tokens, log_probabilities.reshape(n_windows, -1, n_vocab))


def run_binary(binary: Path, *arguments: str) -> str:
    """Run llama-perplexity; what it prints. Without repacked weights, as our engine without AMX."""
    command = [str(binary), "--no-repack", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{' '.join(command)} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return ran.stdout + ran.stderr


def find_printed(pattern: str, text: str) -> list[str]:
    """Find the numbers that a line prints: a figure, and mostly its standard error."""
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"no line like {pattern} in what llama-perplexity printed:\n{text[-3000:]}")
    return list(match.groups())


def list_ours(figures: Figures, name: str) -> list[float]:
    """List a figure, and its standard error if it has one, in the unit that is printed."""
    value = getattr(figures, name)
    numbers = [value] if isinstance(value, float) else [value.value, value.error]
    return [100 * number for number in numbers] if name == "same_top1" else numbers


def score_rounded(
    candidate: npt.NDArray[np.float32],
    log_p: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
) -> TokenScores:
    """Score as llama-perplexity does with what it saved, which does not quite add up to 1."""
    logits = candidate.astype(np.float64)
    log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    terms = np.where(log_p > -16, np.exp(log_p.astype(np.float64)) * (log_p - log_q), 0)
    rows = np.arange(len(tokens))
    return TokenScores(
        kl=terms.sum(axis=1),
        nll=-log_q[rows, tokens],
        reference_nll=-log_p[rows, tokens].astype(np.float64),
        same_top=log_p.argmax(axis=1) == candidate.argmax(axis=1),
    )


def score_saved(candidate: Path, saved: SavedLogits) -> Figures:
    """Compute the figures of a candidate, run by us, against the reference in 16 bits."""
    n_ctx = saved.tokens.shape[1]

    def score_windows() -> Iterator[TokenScores]:
        with Engine(candidate, n_ctx=n_ctx) as engine:
            for window, reference in zip(saved.tokens, saved.log_probabilities, strict=True):
                first = n_ctx // 2
                logits = engine.logits(window[:-1].tolist(), first)
                yield score_rounded(logits, reference, window[first + 1 :])

    return summarize_scores(join_scores(score_windows()))


def round_like(number: float, printed: str) -> str:
    """Write a number with as many decimals as another has."""
    return f"{number:.{len(printed.partition('.')[2])}f}"


def measure(
    binary: Path, text: Path, n_ctx: int, folder: Path
) -> Iterator[tuple[str, str, str, str, str]]:
    """Run both on every candidate; model, figure, theirs, ours, ours from 16 bits."""
    reference, saved_file = folder / "f32.gguf", folder / "saved"
    checkpoint = bundled_checkpoint_folder("tiny")
    quantize_checkpoint(checkpoint, reference, "f32")
    given = ("-f", str(text), "-c", str(n_ctx), "--kl-divergence-base", str(saved_file))
    alone = find_printed(
        r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)",
        run_binary(binary, "-m", str(reference), *given),
    )
    saved = read_saved(saved_file)
    for name in CANDIDATES:
        candidate = folder / f"{name}.gguf"
        quantize_checkpoint(checkpoint, candidate, name)
        printed = run_binary(binary, "-m", str(candidate), *given, "--kl-divergence")
        ours = compare_models(candidate, reference, text.read_text("utf-8"), n_ctx=n_ctx)
        assert ours.figures.n_tokens == saved.log_probabilities[..., 0].size
        at_16_bits = score_saved(candidate, saved)
        if name == CANDIDATES[0]:
            exact = list_ours(ours.figures, "reference_perplexity")
            for part, theirs, number in zip(("", "_error"), alone, exact, strict=True):
                yield "f32", f"perplexity{part}", theirs, round_like(number, theirs), ""
        for figure, pattern in PATTERNS.items():
            columns = (find_printed(pattern, printed), list_ours(ours.figures, figure))
            rows = zip(*columns, list_ours(at_16_bits, figure), strict=True)
            for part, (theirs, number, rounded) in zip(("", "_error"), rows, strict=False):
                row = (theirs, round_like(number, theirs), round_like(rounded, theirs))
                yield name, f"{figure}{part}", *row


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with tempfile.TemporaryDirectory() as folder:
        text = given.text or write_chats(Path(folder) / "chats.txt")
        rows = list(measure(given.binary, text, given.ctx, Path(folder)))
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ("model", "figure", "llama_perplexity", "ours", "at 16 bits")
        writer.writerow(["machine", "text", "ctx", *columns])
        for row in rows:
            writer.writerow([machine, text.name, given.ctx, *row])
            print("{:5} {:26} {:>12} {:>12} {:>12}".format(*row), "" if row[2] == row[3] else "!")
    n_equal = sum(theirs == ours for _, _, theirs, ours, _ in rows)
    n_rounded = sum(theirs == rounded for _, _, theirs, _, rounded in rows if rounded)
    print(f"{n_equal} of {len(rows)} figures are equal to the last digit; at 16 bits {n_rounded}")


if __name__ == "__main__":
    main()
