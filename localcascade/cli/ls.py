"""`localcascade ls`: what is installed, and whether it fits this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from localcascade.hardware import Gpu, Memory
    from localcascade.store import InstalledModel

Fit = Literal["gpu", "gpu+memory", "memory", "no"]

MARGIN_BYTES = 3 << 29
"""Beside the weights: a context of 128k tokens (0.75 GiB on the 30 B models), the recurrent
state (48 MiB), compute buffers."""
_FIT_WORDS: dict[Fit | None, str] = {
    "gpu": "GPU", "gpu+memory": "GPU + RAM", "memory": "RAM", "no": "no", None: "",
}  # fmt: skip


def ls(
    as_json: AsJson = False,
) -> None:
    """List the installed models.

    Fits is an estimate: the files and 1.5 GiB, against the memory this machine has. It is said
    of GGUF models only, as a checkpoint is not what runs.

    \b
    localcascade ls
    localcascade ls --json | jq -r '.models[].name'
    """
    from localcascade import hardware
    from localcascade.store import list_models

    models, memory, gpus = list_models(), hardware.read_memory(), hardware.find_gpus()
    if as_json:
        rows = [describe_model(model, judge_fit(model, memory, gpus)) for model in models]
        console.print_json({"models": rows, "fit_is_estimate": True})
        return
    for model in models:
        if model.problem:
            console.print_problem(model.problem, f"`localcascade rm {model.name}` removes it.")
    if models:
        console.print_tables(_draw_models(models, memory, gpus))
    else:
        print("Nothing is installed. `localcascade models` lists what there is.", file=sys.stderr)


def estimate_fit(file_bytes: int, memory_bytes: int, gpu_bytes: int, *, unified: bool) -> Fit:
    """Estimate where a model fits; pure arithmetic, coarser than a plan of its layers.

    Args:
        file_bytes: Of all its files.
        memory_bytes: Main memory in all.
        gpu_bytes: Memory of all GPUs together; 0 if unknown.
        unified: True if the GPU's memory is the main memory.
    """
    need_bytes = file_bytes + MARGIN_BYTES
    if need_bytes <= gpu_bytes:
        return "gpu"
    if need_bytes <= memory_bytes:
        return "memory"
    shared_bytes = gpu_bytes if unified else gpu_bytes + memory_bytes
    return "gpu+memory" if need_bytes <= shared_bytes else "no"


def judge_fit(model: InstalledModel, memory: Memory, gpus: Sequence[Gpu]) -> Fit | None:
    """Estimate where an installed model fits; None for a checkpoint, which is not what runs."""
    if model.kind == "checkpoint":
        return None
    gpu_bytes = sum(gpu.memory_bytes or 0 for gpu in gpus)
    unified = any(gpu.vendor == "Apple" for gpu in gpus)
    return estimate_fit(model.size_bytes, memory.total_bytes, gpu_bytes, unified=unified)


def describe_model(model: InstalledModel, fit: Fit | None) -> dict[str, Any]:
    """Build one model of `--json`; keys are a contract, more may be added.

    Args:
        model: As installed.
        fit: Of `judge_fit`.
    """
    weights = model.manifest.weights if model.manifest else None
    return {
        "name": model.name,
        "kind": model.kind,
        "type": weights.type if weights else None,
        "file_bytes": model.size_bytes,
        "bits_per_weight": weights.bits_per_weight if weights else None,
        "fits": fit,
        "last_used": format_moment(model.last_used_s),
        "path": str(model.place),
        "verified": model.manifest is not None,
        "problem": model.problem or None,
    }


def format_moment(moment_s: float | None) -> str | None:
    """Write seconds since 1970 as UTC in ISO 8601; None stays None."""
    if moment_s is None:
        return None
    return datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="seconds")


def _draw_models(models: Sequence[InstalledModel], memory: Memory, gpus: Sequence[Gpu]) -> Table:
    table = console.make_table("Name", "Kind", "Type", "Size>", "Bits>", "Fits (est.)", "Last used")
    # In a narrow window a long name takes two lines, as it must be read whole to be typed.
    table.columns[0].overflow = "fold"
    for model in models:
        weights = model.manifest.weights if model.manifest else None
        moment_s = model.last_used_s
        table.add_row(
            console.make_text(model.name, "bold"),
            model.kind,
            console.make_text(weights.type if weights else ""),
            format_bytes(model.size_bytes),
            f"{weights.bits_per_weight:.2f}" if weights else "",
            _FIT_WORDS[judge_fit(model, memory, gpus)],
            f"{datetime.fromtimestamp(moment_s):%Y-%m-%d}" if moment_s is not None else "never",
        )
    return table
