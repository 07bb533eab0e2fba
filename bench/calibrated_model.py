"""The bundled model with all that was collected of it, and files of it with or without an idea.

Calibrated on one set of invented chats and judged on another, as its template writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
from tiny.corpus import generate_chats

from localcascade.engine import calibrate as calibration
from localcascade.engine.client import Engine
from localcascade.evaluate.comparison import cut_windows
from localcascade.evaluate.divergence import TokenScores, join_scores, score_tokens
from localcascade.evaluate.probes import probe_matrices
from localcascade.store import bundled_checkpoint_folder
from quantize.allocate import Allocation, allocate, estimate
from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.costs import (
    EXPERTS_DOWN,
    EXPERTS_UP,
    TYPE_ERRORS,
    AssumedSensitivity,
    WeighedSensitivity,
    split_name,
)
from quantize.draft import Draft, list_recipe_metadata, open_draft
from quantize.families import describe_model
from quantize.ggml import type_named
from quantize.importance import Importance, read_importance, write_importance
from quantize.moments import read_moments
from quantize.recipe import round_widths
from quantize.safetensors import open_checkpoint
from quantize.sensitivity import Sensitivity
from quantize.transform import Transforms
from quantize.trial import make_costs, try_types

SCARCE = "scarce.imatrix.gguf"
"""Importance collected on SCARCE_CHATS, in the bench's folder."""
N_CTX = 512
N_WINDOWS = 128
CALIBRATION_SEED, VALIDATION_SEED, EVALUATION_SEED = 1, 3, 7
N_CHATS, HELD_OUT_CHATS, SCARCE_CHATS = 150, 600, 4
N_PROBED = 4096
"""Tokens scored in each probe: the bench's own text is long enough."""
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
NO_WEIGHTS: Mapping[str, float] = {}
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
    validator: Judge
    """Of another text, by which a recipe may be chosen."""
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

    def make_ours(
        self, limit_bytes: int, without: str = "", weights: Mapping[str, float] = NO_WEIGHTS
    ) -> tuple[Path, Allocation]:
        """Make our file of at most so many bytes, without an idea, or with kinds weighed more."""
        with ExitStack() as stack:
            for target, value in PATCHES.get(without, {}).items():
                stack.enter_context(mock.patch(target, value))
            found = self._choose(limit_bytes, without, weights)
            importance = None if without == "importance" else self.importance
            return self.write_file(found, switch_off(without), importance), found

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

    def _choose(self, limit_bytes: int, without: str, weights: Mapping[str, float]) -> Allocation:
        importance = None if without == "importance" else self.importance
        draft = replace(self.draft, importance=importance)
        is_as_ever = without not in ("importance", "encoders")
        measured = self._errors if is_as_ever else self._try_types(importance)
        if without == "trials":
            measured = {}
        assumed = AssumedSensitivity(frozenset(draft.matrices))
        known = assumed if without == "sensitivity" else self.sensitivity
        costs = make_costs(WeighedSensitivity(known, weights), importance, measured)
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


def switch_off(idea: str) -> Transforms:
    """All changes but the one that is an idea's, if that is one of them."""
    return replace(Transforms(), **({SWITCHES[idea]: False} if idea in SWITCHES else {}))


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
    few = [write_chats(folder / "scarce.jsonl", CALIBRATION_SEED, SCARCE_CHATS)]
    with Engine(model, n_ctx=calibration.DEFAULT_N_CTX, collects=True) as engine:
        write_importance(folder / SCARCE, calibration.calibrate(engine, few).importance)
    with Engine(model, n_ctx=calibration.DEFAULT_N_CTX, collects=True) as engine:
        write_importance(
            folder / "tiny.imatrix.gguf", calibration.calibrate(engine, texts).importance
        )
        passes = calibration.plan_passes(calibration.list_stacks(model), 1 << 30)
        calibration.collect_moments(
            engine, folder / "moments.gguf", passes, texts, identity="tiny f32"
        )
        sensitivity = probe_matrices(engine, model, texts, n_tokens=N_PROBED)
    judges = [open_judge(folder, model, seed) for seed in (EVALUATION_SEED, VALIDATION_SEED)]
    importance = read_importance(folder / "tiny.imatrix.gguf")
    return Bench(folder, checkpoint, *judges, importance, sensitivity)


def open_judge(folder: Path, model: Path, seed: int) -> Judge:
    """Read what the f32 model expects of a text."""
    text = write_chats(folder / f"held_out_{seed}.jsonl", seed, HELD_OUT_CHATS)
    with Engine(model, n_ctx=N_CTX) as engine:
        bos = engine.load().bos
        windows = cut_windows(calibration.read_tokens(engine, [text]), N_CTX, bos)[:N_WINDOWS]
        expected = tuple(engine.logits(w[:-1].tolist(), N_CTX // 2) for w in windows)
    return Judge(windows, expected)
