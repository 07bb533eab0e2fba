"""`localcascade compare`: what a quantization cost, measured against the original."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.progress import draw_counts
from localcascade.cli.units import format_duration
from localcascade.errors import EvaluationError
from localcascade.store import complete_model_name, find_model

if TYPE_CHECKING:
    from rich.table import Table

    from localcascade.evaluate.comparison import Comparison
    from localcascade.evaluate.divergence import Estimate, Figures
    from quantize.quality import Quality

_STAGES = {
    "load reference": ("Loading reference", "%"),
    "load candidate": ("Loading candidate", "%"),
    "compare": ("Comparing", " tokens"),
}


def compare(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="CANDIDATE",
            help="The model to judge: a GGUF file, or an installed name.",
            autocompletion=complete_model_name,
        ),
    ],
    reference: Annotated[
        str,
        typer.Option(
            metavar="REF",
            help="What it should be like: a GGUF file, or an installed name.",
            autocompletion=complete_model_name,
        ),
    ],
    text: Annotated[
        Path,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, readable=True, help="UTF-8 text to read."
        ),
    ],
    ctx: Annotated[
        int, typer.Option(min=8, max=1 << 20, metavar="N", help="Tokens of a window.")
    ] = 512,
    record: Annotated[
        bool, typer.Option("--record", help="Write the figures into CANDIDATE, for `inspect`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far a model's predictions are from another's.

    Both are loaded and read the text window by window; in the second half of each, what they
    expect is compared token by token. KL divergence (nats) is 0 where the candidate expects
    exactly what the reference does. Windows, positions and formulas are llama-perplexity's, but
    the logits are compared unrounded, and no file of logits is written. With --record the file
    itself says from then on how good it is; it must be one of ours, and not in the store.

    \b
    localcascade compare nc2-iq4_nl.gguf --reference nc2-bf16.gguf --text wiki.txt
    localcascade compare tiny --reference tiny-f32.gguf --text notes.txt --ctx 256
    localcascade compare small.gguf --reference bf16.gguf --text wiki.txt --record
    localcascade compare a.gguf --reference b.gguf --text c.txt --json | jq .
    """
    from localcascade.evaluate.comparison import compare_models
    from quantize.quality import record_quality

    files = find_model(candidate), find_model(reference)
    if record:
        _check_recordable(files[0])
    content = read_text(text)
    with draw_counts(_STAGES) as on_progress:
        comparison = compare_models(*files, content, n_ctx=ctx, on_progress=on_progress)
    if record:
        record_quality(files[0], make_quality(comparison.figures, files[1].name, text.name))
    names = {"candidate": str(files[0]), "reference": str(files[1]), "text": str(text)}
    if as_json:
        console.print_json({**names, "n_ctx": ctx, **describe_comparison(comparison)})
    else:
        _draw_comparison(names, ctx, comparison)


def make_quality(figures: Figures, reference: str, text: str) -> Quality:
    """Choose the figures that a file keeps of its comparison.

    Args:
        figures: Of all tokens.
        reference: Name of the original's file.
        text: Name of the text.
    """
    from quantize.quality import Quality

    return Quality(
        mean_kl=figures.mean_kl.value,
        p99_kl=figures.p99_kl,
        same_top1=figures.same_top1.value,
        n_tokens=figures.n_tokens,
        reference=reference,
        text=text,
    )


def _check_recordable(path: Path) -> None:
    """Refuse a file of the store before an hour of comparing."""
    if (path.parent / "manifest.json").exists():
        raise EvaluationError(
            f"{path} is in the store, whose digests would no longer be true",
            "Record into the file before `localcascade import`, or compare without --record.",
        )


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Build what `--json` prints of the figures.

    Args:
        comparison: What was measured.

    Returns:
        Keys that are a contract; a standard error has its figure's key and `_error`. What is
        too large for a number, as the perplexity of a ruin can be, is null.
    """
    return {
        "n_windows": comparison.n_windows,
        **_describe_figures(comparison.figures),
        "by_context": [
            {
                "first_context_tokens": bucket.first_context_tokens,
                "last_context_tokens": bucket.last_context_tokens,
                **_describe_figures(bucket.figures),
            }
            for bucket in comparison.by_context
        ],
        "elapsed_s": round(comparison.elapsed_s, 3),
    }


def _describe_figures(figures: Figures) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for key, value in asdict(figures).items():
        pair = value if isinstance(value, dict) else {"value": value}
        for part, number in pair.items():
            name = f"{key}_error" if part == "error" else key
            described[name] = number if math.isfinite(number) else None
    return described


def read_text(path: Path) -> str:
    """Read a text to compare on.

    Args:
        path: Of UTF-8.

    Raises:
        EvaluationError: It is something else; names the byte.
        OSError: It cannot be read.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            "Convert it first, for example with iconv -t UTF-8.",
        ) from error


def _draw_comparison(names: dict[str, str], n_ctx: int, comparison: Comparison) -> None:
    console.print_tables(
        _draw_heading(names, n_ctx, comparison),
        _draw_divergence(comparison.figures),
        _draw_perplexity(comparison.figures),
        _draw_buckets(comparison),
    )


def _draw_heading(names: dict[str, str], n_ctx: int, comparison: Comparison) -> Table:
    table = console.make_table("", "")
    table.show_header = False
    for key, name in names.items():
        table.add_row(key.capitalize(), console.make_text(name))
    n_tokens = comparison.figures.n_tokens
    table.add_row("Windows", f"{comparison.n_windows:,} of {n_ctx:,} tokens")
    table.add_row("Compared", f"{n_tokens:,} tokens in {format_duration(comparison.elapsed_s)}")
    return table


def _draw_divergence(figures: Figures) -> Table:
    table = console.make_table("KL divergence", "Nats>", "Standard error>")
    table.add_row("mean", *map(_write_nats, asdict(figures.mean_kl).values()), style="bold")
    for name, value in (
        ("median", figures.median_kl),
        ("99 %", figures.p99_kl),
        ("99.9 %", figures.p999_kl),
        ("largest", figures.max_kl),
    ):
        table.add_row(name, _write_nats(value))
    return table


def _draw_perplexity(figures: Figures) -> Table:
    table = console.make_table("", "Value>", "Standard error>")
    table.add_row("Same likeliest token", *_write_estimate(figures.same_top1, ".3%"), style="bold")
    for name, estimate in (
        ("Perplexity of candidate", figures.perplexity),
        ("Perplexity of reference", figures.reference_perplexity),
        ("Perplexity ratio", figures.perplexity_ratio),
    ):
        table.add_row(name, *_write_estimate(estimate, ",.4f"))
    return table


def _draw_buckets(comparison: Comparison) -> Table:
    table = console.make_table(
        "Read before", "Tokens>", "Mean KL>", "Error>", "Same>", "Perplexity>", "Ratio>"
    )
    for bucket in comparison.by_context:
        figures = bucket.figures
        table.add_row(
            f"{bucket.first_context_tokens:,} to {bucket.last_context_tokens:,}",
            f"{figures.n_tokens:,}",
            *map(_write_nats, asdict(figures.mean_kl).values()),
            f"{figures.same_top1.value:.2%}",
            f"{figures.perplexity.value:,.4f}",
            f"{figures.perplexity_ratio.value:.4f}",
        )
    return table


def _write_nats(value: float) -> str:
    """Write six decimals, as llama-perplexity does, or what is too small for them as a power."""
    return f"{value:.6f}" if value == 0 or value >= 1e-4 else f"{value:.1e}"


def _write_estimate(estimate: Estimate, form: str) -> tuple[str, str]:
    return format(estimate.value, form), format(estimate.error, form)
