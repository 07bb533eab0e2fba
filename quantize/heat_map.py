"""The experts' errors as a heat map: layer by expert, coloured by tenths; drawn as SVG here.

A colour tells in which tenth of all experts an error lies, so that the map shows differences
whether the errors are 0.1 and 0.2 or 0.0001 and 0.0002; the legend says what they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import quantiles
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from quantize.expert_errors import ExpertError

COLOURS = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58",
    "#b5de2b", "#fde725",
)  # fmt: skip
"""Least error to largest: ten steps of the viridis palette, which prints and reads well for all
kinds of colour vision."""
UNKNOWN_COLOUR = "#808080"

_CELL = 6
"""Pixels of a cell's side."""
_LABEL = 48
"""Pixels left of the cells, for the layer."""
_NOTES = 250
"""Pixels right of them, for type, error and samples."""
_NOTE_EDGES = (130, 235)
"""Where error and samples end, from where the type begins."""
_LEAST_WIDTH = 640
_LINE, _TITLE, _LEGEND = 12, 30, 44
_STYLE = (
    "text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#222}"
    ".title{font-size:14px;font-weight:bold}.head{fill:#666}.end{text-anchor:end}"
)


@dataclass(frozen=True)
class HeatRow:
    """One layer of one projection."""

    layer: int
    type: str
    """ggml's name of the type."""
    errors: tuple[float | None, ...]
    """By expert."""
    fewest_samples: int | None
    """Of its experts; None if there was no importance matrix."""

    @property
    def mean_error(self) -> float | None:
        """Mean over the experts that were measured; None if none was."""
        known = [error for error in self.errors if error is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class HeatMap:
    """Rows of all layers, by projection, and what divides their errors into tenths."""

    rows: Mapping[str, tuple[HeatRow, ...]]
    bounds: tuple[float, ...]
    """Nine errors: a tenth ends at each; none if fewer than two are known."""
    least: float | None
    largest: float | None

    @property
    def n_experts(self) -> int:
        """Experts of a layer; of the layer with most."""
        return max(len(row.errors) for rows in self.rows.values() for row in rows)

    def find_tenth(self, error: float | None) -> int | None:
        """Tell in which tenth of all errors one lies: 0 to 9; None of one that is not known."""
        return None if error is None else bisect_left(self.bounds, error)


def make_heat_map(experts: Sequence[ExpertError]) -> HeatMap:
    """Arrange the table of experts.

    Args:
        experts: As `read_experts` gives them, in its order; at least one.
    """
    grouped: dict[str, dict[int, list[ExpertError]]] = {}
    for expert in experts:
        layers = grouped.setdefault(expert.projection, {})
        layers.setdefault(expert.layer, []).append(expert)
    known = [expert.error for expert in experts if expert.error is not None]
    return HeatMap(
        rows={
            projection: tuple(map(_make_row, layers.values()))
            for projection, layers in grouped.items()
        },
        bounds=tuple(quantiles(known, n=10, method="inclusive")) if len(known) > 1 else (),
        least=min(known, default=None),
        largest=max(known, default=None),
    )


def _make_row(experts: Sequence[ExpertError]) -> HeatRow:
    counts = [expert.samples for expert in experts if expert.samples is not None]
    errors = tuple(expert.error for expert in experts)
    return HeatRow(experts[0].layer, experts[0].type, errors, min(counts, default=None))


def narrow_row(errors: Sequence[float | None], n_cells: int) -> tuple[float | None, ...]:
    """Join neighbours so that a row has at most so many cells; each shows its worst expert.

    Args:
        errors: By expert.
        n_cells: At least 1.
    """
    step = count_joined(len(errors), n_cells)
    groups = (errors[i : i + step] for i in range(0, len(errors), step))
    return tuple(
        max((error for error in group if error is not None), default=None) for group in groups
    )


def count_joined(n_experts: int, n_cells: int) -> int:
    """Count the experts that share a cell where so many cells have room."""
    return -(-n_experts // n_cells)


def write_error(error: float | None) -> str:
    """Write an error with three digits; a dash if it is not known."""
    return "-" if error is None else f"{error:#.3g}"


def draw_svg(heat_map: HeatMap, title: str) -> str:
    """Draw the map as an SVG document that needs nothing else.

    Args:
        heat_map: What to draw; cells are never joined.
        title: Stands above it, for example the model's name.
    """
    width = max(_LEAST_WIDTH, _LABEL + heat_map.n_experts * _CELL + _NOTES)
    parts = [_write(10, 20, title, "title")]
    top = _TITLE
    for projection, rows in heat_map.rows.items():
        parts += _draw_panel(heat_map, projection, rows, top)
        top += 2 * _LINE + len(rows) * _LINE + _LINE
    parts += _draw_legend(heat_map, top)
    size = f'width="{width}" height="{top + _LEGEND}" viewBox="0 0 {width} {top + _LEGEND}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{_STYLE}</style>'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, ground, *parts, "</svg>\n"])


def _draw_panel(
    heat_map: HeatMap, projection: str, rows: Sequence[HeatRow], top: int
) -> Iterator[str]:
    """Draw the rows of a projection, `top` pixels down, under a line of headings."""
    right = _LABEL + heat_map.n_experts * _CELL + 8
    yield _write(10, top + _LINE - 4, f"{projection}: layer by expert", "head")
    yield from _write_notes(
        right, top + _LINE - 4, ("type", "mean error", "fewest samples"), "head"
    )
    cells: dict[int | None, list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        y = top + (i + 1) * _LINE
        samples = "-" if row.fewest_samples is None else str(row.fewest_samples)
        yield _write(_LABEL - 8, y + 10, str(row.layer), "end")
        yield from _write_notes(right, y + 10, (row.type, write_error(row.mean_error), samples))
        for j, error in enumerate(row.errors):
            cells.setdefault(heat_map.find_tenth(error), []).append((_LABEL + j * _CELL, y))
    for tenth, places in cells.items():
        yield _draw_cells(_colour(tenth), places)


def _write_notes(x: int, y: int, notes: tuple[str, str, str], kind: str = "") -> Iterator[str]:
    yield _write(x, y, notes[0], kind)
    for right_edge, note in zip(_NOTE_EDGES, notes[1:], strict=True):
        yield _write(x + right_edge, y, note, f"{kind} end")


def _draw_cells(colour: str, places: Iterable[tuple[int, int]]) -> str:
    """Draw all cells of one colour as one path, which is a tenth of the bytes of rectangles."""
    path = "".join(f"M{x} {y}h{_CELL}v{_LINE}h-{_CELL}z" for x, y in places)
    return f'<path fill="{colour}" d="{path}"/>'


def _draw_legend(heat_map: HeatMap, top: int) -> Iterator[str]:
    yield _write(10, top + 10, "relative squared error, weighed by importance; each colour is a "
                 "tenth of the experts", "head")  # fmt: skip
    for tenth, (first, _) in enumerate(list_tenths(heat_map)):
        x = 10 + tenth * 62
        yield _draw_cells(_colour(tenth), [(x, top + 17), (x + _CELL, top + 17)])
        yield _write(x, top + 40, write_error(first))


def list_tenths(heat_map: HeatMap) -> list[tuple[float, float]]:
    """Give the least and the largest error that each tenth can hold; empty if none is known."""
    if heat_map.least is None or heat_map.largest is None:
        return []
    bounds = heat_map.bounds or (heat_map.largest,) * (len(COLOURS) - 1)
    edges = (heat_map.least, *bounds, heat_map.largest)
    return list(pairwise(edges))


def _colour(tenth: int | None) -> str:
    return UNKNOWN_COLOUR if tenth is None else COLOURS[tenth]


def _write(x: int, y: int, text: str, kind: str = "") -> str:
    styled = f' class="{kind.strip()}"' if kind else ""
    return f'<text x="{x}" y="{y}"{styled}>{escape(text)}</text>'
