"""`quantize --validate` and `compare --record`: figures are kept, and the best file stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from localcascade.cli import validation
from localcascade.cli.app import run_arguments
from localcascade.cli.recipes import Proposal, Request, weigh_again
from localcascade.evaluate.divergence import Estimate, Figures
from quantize.allocate import allocate
from quantize.convert import Result, quantize_checkpoint
from quantize.costs import assume_costs, split_name
from quantize.draft import list_recipe_metadata, open_draft
from quantize.gguf import open_gguf
from quantize.quality import read_quality
from tests.quantize.models import TINY

SIZE = 3 << 20


@pytest.fixture
def proposal() -> Proposal:
    draft = open_draft(TINY, "tiny")
    costs = assume_costs(frozenset(draft.matrices))
    return Proposal(Request(size="3M"), draft, costs, allocate(draft, costs, SIZE), ())


def make(proposal: Proposal, output: Path) -> Result:
    metadata = list_recipe_metadata(proposal.choices)
    return quantize_checkpoint(TINY, output, choices=proposal.choices, metadata=metadata)


def write_figures(mean_kl: float) -> Figures:
    one = Estimate(1.0, 0.0)
    return Figures(100, Estimate(mean_kl, 0.0), 0.0, 0.5, 0.0, 0.0, one, one, one, one)


def read_types(path: Path) -> Mapping[str, str]:
    with open_gguf(path) as file:
        return {name: tensor.type.name for name, tensor in file.tensors.items()}


def test_a_part_that_counts_more_gets_more_bytes(proposal: Proposal) -> None:
    def measure_cost(found: Proposal, part: str) -> float:
        costs = found.allocation.costs
        return sum(costs[n] for n in costs if split_name(n)[1] in validation.PARTS[part])

    for part, kinds in validation.PARTS.items():
        other = weigh_again(proposal, dict.fromkeys(kinds, 4.0))
        assert other.allocation.file_bytes <= SIZE
        assert measure_cost(other, part) <= measure_cost(proposal, part)
        # By the sensitivities as they were, nothing beats the first one.
        assert other.allocation.expected_kl >= proposal.allocation.bound


@pytest.mark.parametrize("better", [0, 1, 2])
def test_the_file_that_measures_best_stays(
    better: int, proposal: Proposal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.gguf"
    make(proposal, output)
    seen: list[Mapping[str, str]] = []

    def measure(candidate: Path, _reference: Path, _content: str) -> Figures:
        seen.append(read_types(candidate))
        return write_figures(0.1 if len(seen) == better + 1 else 0.2)

    monkeypatch.setattr(validation, "_measure", measure)
    found = validation.validate(output, proposal, Path("original.gguf"), None, make)
    assert len(seen) > 2 and len(found.trials) == len(seen)
    kept = better if better < len(seen) else 0
    assert found.trials.index(found.kept) == kept
    assert read_types(output) == seen[kept]
    assert output.stat().st_size <= SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    with open_gguf(output) as file:
        quality = read_quality(file)
    assert quality and (round(quality.mean_kl, 6), quality.n_tokens) == (0.1, 100)
    assert (quality.reference, quality.text) == ("original.gguf", "shipped text")


def test_a_given_recipe_is_measured_and_nothing_else_is_tried(
    proposal: Proposal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, text, out = (tmp_path / name for name in ("r.toml", "sums.txt", "out.gguf"))
    given = replace(proposal, request=Request(recipe=str(recipe)))
    recipe.write_text(given.format_recipe(), "utf-8")
    text.write_text("".join(f"{i} + {i + 7} = {2 * i + 7}\n" for i in range(100, 240)), "utf-8")
    options = ["--recipe", str(recipe), "--validate", "--text", str(text), "--json"]
    assert run_arguments(["quantize", "tiny", str(out), *options]) == 0
    report = json.loads(capsys.readouterr().out)["validation"]
    assert len(report["trials"]) == 1 and report["mean_kl"] > 0
    assert not list(tmp_path.glob("*.reference*")) and not list(tmp_path.glob("*.trial*"))
    # The same comparison by hand, with an original of our own.
    original = tmp_path / "bf16.gguf"
    quantize_checkpoint(TINY, original, "bf16")
    asked = [str(out), "--reference", str(original), "--text", str(text)]
    assert run_arguments(["compare", *asked, "--record", "--json"]) == 0
    by_hand = json.loads(capsys.readouterr().out)
    assert by_hand["mean_kl"] == pytest.approx(report["mean_kl"], rel=1e-6)
    with open_gguf(out) as file:
        quality = read_quality(file)
    assert quality and quality.mean_kl == pytest.approx(by_hand["mean_kl"], rel=1e-6)
    assert (quality.reference, quality.text) == ("bf16.gguf", "sums.txt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--type", "q8_0", "--validate"], "--validate needs"),
        (["--size", "4M", "--text", __file__], "go with --validate"),
        (["--size", "4M", "--dry-run", "--validate"], "--validate goes neither"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["quantize", "tiny", str(tmp_path / "out.gguf"), *options]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_recorded_into_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    (tmp_path / "manifest.json").write_text("{}")
    asked = [str(path), "--reference", str(path), "--text", __file__, "--record"]
    assert run_arguments(["compare", *asked]) == 2
    assert "is in the store" in capsys.readouterr().err
    assert path.read_bytes() == b"GGUF"
