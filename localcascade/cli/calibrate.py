"""`localcascade calibrate`: what the quantizer must know of a model, learnt from a text."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.progress import OnProgress, draw_counts
from localcascade.cli.units import format_bytes, format_duration
from localcascade.errors import ConfigError
from localcascade.store import complete_model_name, find_model

if TYPE_CHECKING:
    from localcascade.engine.calibrate import Calibration
    from localcascade.engine.client import Engine
    from quantize.importance import Coverage
    from quantize.moments import Stack

_STAGES = {
    "load": ("Loading", "%"),
    "calibrate": ("Calibrating", " tokens"),
    "moments": ("Second moments", " tokens"),
    "probe": ("Probing", " matrices"),
}
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
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.imatrix.gguf", help="Importance matrix."),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(metavar="OUT.moments.gguf", help="Second moments of the matrices' inputs."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="N,N-N", help="Layers for --moments; all by default.")
    ] = None,
    expert_moments: Annotated[
        bool,
        typer.Option("--expert-moments", help="With --moments: what each expert reads alone, too."),
    ] = False,
    probe: Annotated[
        Path | None,
        typer.Option(metavar="OUT.sens.toml", help="What errors cost, matrix by matrix."),
    ] = None,
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

    --moments collects how the inputs of each matrix vary together, by which errors of one column
    are made up for in others: 3 GB for the 30 B model. --expert-moments adds what each expert
    reads alone, 20 GB for a little more. A killed run goes on where it was.
    --probe disturbs one matrix after another and measures how far the predictions move.

    \b
    localcascade calibrate nc2-q8_0.gguf -o nc2.imx.gguf --moments nc2.mom.gguf
    localcascade calibrate nc2-q8_0.gguf --moments part.moments.gguf --layers 1-5
    localcascade calibrate tiny -o tiny.imatrix.gguf --probe tiny.sens.toml
    localcascade calibrate tiny -o i.gguf --json | jq .experts_empty
    """
    from localcascade.engine.client import Engine

    job = _Job(find_model(model), tuple(text or ()), ctx)
    wanted = [place for place in (output, moments, probe) if place]
    if not wanted:
        raise typer.BadParameter("name a file to make: --output, --moments or --probe")
    if moments is None and (expert_moments or layers is not None):
        raise typer.BadParameter("--layers and --expert-moments go with --moments")
    for place in wanted:
        _check_place(place)
    if output or moments:
        _check_unchanged(job.model)
    chosen = parse_layers(layers)
    passes = plan_moments(job.model, chosen, has_routed=expert_moments) if moments else []
    report: dict[str, Any] = {}
    with (
        draw_counts(_STAGES) as on_progress,
        Engine(job.model, n_ctx=ctx, n_threads=threads, collects=True) as engine,
    ):
        engine.load(on_progress)
        if output:
            report |= _learn_importance(engine, job, output, on_progress, as_json)
        if moments:
            report |= _learn_moments(engine, job, moments, passes, on_progress, as_json)
        if probe:
            report |= _learn_sensitivity(engine, job, probe, on_progress, as_json)
    if as_json:
        console.print_json(report)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is read, and how."""

    model: Path
    texts: tuple[Path, ...]
    n_ctx: int


def parse_layers(text: str | None) -> frozenset[int] | None:
    """Read a list of layers, as "1,3-5"; None is all.

    Args:
        text: Numbers and ranges, separated by commas.

    Raises:
        typer.BadParameter: It is no such list.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise typer.BadParameter(f"{part!r} is no layer or range of layers, as 3 or 1-5")
        layers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(layers)


def plan_moments(
    model: Path, layers: frozenset[int] | None, *, has_routed: bool
) -> list[list[Stack]]:
    """Plan the passes over the text that second moments take, and say what they will take.

    Args:
        model: A GGUF file.
        layers: Of which layers; None is all.
        has_routed: Of what each expert reads alone, too.

    Raises:
        ConfigError: There are no such layers.
        OutOfBudget: One matrix alone does not fit the memory.
    """
    import psutil

    from localcascade.engine.calibrate import list_stacks, plan_passes

    stacks = list_stacks(model, layers, has_routed=has_routed)
    # The other half is for the model itself, and for the system to keep its pages.
    passes = plan_passes(stacks, psutil.virtual_memory().available // 2)
    size = format_bytes(sum(stack.n_bytes for stack in stacks))
    print(
        f"note: second moments of {len(stacks)} matrices will take {size} on the disk; "
        f"passes over the text: {len(passes)}",
        file=sys.stderr,
    )
    return passes


def _learn_importance(
    engine: Engine, job: _Job, output: Path, on_progress: OnProgress, as_json: bool
) -> dict[str, Any]:
    from localcascade.engine import calibrate as calibration
    from quantize.importance import write_importance

    result = calibration.calibrate(engine, job.texts, n_ctx=job.n_ctx, on_progress=on_progress)
    write_importance(output, result.importance)
    coverage = result.importance.measure_coverage()
    for note in describe_coverage(coverage):
        print(f"note: {note}", file=sys.stderr)
    if not as_json:
        _print_importance(output, result, coverage)
    return _describe(output, result, coverage)


def _learn_moments(
    engine: Engine,
    job: _Job,
    output: Path,
    passes: list[list[Stack]],
    on_progress: OnProgress,
    as_json: bool,
) -> dict[str, Any]:
    from localcascade.engine.calibrate import collect_moments

    n_tokens = collect_moments(
        engine, output, passes, job.texts, n_ctx=job.n_ctx, on_progress=on_progress,
        identity=_identify(job.model),
    )  # fmt: skip
    n_bytes, n_stacks = output.stat().st_size, sum(map(len, passes))
    if not as_json:
        print(f"{output}: {format_bytes(n_bytes)}, {n_stacks} matrices, {n_tokens:,} tokens")
    return {"moments": str(output), "moments_bytes": n_bytes, "moments_matrices": n_stacks}


def _learn_sensitivity(
    engine: Engine, job: _Job, output: Path, on_progress: OnProgress, as_json: bool
) -> dict[str, Any]:
    from localcascade.evaluate.probes import probe_matrices
    from quantize.sensitivity import write_sensitivity

    sensitivity = probe_matrices(engine, job.model, job.texts, on_progress=on_progress)
    write_sensitivity(output, sensitivity)
    ranked = sorted(sensitivity.factors.items(), key=lambda pair: -pair[1])
    if not as_json:
        worst = ", ".join(f"{name} {factor:.3g}" for name, factor in ranked[:3])
        print(f"{output}: {len(ranked)} matrices, {sensitivity.n_tokens:,} tokens; most: {worst}")
    return {
        "probe": str(output),
        "probe_tokens": sensitivity.n_tokens,
        "sensitivities": dict(ranked),
    }


def _identify(model: Path) -> str:
    """Tell one version of a file from another without reading it whole."""
    status = model.stat()
    return f"{model.name} {status.st_size} {status.st_mtime_ns}"


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


def _check_unchanged(model: Path) -> None:
    """Refuse a file whose neurons are not where, or as large as, the checkpoint has them."""
    from quantize.gguf import open_gguf
    from quantize.transform import MOVING

    with open_gguf(model) as file:
        said = str(file.metadata.get("localcascade.transforms", ""))
    if not MOVING.isdisjoint(said.split(", ")):
        raise ConfigError(
            model,
            "localcascade.transforms",
            "neurons were moved or scaled when it was made, so what is learnt from it does not "
            "fit the checkpoint",
            "Calibrate a file made with --type, as `localcascade quantize --type q8_0` makes it.",
        )


def _check_place(output: Path) -> None:
    """Refuse a place that cannot be written to now, not after an hour of calibrating."""
    from quantize.errors import OutputError

    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise OutputError(f"{output}: cannot be created", "Choose a folder you can write to.")


def _print_importance(output: Path, result: Calibration, coverage: Coverage) -> None:
    n_enough = coverage.n_experts - coverage.n_empty - coverage.n_few
    print(
        f"{output}: {format_bytes(output.stat().st_size)}, "
        f"{len(result.importance.matrices)} matrices, "
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
