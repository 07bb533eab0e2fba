"""`localcascade ps`: which models run on this machine, and who else holds its memory."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.units import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from localcascade.engine.running import RunningEngine


def ps(
    as_json: AsJson = False,
) -> None:
    """List the models that run, with the memory each holds.

    The memory of a model is what its process holds of main memory now: parts of the file that
    no token has needed yet are not in it. Other programs are listed from 1 GiB on.

    \b
    localcascade ps
    localcascade ps --json | jq '.engines[].model'
    """
    from localcascade import hardware
    from localcascade.engine.running import list_engines

    engines = list_engines()
    pids = {engine.pid for engine in engines}
    others = [holder for holder in hardware.list_hoarders() if holder.pid not in pids]
    if as_json:
        console.print_json(
            {"engines": list(map(describe_engine, engines)), "others": list(map(asdict, others))}
        )
        return
    if engines:
        console.print_tables(_draw_engines(engines))
    else:
        print("No model runs.", file=sys.stderr)
    for holder in others:
        console.print_note(holder.describe())


def describe_engine(engine: RunningEngine) -> dict[str, Any]:
    """Build one engine of `--json`; keys are a contract, more may be added."""
    from localcascade.cli.ls import format_moment

    return {
        "pid": engine.pid,
        "model": engine.model,
        "memory_bytes": engine.memory_bytes,
        "context": engine.n_ctx,
        "since": format_moment(engine.started_s),
    }


def _draw_engines(engines: list[RunningEngine]) -> Table:
    table = console.make_table("Process>", "Model", "Memory>", "Context>", "Runs for>")
    table.columns[1].overflow = "fold"
    for engine in engines:
        table.add_row(
            str(engine.pid),
            console.make_text(Path(engine.model).name, "bold"),
            format_bytes(engine.memory_bytes),
            f"{engine.n_ctx:,}",
            format_duration(max(0.0, time.time() - engine.started_s)),
        )
    return table
