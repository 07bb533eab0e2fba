"""`localcascade calibrate`: an importance matrix for the quantizer, expert by expert."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.progress import draw_counts
from localcascade.cli.units import format_bytes, format_duration
from localcascade.store import complete_model_name, find_model

if TYPE_CHECKING:
    from localcascade.engine.calibrate import Calibration
    from quantize.importance import Coverage

_STAGES = {"load": ("Loading", "%"), "calibrate": ("Calibrating", " tokens")}
_MAX_NAMED = 8


def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An installed name, or a GGUF file: the finer, the better.",
            autocompletion=complete_model_name,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.imatrix.gguf", help="The file to make.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="UTF-8 text, or chats as .jsonl; may be repeated. Without it: ours.",
        ),
    ] = None,
    ctx: Annotated[
        int, typer.Option(min=16, max=1 << 20, metavar="N", help="Tokens read in one go.")
    ] = 2048,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; one a core by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a text which weights of a model matter.

    The model reads the text, and for every matrix and every expert the squares of the inputs
    are summed up. `quantize` and llama-quantize spend their bits by it. A chat is a line
    {"messages": [...], "tools": [...]}, written as the model's own template writes it, thinking
    included. Experts that saw no text, or little, are named.

    \b
    localcascade calibrate nc2-q8_0.gguf -o nc2.imatrix.gguf
    localcascade calibrate tiny --text chats.jsonl -o tiny.imatrix.gguf
    localcascade calibrate tiny -o tiny.imatrix.gguf --json | jq .experts_empty
    """
    from localcascade.engine import calibrate as calibration
    from localcascade.engine.client import Engine
    from quantize.importance import write_importance

    _check_place(output)
    path = find_model(model)
    with (
        draw_counts(_STAGES) as on_progress,
        Engine(path, n_ctx=ctx, n_threads=threads, collects=True) as engine,
    ):
        engine.load(on_progress)
        result = calibration.calibrate(engine, text or (), n_ctx=ctx, on_progress=on_progress)
        write_importance(output, result.importance)
    coverage = result.importance.measure_coverage()
    for note in describe_coverage(coverage):
        print(f"note: {note}", file=sys.stderr)
    _report(output, result, coverage, as_json)


def describe_coverage(coverage: Coverage) -> list[str]:
    """Say which experts the text did not reach, and what that means; nothing if it did all.

    Args:
        coverage: Of the importance matrix.
    """
    from quantize.importance import FEW_SAMPLES

    notes = []
    if coverage.n_empty:
        notes.append(
            f"{coverage.n_empty} of {coverage.n_experts} experts saw no text and get the mean of "
            f"their layer: {_name_experts(coverage.empty)}"
        )
    if coverage.n_few:
        notes.append(
            f"{coverage.n_few} of {coverage.n_experts} experts saw fewer than {FEW_SAMPLES} tokens "
            f"and lean towards it: {_name_experts(coverage.few)}"
        )
    return notes


def _name_experts(experts: Mapping[str, Sequence[int]]) -> str:
    """Name the first few: "blk.1: 3, 7; blk.4: 0 and 12 more"."""
    n_left, parts = _MAX_NAMED, []
    for layer, indices in experts.items():
        if n_left > 0:
            parts.append(f"{layer}: {', '.join(map(str, indices[:n_left]))}")
        n_left -= len(indices)
    return "; ".join(parts) + (f" and {-n_left} more" if n_left < 0 else "")


def _check_place(output: Path) -> None:
    """Refuse a place that cannot be written to now, not after an hour of calibrating."""
    from quantize.errors import OutputError

    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise OutputError(f"{output}: cannot be created", "Choose a folder you can write to.")


def _report(output: Path, result: Calibration, coverage: Coverage, as_json: bool) -> None:
    importance = result.importance
    if as_json:
        console.print_json(_describe(output, result, coverage))
        return
    n_enough = coverage.n_experts - coverage.n_empty - coverage.n_few
    print(
        f"{output}: {format_bytes(output.stat().st_size)}, {len(importance.matrices)} matrices, "
        f"{result.n_tokens:,} tokens, {format_duration(result.elapsed_s)}"
    )
    if coverage.n_experts:
        print(
            f"experts: {coverage.n_experts}; {n_enough} with enough samples, "
            f"{coverage.n_few} with few, {coverage.n_empty} with none"
        )


def _describe(output: Path, result: Calibration, coverage: Coverage) -> dict[str, Any]:
    importance = result.importance
    return {
        "output": str(output),
        "n_tokens": result.n_tokens,
        "n_chunks": importance.n_chunks,
        "chunk_tokens": importance.chunk_tokens,
        "n_matrices": len(importance.matrices),
        "n_experts": coverage.n_experts,
        "experts_empty": coverage.n_empty,
        "experts_few": coverage.n_few,
        "elapsed_s": round(result.elapsed_s, 3),
    }
