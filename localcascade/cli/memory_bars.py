"""A memory plan in the terminal: a bar for each device, and a table of what is in it."""

from __future__ import annotations

import shutil
import sys
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from localcascade.cli import console
from localcascade.cli.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from localcascade.fit import DeviceUse, ModelShape, Plan

# Field of DeviceUse, its name in words, its mark, which tells it apart without colour, its colour.
PARTS = (
    ("weights_bytes", "weights", "█", "blue"),
    ("kv_bytes", "KV cache", "▓", "green"),
    ("state_bytes", "state", "▒", "cyan"),
    ("compute_bytes", "buffers", "░", "yellow"),
    ("checkpoint_bytes", "saved states", "▞", "magenta"),
)
_FREE_MARK = "·"
_MAX_BAR = 60
_BAR_NEEDS = 36
"""Columns beside a bar: the name before it, the sizes behind it."""


def print_plan(model: str, shape: ModelShape, planned: Plan) -> None:
    """Print a plan: bars, table, and what it means.

    Args:
        model: As the user named it.
        shape: The model.
        planned: Its plan.
    """
    width = max(10, min(_MAX_BAR, shutil.get_terminal_size().columns - _BAR_NEEDS))
    console.print_tables(
        _draw_bars(planned, width),
        _draw_legend(planned),
        _draw_parts(planned),
        _draw_facts(model, shape, planned),
    )
    if not planned.fits:
        _print_refusal(planned)


def split_bar(use: DeviceUse, width: int) -> list[int]:
    """Divide a bar among the parts of a device, in the order of PARTS, then what is too much.

    Boundaries are rounded, not lengths, so that no error adds up; a part that is there at all
    gets a column if the bar has one left.

    Args:
        use: The device.
        width: Columns for all of its memory.

    Returns:
        Columns of each part; together at most `width`.
    """
    total = max(use.device.total_bytes, use.used_bytes, 1)
    sizes = [getattr(use, field) for field, *_ in PARTS]
    ends = [round(width * end / total) for end in accumulate(sizes, initial=0)]
    return [end - start for start, end in pairwise(ends)]


def _draw_bars(planned: Plan, width: int) -> Table:
    from rich.text import Text

    table = console.make_table("", "", ">")
    table.show_header = False
    for use in planned.uses:
        style = "bold red" if use.excess_bytes > 0 else ""
        sizes = f"{format_bytes(use.used_bytes)} of {format_bytes(use.device.total_bytes)}"
        table.add_row(
            console.make_text(use.device.name, "bold"), _draw_bar(use, width), Text(sizes, style)
        )
    return table


def _draw_bar(use: DeviceUse, width: int) -> Text:
    from rich.text import Text

    columns = split_bar(use, width)
    bar = Text()
    for n, (_, _, mark, colour) in zip(columns, PARTS, strict=True):
        bar.append(mark * n, colour)
    return bar.append(_FREE_MARK * (width - sum(columns)), "dim")


def _draw_legend(planned: Plan) -> Table:
    from rich.text import Text

    table, legend = console.make_table(""), Text()
    table.show_header = False
    for field, name, mark, colour in PARTS:
        if any(getattr(use, field) for use in planned.uses):
            legend.append(mark, colour).append(f" {name}  ", "dim")
    table.add_row(legend)
    return table


def _draw_parts(planned: Plan) -> Table:
    table = console.make_table("", *(f"{use.device.name}>" for use in planned.uses))
    for field, name, *_ in PARTS:
        sizes = [getattr(use, field) for use in planned.uses]
        if any(sizes):
            table.add_row(name, *(format_bytes(size) if size else "" for size in sizes))
    table.add_row("kept free", *(format_bytes(use.device.margin_bytes) for use in planned.uses))
    if any(use.device.free_bytes < use.device.total_bytes for use in planned.uses):
        others = (use.device.total_bytes - use.device.free_bytes for use in planned.uses)
        table.add_row("other programs", *map(format_bytes, others))
    rest = (-use.excess_bytes for use in planned.uses)
    table.add_row("left", *(f"{'-' * (n < 0)}{format_bytes(abs(n))}" for n in rest))
    return table


def _draw_facts(model: str, shape: ModelShape, planned: Plan) -> Table:
    table = console.make_table("", "")
    table.show_header = False
    table.columns[0].no_wrap = True
    for name, fact in _list_facts(model, shape, planned):
        table.add_row(name, console.make_text(fact))
    return table


def _list_facts(model: str, shape: ModelShape, planned: Plan) -> list[tuple[str, str]]:
    options, placement = planned.options, planned.placement
    context = f"{options.n_ctx:,} tokens in {options.kv_type}"
    if options.n_parallel > 1:
        context += f", shared by {options.n_parallel} conversations"
    if planned.max_context > options.n_ctx:
        context += f"; {planned.max_context:,} would fit"
    facts = [
        ("Model", f"{model}, {shape.bits_per_weight:.2f} bits a weight"),
        ("Context", context),
    ]
    if len(planned.uses) > 1:
        n_layers = len(shape.geometry.kinds) + 1
        facts.append(("On the GPU", f"{placement.n_gpu_layers} of {n_layers} layers"))
    if placement.cpu_expert_layers:
        layers = ", ".join(map(str, placement.cpu_expert_layers))
        n_moved, n_all = len(placement.cpu_expert_layers), len(shape.expert_layers)
        facts.append(("In RAM", f"experts of {n_moved} of {n_all} layers: {layers}"))
    rate = float(f"{planned.tokens_per_s_estimate:.2g}")
    speed = f"about {rate:g} tokens a second (a rough estimate)"
    return [*facts, ("Speed", speed)] if planned.fits else facts


def _print_refusal(planned: Plan) -> None:
    use = max(planned.uses, key=lambda use: use.excess_bytes)
    lacking = format_bytes(use.excess_bytes)
    console.print_problem(f"this does not fit: {use.device.name} lacks {lacking}")
    if planned.alternatives:
        print("What would fit:", file=sys.stderr)
    for nearest in planned.alternatives:
        print(f"  {nearest.change}", file=sys.stderr)
