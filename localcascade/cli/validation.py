"""`quantize --validate`: measure a finished file, and see whether other recipes do better.

What a recipe is expected to cost is a sum to first order, of sensitivities that were assumed or
probed one by one. So the file is compared with its original; then the recipe is solved again, in
the same bytes, with one part of the model weighed heavier, and the file that measures best stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcascade.cli.compare import make_quality, read_text
from localcascade.cli.recipes import Proposal, weigh_again

if TYPE_CHECKING:
    from localcascade.evaluate.divergence import Figures
    from quantize.convert import Result

STAGES = {
    "load reference": ("Loading reference", "%"),
    "load candidate": ("Loading candidate", "%"),
    "compare": ("Comparing", " tokens"),
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "experts": ("ffn_up_exps", "ffn_down_exps"),
    "layers": (
        "ssm_in", "ssm_out", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up_shexp",
        "ffn_down_shexp", "ffn_up", "ffn_down", "ffn_latent_up", "ffn_latent_down",
    ),
    "embeddings": ("token_embd", "output"),
}  # fmt: skip
"""Part of a model -> kinds of its matrices."""
HEAVIER = 2.0
"""How much more a part counts in the recipe that is tried for it."""
N_CTX = 512
_CHARACTERS = 1 << 13
"""Of each plain text that ships with the package."""

Make = Callable[[Proposal, Path], "Result"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One file that was measured."""

    heavier: str
    """The part that its recipe weighs heavier; empty for the recipe that was asked for."""
    expected_kl: float
    """Nats a token, as the unchanged sensitivities say."""
    figures: Figures
    is_kept: bool
    """It was the best so far."""


@dataclass(frozen=True, slots=True)
class Validation:
    """All files that were measured; the last one kept is the one that stays."""

    trials: tuple[Trial, ...]
    proposal: Proposal
    """Of the file that stays."""

    @property
    def kept(self) -> Trial:
        """The file that stays."""
        return next(trial for trial in reversed(self.trials) if trial.is_kept)


def validate(
    output: Path, proposal: Proposal, reference: Path, text: Path | None, make: Make
) -> Validation:
    """Measure a file, try other recipes of its size, and record the figures of the best in it.

    Args:
        output: The finished file of the proposal; replaced by a better one.
        proposal: Of --fit or --size; of a given recipe nothing else is tried.
        reference: GGUF file of the original.
        text: To compare on; None takes some of the text that ships with the package.
        make: Makes the file of another proposal.

    Raises:
        QuantizeError, CascadeError: As conversion and comparison do; `output` stays.
    """
    from quantize.quality import record_quality

    content, name = (read_text(text), text.name) if text else (_read_shipped(), "shipped text")
    best = _measure(output, reference, content)
    trials = [Trial("", proposal.allocation.expected_kl, best, True)]
    trial_file = output.with_name(output.name + ".trial")
    for part, heavier in _list_trials(proposal):
        make(heavier, trial_file)
        found = _measure(trial_file, reference, content)
        is_better = found.mean_kl.value < best.mean_kl.value
        trials.append(Trial(part, heavier.allocation.expected_kl, found, is_better))
        if is_better:
            trial_file.replace(output)
            best, proposal = found, heavier
        trial_file.unlink(missing_ok=True)
    record_quality(output, make_quality(best, reference.name, name))
    return Validation(tuple(trials), proposal)


def _list_trials(proposal: Proposal) -> Iterator[tuple[str, Proposal]]:
    if proposal.request.recipe:
        return
    seen = [proposal.choices]
    for part, kinds in PARTS.items():
        heavier = weigh_again(proposal, dict.fromkeys(kinds, HEAVIER))
        if heavier.choices not in seen:
            seen.append(heavier.choices)
            yield part, heavier


@contextmanager
def open_reference(checkpoint: Path, output: Path, given: Path | None) -> Iterator[Path]:
    """Have the original in a form that llama.cpp runs.

    Args:
        checkpoint: Of which a file in bf16 is made beside `output`, if none is given; removed
            afterwards.
        output: The file to be measured.
        given: GGUF file of the original; None if there is none.

    Raises:
        QuantizeError: The file cannot be made.
    """
    from quantize.convert import quantize_checkpoint

    if given:
        yield given
        return
    made = output.with_name(output.name + ".reference")
    try:
        quantize_checkpoint(checkpoint, made, "bf16")
        yield made
    finally:
        made.unlink(missing_ok=True)


def describe_validation(validation: Validation) -> dict[str, Any]:
    """Say what was measured in plain data; the keys are a contract, more may be added."""
    kept = validation.kept
    return {
        "mean_kl": kept.figures.mean_kl.value,
        "mean_kl_error": kept.figures.mean_kl.error,
        "p99_kl": kept.figures.p99_kl,
        "same_top1": kept.figures.same_top1.value,
        "n_tokens": kept.figures.n_tokens,
        "expected_kl": kept.expected_kl,
        "trials": [
            {
                "heavier": trial.heavier or None,
                "expected_kl": trial.expected_kl,
                "mean_kl": trial.figures.mean_kl.value,
                "kept": trial.is_kept,
            }
            for trial in validation.trials
        ],
    }


def list_lines(validation: Validation) -> list[str]:
    """Say what was measured, a line each."""
    kept = validation.kept.figures
    lines = [
        f"Measured divergence: {kept.mean_kl.value:.4f} ± {kept.mean_kl.error:.4f} nats a token "
        f"(expected {validation.kept.expected_kl:.4f}), same likeliest token "
        f"{kept.same_top1.value:.1%}, {kept.n_tokens:,} tokens"
    ]
    for trial in validation.trials[1:]:
        verdict = "better, kept" if trial.is_kept else "no better"
        value = trial.figures.mean_kl.value
        lines.append(f"Tried with {trial.heavier} weighed double: {value:.4f}, {verdict}")
    return lines


def _measure(candidate: Path, reference: Path, content: str) -> Figures:
    from localcascade.cli.progress import draw_counts
    from localcascade.evaluate.comparison import compare_models

    with draw_counts(STAGES) as on_progress:
        return compare_models(
            candidate, reference, content, n_ctx=N_CTX, on_progress=on_progress
        ).figures


def _read_shipped() -> str:
    from localcascade.engine.calibrate import list_default_texts

    plain = (path for path in list_default_texts() if path.suffix != ".jsonl")
    return "\n\n".join(path.read_text("utf-8")[:_CHARACTERS] for path in plain)
