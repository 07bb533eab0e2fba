"""`localcascade compare` as a shell sees it: stdout, stderr, exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from localcascade.cli.app import run_arguments
from localcascade.cli.compare import describe_comparison
from localcascade.evaluate.comparison import Comparison
from localcascade.evaluate.divergence import Bucket, Estimate, Figures
from tests.localcascade.models import write_model

FIGURES = {
    "n_tokens", "mean_kl", "median_kl", "p99_kl", "p999_kl", "max_kl",
    "same_top1", "perplexity", "reference_perplexity", "perplexity_ratio",
}  # fmt: skip
ESTIMATES = {"mean_kl", "same_top1", "perplexity", "reference_perplexity", "perplexity_ratio"}


@pytest.fixture
def working(home: Path) -> Path:
    """The working folder, with two models and a text of five windows of 32 tokens in it."""
    write_model(Path("f32.gguf"))
    write_model(Path("q8_0.gguf"), quantized=True)
    Path("text.txt").write_text("0123456789abcdefg" * 10)
    return Path.cwd()


def run_compare(*arguments: str) -> int:
    return run_arguments(["compare", *arguments])


GIVEN = ("q8_0.gguf", "--reference", "f32.gguf", "--text", "text.txt", "--ctx", "32")


def test_json_has_the_promised_keys(working: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compare(*GIVEN, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert set(report) >= FIGURES
    assert {f"{name}_error" for name in ESTIMATES} <= set(report)
    assert (report["n_ctx"], report["n_windows"], report["n_tokens"]) == (32, 5, 75)
    assert 0 < report["median_kl"] < report["p99_kl"] < report["max_kl"] < 0.1
    ratio = report["perplexity"] / report["reference_perplexity"]
    assert report["perplexity_ratio"] == pytest.approx(ratio)
    assert [bucket["first_context_tokens"] for bucket in report["by_context"]] == [17, 20, 24, 28]
    assert all(set(bucket) >= FIGURES for bucket in report["by_context"])


def test_a_model_compared_with_itself(working: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compare("f32.gguf", *GIVEN[1:], "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mean_kl"], report["max_kl"]) == (0, 0)
    assert (report["same_top1"], report["perplexity_ratio"]) == (1, 1)


def test_the_table_fits_80_columns(working: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compare(*GIVEN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.split()[0] for line in lines if line]
    assert starts == [
        "Candidate", "Reference", "Text", "Windows", "Compared",
        "KL", "mean", "median", "99", "99.9", "largest",
        "Value", "Same", "Perplexity", "Perplexity", "Perplexity",
        "Read", "17", "20", "24", "28",
    ]  # fmt: skip


def test_figures_too_large_for_json_are_null() -> None:
    huge = Estimate(math.inf, math.nan)
    one = Estimate(1.0, 0.0)
    figures = Figures(2, one, 1.0, 1.0, 1.0, 1.0, one, huge, one, huge)
    report = describe_comparison(Comparison(1, figures, (Bucket(1, 2, figures),), 0.5))
    assert report["perplexity"] is report["perplexity_error"] is report["perplexity_ratio"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("missing.gguf", *GIVEN[1:]), 3, "missing.gguf"),
        (("f32.gguf", "--reference", "nothing", *GIVEN[3:]), 3, "nothing"),
        (("f32.gguf", "--reference", "f32.gguf", "--text", "absent.txt"), 2, "absent.txt"),
        (("f32.gguf", "--reference", "f32.gguf", "--text", "latin.txt"), 2, "byte 3 is 0xe9"),
        (("f32.gguf", "--reference", "f32.gguf", "--text", "text.txt"), 2, "170 tokens"),
        ((*GIVEN[:-1], "7"), 2, "--ctx"),
        (("f32.gguf", "--reference", "f32.gguf"), 2, "--text"),
        (("short.gguf", *GIVEN[1:]), 5, "short.gguf"),
    ],
)
def test_refusals_have_their_code_and_print_nothing(
    arguments: tuple[str, ...],
    code: int,
    says: str,
    working: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("latin.txt").write_bytes("Café".encode("latin-1"))
    Path("short.gguf").write_bytes(Path("f32.gguf").read_bytes()[:3000])
    assert run_compare(*arguments) == code
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""
