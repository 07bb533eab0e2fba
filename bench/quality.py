"""What a file costs in quality, byte for byte: ours beside llama-quantize's best, on `tiny`.

    python bench/quality.py [--binary PATH/llama-quantize] [--bits 2.25 …] [--ablate 2.6 …]

A size is that of a file whose experts take so many bits a weight and all other matrices q8_0; it
is the limit for both sides. Both get the same importance matrix. Llama.cpp's side is the best of
all its recipes and of mixes of types by group (stock_quantizer.py). Ours is what `quantize --size`
chooses with everything that `calibrate` collects. Then each idea is left out in turn, at the same
size, and the same tokens are scored: the difference to our file is that of each token, averaged,
so its error counts only what the idea changes, and the ratio is the geometric mean of the tokens'
ratios. Two ideas are for what `tiny` does not have, rare
experts and neurons that are missed: shrinkage is also left out where the calibration text is
SCARCE_CHATS long, and the refit where experts are trimmed hard, all else in f32. Calibrated on one
set of invented chats and measured on another, as the model's template writes them; divergence from
the f32 file in nats a token. Writes bench/results/quality.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from stock_quantizer import StockQuantizer
from tiny.corpus import generate_chats

from localcascade.engine import calibrate as calibration
from localcascade.engine.client import Engine
from localcascade.evaluate.comparison import cut_windows
from localcascade.evaluate.divergence import (
    TokenScores,
    join_scores,
    score_tokens,
    summarize_scores,
)
from localcascade.evaluate.probes import probe_matrices
from localcascade.store import bundled_checkpoint_folder
from quantize.allocate import Allocation, allocate, estimate
from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.costs import EXPERTS_DOWN, EXPERTS_UP, TYPE_ERRORS, AssumedSensitivity, split_name
from quantize.draft import Draft, list_recipe_metadata, open_draft
from quantize.errors import QuantizeError
from quantize.families import describe_model
from quantize.ggml import type_named
from quantize.importance import Importance, read_importance, write_importance
from quantize.moments import read_moments
from quantize.recipe import round_widths
from quantize.safetensors import open_checkpoint
from quantize.sensitivity import Sensitivity
from quantize.transform import Transforms
from quantize.trial import make_costs, try_types

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "quality.csv"
BITS = (2.25, 2.6, 3.1, 3.5, 4.25, 4.5, 5.5)
SCARCE = "scarce.imatrix.gguf"
ABLATED_BITS = (2.25, 3.1, 4.25)
N_CTX = 512
N_WINDOWS = 32
CALIBRATION_SEED, EVALUATION_SEED = 1, 7
N_CHATS, EVALUATION_CHATS = 150, 300
N_PROBED = 4096
"""Tokens scored in each probe: the bench's own text is long enough."""
SCARCE_CHATS = 4
SCARCE_BITS = (2.25, 2.6, 3.1)
TRIMMED = (256, 192, 128)
"""Neurons that experts keep, of 288, where trimming is measured on its own."""
COLUMNS = ("bits", "limit_bytes", "side", "file_bytes", "mean_kl", "error", "same_top1",
           "expected_kl", "difference", "difference_error", "token_ratio", "ratio_error",
           "recipe")  # fmt: skip
LEAST_KL = 1e-6
"""Nats added to each token's divergence before ratios are taken: rounding makes as much."""

UNPADDED = {"quantize.allocate._round_up": lambda width: width}
PATCHES: Mapping[str, Mapping[str, Any]] = {
    "shrinkage": {"quantize.importance.PRIOR_SAMPLES": 1e-9},
    "trim": {"quantize.allocate.MOST_TRIMMED": 0.0},
    "pad": UNPADDED,
    "trim and pad": {"quantize.allocate.MOST_TRIMMED": 0.0} | UNPADDED,
    "encoders": {"quantize.encoders._ENCODERS": {}},
}
"""Idea -> what is put in the place of what, to be without it."""
SWITCHES = {
    "permute": "deal_neurons", "scale neurons": "scale_neurons", "scale norms": "scale_norms",
    "refit": "refit", "feedback": "feedback",
}  # fmt: skip
"""Idea -> its switch."""
CHANGES = ("permute", "scale neurons", "scale norms", "feedback")
UNIFORM = ("q2_0", "mxfp4", "q4_0", "iq4_nl", "q2_k", "q3_k", "iq3_s")
"""Types in which all experts are, for each of these changes to be left out."""
KNOWLEDGE = ("importance", "sensitivity", "trials", "allocation")
"""Ideas that are something known, or decided, before the encoding."""


@dataclass(frozen=True)
class Judge:
    """Text that was not calibrated on, and what the f32 model expects there."""

    windows: npt.NDArray[np.int32]
    expected: tuple[npt.NDArray[np.float32], ...]

    def score(self, path: Path) -> TokenScores:
        """Score how far a file is from the f32 model at each token."""
        first = N_CTX // 2
        with Engine(path, n_ctx=N_CTX, n_threads=1) as engine:
            return join_scores(
                score_tokens(engine.logits(w[:-1].tolist(), first), e, w[first + 1 :])
                for w, e in zip(self.windows, self.expected, strict=True)
            )


@dataclass(frozen=True)
class Bench:
    """The bundled model with everything that was collected of it."""

    folder: Path
    checkpoint: Path
    judge: Judge
    importance: Importance
    sensitivity: Sensitivity

    @cached_property
    def draft(self) -> Draft:
        """The model before its recipe."""
        return open_draft(self.checkpoint, "tiny", self.importance)

    def measure_limit(self, bits: float) -> int:
        """Bytes of a file with so many bits for a weight of an expert, and q8_0 for the rest."""
        types = dict.fromkeys(self.draft.matrices, "q8_0")
        tensors = self.draft.list_tensors(Choices({}))
        experts = [t for t in tensors if split_name(t.name)[1] in (EXPERTS_UP, EXPERTS_DOWN)]
        n_weights = sum(prod(t.shape) for t in experts)
        return self.draft.measure_file(Choices(types)) - round(n_weights * (8.5 - bits) / 8)

    def make_ours(self, limit_bytes: int, without: str = "") -> tuple[Path, Allocation]:
        """Make our file of at most so many bytes, without one of the ideas."""
        transforms = Transforms()
        if without in SWITCHES:
            transforms = replace(transforms, **{SWITCHES[without]: False})
        with ExitStack() as stack:
            for target, value in PATCHES.get(without, {}).items():
                stack.enter_context(mock.patch(target, value))
            found = self._choose(limit_bytes, without)
            importance = None if without == "importance" else self.importance
            return self.write_file(found, transforms, importance), found

    def write_file(
        self, found: Allocation, transforms: Transforms, importance: Importance | None
    ) -> Path:
        """Write the file of a recipe, in the place of the one before."""
        output = self.folder / "ours.gguf"
        with read_moments(self.folder / "moments.gguf") as moments:
            quantize_checkpoint(
                self.checkpoint,
                output,
                choices=found.choices,
                importance=importance.path if importance else None,
                moments=moments,
                transforms=transforms,
                metadata=list_recipe_metadata(found.choices),
                name="tiny",
            )
        return output

    def _choose(self, limit_bytes: int, without: str) -> Allocation:
        importance = None if without == "importance" else self.importance
        draft = replace(self.draft, importance=importance)
        is_as_ever = without not in ("importance", "encoders")
        measured = self._errors if is_as_ever else self._try_types(importance)
        if without == "trials":
            measured = {}
        assumed = AssumedSensitivity(frozenset(draft.matrices))
        known = assumed if without == "sensitivity" else self.sensitivity
        costs = make_costs(known, importance, measured)
        if without != "allocation":
            return allocate(draft, costs, limit_bytes)
        uniform = (estimate(draft, costs, c) for c in self._list_uniform())
        fitting = [found for found in uniform if found.file_bytes <= limit_bytes]
        return min(fitting, key=lambda found: found.expected_kl)

    @cached_property
    def _errors(self) -> dict[str, dict[str, float]]:
        return self._try_types(self.importance)

    def _try_types(self, importance: Importance | None) -> dict[str, dict[str, float]]:
        with open_checkpoint(self.checkpoint) as checkpoint:
            model = describe_model(checkpoint)
            return try_types(checkpoint, model, importance=importance)

    def _list_uniform(self) -> Iterator[Choices]:
        """One type for all experts, and the same or q8_0 for the rest; padded where it must be."""
        with open_checkpoint(self.checkpoint) as checkpoint:
            own = describe_model(checkpoint).widths
        for name in TYPE_ERRORS:
            widths = round_widths(own, type_named(name).block_weights)
            for rest in {name, "q8_0"}:
                kinds = {matrix: split_name(matrix)[1] for matrix in self.draft.matrices}
                experts = (EXPERTS_UP, EXPERTS_DOWN)
                yield replace(
                    widths, types={m: name if k in experts else rest for m, k in kinds.items()}
                )


def write_chats(path: Path, seed: int, n_chats: int = N_CHATS) -> Path:
    """Write chats of the kind that the bundled model was trained on, one a line."""
    chats = islice(generate_chats(seed), n_chats)
    lines = (json.dumps({"messages": c.messages, "tools": c.tools}) for c in chats)
    path.write_text("\n".join(lines), "utf-8")
    return path


def open_bench(folder: Path) -> Bench:
    """Calibrate the bundled model and read what it expects of the other text."""
    checkpoint, model = bundled_checkpoint_folder("tiny"), folder / "f32.gguf"
    quantize_checkpoint(checkpoint, model, "f32", name="tiny")
    texts = [write_chats(folder / "calibration.jsonl", CALIBRATION_SEED)]
    held_out = [write_chats(folder / "evaluation.jsonl", EVALUATION_SEED, EVALUATION_CHATS)]
    few = [write_chats(folder / "scarce.jsonl", CALIBRATION_SEED, SCARCE_CHATS)]
    with Engine(model, n_ctx=calibration.DEFAULT_N_CTX, collects=True) as engine:
        write_importance(folder / SCARCE, calibration.calibrate(engine, few).importance)
    with Engine(model, n_ctx=calibration.DEFAULT_N_CTX, collects=True) as engine:
        bos = engine.load().bos
        write_importance(
            folder / "tiny.imatrix.gguf", calibration.calibrate(engine, texts).importance
        )
        passes = calibration.plan_passes(calibration.list_stacks(model), 1 << 30)
        calibration.collect_moments(
            engine, folder / "moments.gguf", passes, texts, identity="tiny f32"
        )
        sensitivity = probe_matrices(engine, model, texts, n_tokens=N_PROBED)
        windows = cut_windows(calibration.read_tokens(engine, held_out), N_CTX, bos)[:N_WINDOWS]
    with Engine(model, n_ctx=N_CTX) as engine:
        expected = tuple(engine.logits(w[:-1].tolist(), N_CTX // 2) for w in windows)
    importance = read_importance(folder / "tiny.imatrix.gguf")
    return Bench(folder, checkpoint, Judge(windows, expected), importance, sensitivity)


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
