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
from calibrated_model import KNOWLEDGE, PATCHES, SCARCE, SWITCHES, Bench, open_bench, switch_off
from stock_quantizer import StockQuantizer

from localcascade.cli.validation import HEAVIER, PARTS
from localcascade.evaluate.divergence import TokenScores, summarize_scores
from quantize.allocate import Allocation, estimate
from quantize.choices import Choices
from quantize.costs import EXPERTS_DOWN, EXPERTS_UP, split_name
from quantize.errors import QuantizeError
from quantize.ggml import type_named
from quantize.importance import read_importance
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
EXPERTS = (EXPERTS_UP, EXPERTS_DOWN)
LEAST_KL = 1e-6
"""Nats added to each token's divergence before ratios are taken: rounding makes as much."""

CHANGES = ("permute", "scale neurons", "scale norms", "feedback")
UNIFORM = ("q2_0", "mxfp4", "q4_0", "iq4_nl", "q2_k", "q3_k", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
"""Types in which all experts are, for each of these changes to be left out."""

Row = dict[str, object]
"""Column -> value; a column that says nothing of a file is left out."""


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
            return self._size | {"side": side, "recipe": type(error).__name__}
        return row | compare_scores(scores, self.ours[1])

    def measure_validated(self) -> Row:
        """Measure what `--validate` keeps: of recipes that weigh a part of the model double, and
        of the one that does not, that which is best on a text of its own."""
        weights = {part: dict.fromkeys(kinds, HEAVIER) for part, kinds in PARTS.items()} | {"": {}}
        tried = {}
        for part in ("", *PARTS):
            path, _ = self.bench.make_ours(self._limit, weights=weights[part])
            tried[part] = self.bench.validator.score(path).kl.mean()
        best = min(tried, key=lambda part: tried[part])
        path, found = self.bench.make_ours(self._limit, weights=weights[best])
        side = f"{self.side} validated: {best or 'as planned'}"
        return self._size | describe_file(side, path, self.bench.judge.score(path), found)

    def _make(self, idea: str, side: str) -> tuple[Row, TokenScores]:
        path, found = self.bench.make_ours(self._limit, idea)
        scores = self.bench.judge.score(path)
        return self._size | describe_file(side, path, scores, found), scores

    @cached_property
    def _limit(self) -> int:
        return self.bench.measure_limit(self.bits)

    @property
    def _size(self) -> Row:
        return {"bits": self.bits, "limit_bytes": self._limit}


def describe_file(side: str, path: Path, scores: TokenScores, found: Allocation) -> Row:
    """Say how large a file is, how far it diverges, and what it is made of."""
    figures = summarize_scores(scores)
    return {
        "side": side,
        "file_bytes": path.stat().st_size,
        "mean_kl": round(figures.mean_kl.value, 6),
        "error": round(figures.mean_kl.error, 6),
        "same_top1": round(figures.same_top1.value, 4),
        "expected_kl": round(found.expected_kl, 6),
        "recipe": describe_types(found.choices),
    }


def compare_scores(scores: TokenScores, base: TokenScores) -> Row:
    """Compare token by token: by how much the divergence is larger, and how many times.

    The mean is that of a few tokens on which much goes wrong; the ratio, a geometric mean, is that
    of all others.
    """
    differences = scores.kl - base.kl
    logs = np.log((scores.kl + LEAST_KL) / (base.kl + LEAST_KL))
    errors = [values.std(ddof=1) / len(values) ** 0.5 for values in (differences, logs)]
    ratio = float(np.exp(logs.mean()))
    found = (differences.mean(), errors[0], ratio, ratio * errors[1])
    columns = ("difference", "difference_error", "token_ratio", "ratio_error")
    return {name: round(float(value), 6) for name, value in zip(columns, found, strict=True)}


def describe_types(choices: Choices) -> str:
    """Say what the experts became, and their widths."""
    types = [t for m, t in choices.types.items() if split_name(m)[1] in EXPERTS]
    widths = "/".join(map(str, choices.expert_widths.values()))
    return f"{' '.join(types)}; {choices.n_embd or 'own'} x {widths or 'own'}"


def measure_trims(bench: Bench) -> Iterator[Row]:
    """Measure what trimming costs on its own: f32 but for the neurons that experts keep."""
    for n_kept in TRIMMED:
        choices = choose_experts(bench, "f32", n_kept)
        yield from measure_recipe(bench, f"f32 trimmed to {n_kept}", choices, ("refit",))


def measure_types(bench: Bench) -> Iterator[Row]:
    """Measure what the changes do for one type at a time: that of all experts, all else in f32."""
    for name in UNIFORM:
        choices = choose_experts(bench, name, 256)
        if type_named(name).block_weights > 32:
            choices = replace(choices, n_embd=256)  # of 224
        yield from measure_recipe(bench, f"experts in {name}", choices, CHANGES)


def choose_experts(bench: Bench, type_name: str, n_kept: int) -> Choices:
    """One type and width for all experts, and f32 for everything else."""
    names = {matrix: split_name(matrix) for matrix in bench.draft.matrices}
    types = {m: type_name if kind in EXPERTS else "f32" for m, (_, kind) in names.items()}
    layers = {layer for layer, kind in names.values() if kind in EXPERTS and layer is not None}
    return Choices(types, expert_widths=dict.fromkeys(sorted(layers), n_kept))


def measure_recipe(
    bench: Bench, side: str, choices: Choices, ideas: Sequence[str]
) -> Iterator[Row]:
    """Measure a recipe, then the same without each of some changes."""
    found = estimate(bench.draft, make_costs(bench.sensitivity, bench.importance, {}), choices)
    base = None
    for idea in ("", *ideas):
        path = bench.write_file(found, switch_off(idea), bench.importance)
        scores = bench.judge.score(path)
        row = describe_file(side + f" without {idea}" * bool(idea), path, scores, found)
        yield row | (compare_scores(scores, base) if base else {})
        base = base or scores


def measure(
    folder: Path, binary: Path | None, sizes: Sequence[float], ablated: Sequence[float]
) -> Iterator[Row]:
    """Measure everything, one row at a time."""
    bench = open_bench(folder)
    ablations = {bits: Ablation(bench, bits) for bits in {*sizes, *ablated}}
    for bits in sizes:
        yield ablations[bits].ours[0]
        yield ablations[bits].measure_validated()
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
        limit = bench.measure_limit(bits)
        row: Row = {"bits": bits, "limit_bytes": limit, "side": "llama-quantize"}
        best = stock.find_best(limit)
        if best is None:
            yield row | {"recipe": f"none: {stock.least_bytes}"}
        else:
            kl = round(best.mean_kl, 6)
            yield row | {"file_bytes": best.file_bytes, "mean_kl": kl, "recipe": best.recipe}


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
        writer = csv.DictWriter(file, ("machine", *COLUMNS))
        writer.writeheader()
        for row in measure(Path(folder), given.binary, given.bits, given.ablate):
            writer.writerow({"machine": machine} | row)
            file.flush()
            print(*(row.get(column, "") for column in COLUMNS), sep="  ", flush=True)


if __name__ == "__main__":
    main()
