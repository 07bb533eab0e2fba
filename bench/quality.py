"""What a file costs in quality, byte for byte: ours beside llama-quantize's best, on `tiny`.

    python bench/quality.py [--binary PATH/llama-quantize] [--bits 2.25 …] [--ablate 2.6 …]

A size is that of a file whose experts take so many bits a weight and all other matrices q8_0; it
is the limit for both sides. Both get the same importance matrix. Llama.cpp's side is the best of
all its recipes and of mixes of types by group (stock_quantizer.py). Ours is what `quantize --size`
chooses with everything that `calibrate` collects. Then each idea is left out in turn, at the same
size, and the same tokens are scored: the difference to our file is that of each token, averaged,
so its error counts only what the idea changes, and the ratio is the geometric mean of the tokens'
ratios. Two ideas are for what `tiny` does not have, rare experts and neurons that are missed:
shrinkage is also left out where the calibration text is a few chats, and the refit where experts
are trimmed hard, all else in f32. What is done to experts is also left out type by type.
What `--validate` keeps is chosen on a third text. Divergence from the f32 file in nats a token.
Writes bench/results/quality.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from calibrated_model import KNOWLEDGE, PATCHES, SCARCE, SWITCHES, Bench, open_bench
from stock_quantizer import StockQuantizer

from localcascade.cli.validation import HEAVIER, PARTS
from localcascade.evaluate.divergence import TokenScores, summarize_scores
from quantize.allocate import estimate
from quantize.choices import Choices
from quantize.costs import EXPERTS_DOWN, EXPERTS_UP, split_name
from quantize.errors import QuantizeError
from quantize.ggml import type_named
from quantize.importance import read_importance
from quantize.transform import Transforms
from quantize.trial import make_costs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "quality.csv"
BITS = (2.25, 2.6, 3.1, 3.5, 4.25, 4.5, 5.5)
ABLATED_BITS = (2.25, 3.1, 4.25)
SCARCE_BITS = (2.25, 2.6, 3.1)
TRIMMED = (256, 192, 128)
"""Neurons that experts keep, of 288, where trimming is measured on its own."""
COLUMNS = ("bits", "limit_bytes", "side", "file_bytes", "mean_kl", "error", "same_top1",
           "expected_kl", "difference", "difference_error", "token_ratio", "ratio_error",
           "recipe")  # fmt: skip
LEAST_KL = 1e-6
"""Nats added to each token's divergence before ratios are taken: rounding makes as much."""

CHANGES = ("permute", "scale neurons", "scale norms", "feedback")
UNIFORM = ("q2_0", "mxfp4", "q4_0", "iq4_nl", "q2_k", "q3_k", "iq3_s")
"""Types in which all experts are, for each of these changes to be left out."""

Row = tuple[object, ...]


@dataclass
class Ablation:
    """Ours at one size, and what is different without an idea."""

    bench: Bench
    bits: float
    side: str = "ours"

    @cached_property
    def ours(self) -> tuple[Row, TokenScores]:
        """The row and the scores of our file with all ideas."""
        return self._make("", self.side)

    def leave_out(self, idea: str) -> Row:
        """Make and measure a file without an idea, token by token beside the one with it."""
        side = f"{self.side} without {idea}"
        try:
            row, scores = self._make(idea, side)
        except QuantizeError as error:
            limit = self.bench.measure_limit(self.bits)
            return (self.bits, limit, side, *[""] * 9, type(error).__name__)
        return (*row[:-5], *compare_scores(scores, self.ours[1]), row[-1])

    def _make(self, idea: str, side: str) -> tuple[Row, TokenScores]:
        limit = self.bench.measure_limit(self.bits)
        path, found = self.bench.make_ours(limit, idea)
        scores = self.bench.judge.score(path)
        head = (self.bits, limit, side, path.stat().st_size, *describe_scores(scores))
        types = describe_types(found.choices)
        return (*head, round(found.expected_kl, 6), *[""] * 4, types), scores


def measure_validated(bench: Bench, bits: float) -> Row:
    """Measure what `--validate` keeps: of recipes that weigh a part of the model double, and of
    the one that does not, that which is best on a text of its own."""
    limit, tried = bench.measure_limit(bits), {}
    for part, kinds in {"": (), **PARTS}.items():
        path, found = bench.make_ours(limit, weights=dict.fromkeys(kinds, HEAVIER))
        tried[part] = bench.validator.score(path).kl.mean(), found.expected_kl
    best = min(tried, key=lambda part: tried[part][0])
    path, found = bench.make_ours(limit, weights=dict.fromkeys(PARTS.get(best, ()), HEAVIER))
    return (bits, limit, f"ours validated: {best or 'as planned'}", path.stat().st_size,
            *describe_scores(bench.judge.score(path)), round(tried[best][1], 6), *[""] * 4,
            describe_types(found.choices))  # fmt: skip


def describe_scores(scores: TokenScores) -> tuple[float, float, float]:
    """Mean divergence, its standard error, and the share of same likeliest tokens."""
    figures = summarize_scores(scores)
    kl = figures.mean_kl
    return round(kl.value, 6), round(kl.error, 6), round(figures.same_top1.value, 4)


def compare_scores(scores: TokenScores, base: TokenScores) -> tuple[float, ...]:
    """Compare token by token: by how much the divergence is larger, and how many times.

    The mean is that of a few tokens on which much goes wrong; the ratio, a geometric mean, is that
    of all others.

    Returns:
        Mean of the differences, the geometric mean of the ratios, each before its standard error.
    """
    differences = scores.kl - base.kl
    logs = np.log((scores.kl + LEAST_KL) / (base.kl + LEAST_KL))
    errors = [values.std(ddof=1) / len(values) ** 0.5 for values in (differences, logs)]
    ratio = float(np.exp(logs.mean()))
    found = (differences.mean(), errors[0], ratio, ratio * errors[1])
    return tuple(round(float(value), 6) for value in found)


def describe_types(choices: Choices) -> str:
    """Say what the experts became, and their widths."""
    kinds = (EXPERTS_UP, EXPERTS_DOWN)
    types = [t for m, t in choices.types.items() if split_name(m)[1] in kinds]
    widths = "/".join(map(str, choices.expert_widths.values()))
    return f"{' '.join(types)}; {choices.n_embd or 'own'} x {widths or 'own'}"


def measure_stock(stock: StockQuantizer, bench: Bench, bits: float) -> Row:
    """Find and name llama-quantize's best."""
    limit = bench.measure_limit(bits)
    best = stock.find_best(limit)
    if best is None:
        return (bits, limit, "llama-quantize", *[""] * 9, f"none: {stock.least_bytes}")
    kl = round(best.mean_kl, 6)
    return (bits, limit, "llama-quantize", best.file_bytes, kl, *[""] * 7, best.recipe)


def measure_trims(bench: Bench) -> Iterator[Row]:
    """Measure what trimming costs on its own: f32 but for the neurons that experts keep."""
    layers = {split_name(m)[0] for m in bench.draft.matrices if split_name(m)[1] == EXPERTS_DOWN}
    for n_kept in TRIMMED:
        widths = {layer: n_kept for layer in layers if layer is not None}
        choices = Choices(dict.fromkeys(bench.draft.matrices, "f32"), expert_widths=widths)
        found = estimate(bench.draft, make_costs(bench.sensitivity, bench.importance, {}), choices)
        scores = {}
        for refit in (True, False):
            path = bench.write_file(found, Transforms(refit=refit), bench.importance)
            scores[refit] = bench.judge.score(path)
            side = f"f32 trimmed to {n_kept}" + ("" if refit else " without refit")
            gain = ("",) * 4 if refit else compare_scores(scores[False], scores[True])
            yield ("", "", side, path.stat().st_size, *describe_scores(scores[refit]),
                   round(found.expected_kl, 6), *gain, describe_types(choices))  # fmt: skip


def measure_types(bench: Bench) -> Iterator[Row]:
    """Measure what the changes do for one type at a time: that of all experts, all else in f32."""
    kinds = {m: split_name(m)[1] for m in bench.draft.matrices}
    layers = {split_name(m)[0] for m, kind in kinds.items() if kind == EXPERTS_DOWN}
    for name in UNIFORM:
        types = {m: name if k in (EXPERTS_UP, EXPERTS_DOWN) else "f32" for m, k in kinds.items()}
        n_embd = 256 if type_named(name).block_weights > 32 else None  # of 224
        widths = {layer: 256 for layer in layers if layer is not None}
        choices = Choices(types, n_embd=n_embd, expert_widths=widths)
        costs = make_costs(bench.sensitivity, bench.importance, {})
        found, base = estimate(bench.draft, costs, choices), None
        for idea in ("", *CHANGES):
            transforms = replace(Transforms(), **({SWITCHES[idea]: False} if idea else {}))
            path = bench.write_file(found, transforms, bench.importance)
            scores = bench.judge.score(path)
            gain = compare_scores(scores, base) if base else ("",) * 4
            base = base or scores
            side = f"experts in {name}" + (f" without {idea}" if idea else "")
            yield ("", "", side, path.stat().st_size, *describe_scores(scores),
                   round(found.expected_kl, 6), *gain, describe_types(choices))  # fmt: skip


def measure(
    folder: Path, binary: Path | None, sizes: Sequence[float], ablated: Sequence[float]
) -> Iterator[Row]:
    """Measure everything, one row at a time."""
    bench = open_bench(folder)
    ablations = {bits: Ablation(bench, bits) for bits in {*sizes, *ablated}}
    for bits in sizes:
        yield ablations[bits].ours[0]
        yield measure_validated(bench, bits)
    for bits in ablated:
        for idea in (*KNOWLEDGE, *PATCHES, *SWITCHES):
            yield ablations[bits].leave_out(idea)
    yield from measure_trims(bench)
    yield from measure_types(bench)
    scarce = replace(bench, importance=read_importance(folder / SCARCE))
    for bits in SCARCE_BITS:
        ablation = Ablation(scarce, bits, "ours, scarce text")
        yield ablation.ours[0]
        yield ablation.leave_out("shrinkage")
    if binary:
        yield from measure_rival(bench, binary, sizes)


def measure_rival(bench: Bench, binary: Path, sizes: Sequence[float]) -> Iterator[Row]:
    """Measure llama-quantize's best at each size."""
    stock = StockQuantizer(
        binary,
        bench.folder / "f32.gguf",
        bench.importance.path,
        lambda path: summarize_scores(bench.judge.score(path)).mean_kl.value,
        bench.folder,
    )
    for bits in sizes:
        yield measure_stock(stock, bench, bits)


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--binary", type=Path, help="llama-quantize; without it, ours alone")
    parser.add_argument("--bits", type=float, nargs="*", default=BITS)
    parser.add_argument("--ablate", type=float, nargs="*", default=ABLATED_BITS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with tempfile.TemporaryDirectory() as folder, given.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", *COLUMNS])
        for row in measure(Path(folder), given.binary, given.bits, given.ablate):
            writer.writerow([machine, *row])
            file.flush()
            print(*row, sep="  ", flush=True)


if __name__ == "__main__":
    main()
