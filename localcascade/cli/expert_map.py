"""The heat map of `inspect --experts`: blocks of colour in a terminal, characters without colour.

A block is two experts wide, its left half coloured by one and its right half by the other, so that
the 128 experts of the 30 B model take 64 columns. Where there is less room neighbours are joined.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localcascade.cli import console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from quantize.expert_errors import ExpertError
    from quantize.heat_map import HeatMap, HeatRow

_CHARACTERS = ".,:;+=*%#@"
"""For the tenths, least error to largest, where there is no colour."""
_UNKNOWN = "?"
_BLOCK, _SOLID = "▌", "█"
_COLUMNS_BESIDE = 46
"""What layer, type, error and samples take."""
_LEAST_COLUMNS = 16


def draw_experts(experts: Sequence[ExpertError]) -> Iterator[Table]:
    """Draw a table of experts for stdout: one map for each projection, then the legend.

    Args:
        experts: As `read_experts` gives them; at least one.
    """
    from quantize.heat_map import count_joined, make_heat_map

    heat_map = make_heat_map(experts)
    in_colour = console.use_colour(sys.stdout)
    n_columns = max(_LEAST_COLUMNS, console.make_console(sys.stdout).width - _COLUMNS_BESIDE)
    n_cells = n_columns * 2 if in_colour else n_columns
    for projection, rows in heat_map.rows.items():
        yield _draw_projection(heat_map, projection, rows, n_cells, in_colour)
    yield _draw_legend(heat_map, count_joined(heat_map.n_experts, n_cells), in_colour)


def _draw_projection(
    heat_map: HeatMap, projection: str, rows: Sequence[HeatRow], n_cells: int, in_colour: bool
) -> Table:
    from quantize.heat_map import narrow_row, write_error

    last = heat_map.n_experts - 1
    table = console.make_table(
        "Layer>", "Type", f"{projection}, experts 0 to {last}", "Mean error>", "Fewest samples>"
    )
    for row in rows:
        tenths = [heat_map.find_tenth(error) for error in narrow_row(row.errors, n_cells)]
        cells = _colour_cells(tenths) if in_colour else _spell_cells(tenths)
        samples = "-" if row.fewest_samples is None else f"{row.fewest_samples:,}"
        table.add_row(str(row.layer), row.type, cells, write_error(row.mean_error), samples)
    return table


def _colour_cells(tenths: Sequence[int | None]) -> Text:
    from rich.text import Text

    text = Text(no_wrap=True)
    for pair in (tenths[i : i + 2] for i in range(0, len(tenths), 2)):
        text.append(_BLOCK, " on ".join(map(_colour, pair)))
    return text


def _colour(tenth: int | None) -> str:
    from quantize.heat_map import COLOURS, UNKNOWN_COLOUR

    return UNKNOWN_COLOUR if tenth is None else COLOURS[tenth]


def _spell_cells(tenths: Sequence[int | None]) -> Text:
    from rich.text import Text

    spelled = (_UNKNOWN if tenth is None else _CHARACTERS[tenth] for tenth in tenths)
    return Text("".join(spelled), no_wrap=True)


def _draw_legend(heat_map: HeatMap, n_joined: int, in_colour: bool) -> Table:
    from rich.text import Text

    from quantize.heat_map import list_tenths, write_error

    worst = f"; the worst of {n_joined} neighbours is shown" if n_joined > 1 else ""
    table = console.make_table("", f"Relative squared error, by tenths of the experts{worst}")
    for tenth, (first, last) in enumerate(list_tenths(heat_map)):
        sign = Text(_SOLID * 2, _colour(tenth)) if in_colour else Text(_CHARACTERS[tenth])
        table.add_row(sign, f"{write_error(first)} to {write_error(last)}")
    return table


def draw_experts_svg(experts: Sequence[ExpertError], path: Path, title: str) -> None:
    """Write the heat map as an SVG file.

    Args:
        experts: As `read_experts` gives them; at least one.
        path: Replaced if it is there.
        title: Of unknown origin; stands above the map.

    Raises:
        OSError: It cannot be written.
    """
    from quantize.heat_map import draw_svg, make_heat_map

    drawn = draw_svg(make_heat_map(experts), console.escape_controls(title))
    path.write_text(drawn, encoding="utf-8")
