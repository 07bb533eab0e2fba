"""The heat map: tenths counted by hand, and an SVG that an XML parser reads cell by cell."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest

from quantize.expert_errors import ExpertError
from quantize.heat_map import (
    COLOURS,
    UNKNOWN_COLOUR,
    draw_svg,
    list_tenths,
    make_heat_map,
    narrow_row,
)

SVG = "{http://www.w3.org/2000/svg}"


def make_table(n_layers: int = 5, n_experts: int = 20) -> list[ExpertError]:
    """Errors 1, 2, 3, ...; the last one of each projection is unknown."""
    last = n_layers * n_experts
    return [
        ExpertError(
            layer=1 + 2 * (i // n_experts),
            expert=i % n_experts,
            projection=projection,
            samples=1000 - i,
            error=None if i == last - 1 else float(i + 1),
            type="q2_0",
        )
        for projection in ("down", "up")
        for i in range(last)
    ]


def test_errors_are_ranked_by_tenths() -> None:
    heat_map = make_heat_map(make_table())
    tenths = Counter(
        heat_map.find_tenth(error)
        for rows in heat_map.rows.values()
        for row in rows
        for error in row.errors
    )
    assert tenths.pop(None) == 2
    assert sorted(tenths) == list(range(10))
    # 198 known errors in pairs: 1 .. 99 twice
    assert set(tenths.values()) <= {18, 20, 22}
    assert (heat_map.least, heat_map.largest) == (1.0, 99.0)
    assert heat_map.find_tenth(1.0) == 0
    assert heat_map.find_tenth(99.0) == 9


def test_a_row_says_type_mean_and_fewest_samples() -> None:
    heat_map = make_heat_map(make_table())
    first, *_, last = heat_map.rows["up"]
    assert (first.layer, first.type, first.mean_error) == (1, "q2_0", 10.5)
    assert first.fewest_samples == 981
    assert last.layer == 9
    # 81 .. 99, the twentieth is unknown
    assert last.mean_error == 90.0
    assert heat_map.n_experts == 20


def test_equal_errors_are_all_in_the_lowest_tenth() -> None:
    table = [ExpertError(1, i, "up", None, 0.25, "q4_0") for i in range(4)]
    heat_map = make_heat_map(table)
    assert [heat_map.find_tenth(error) for error in heat_map.rows["up"][0].errors] == [0] * 4
    assert list_tenths(heat_map) == [(0.25, 0.25)] * 10
    assert heat_map.rows["up"][0].fewest_samples is None


def test_without_any_error_there_is_no_legend() -> None:
    heat_map = make_heat_map([ExpertError(1, 0, "up", None, None, "q4_0")])
    assert list_tenths(heat_map) == []
    assert heat_map.rows["up"][0].mean_error is None
    assert UNKNOWN_COLOUR in draw_svg(heat_map, "x")


@pytest.mark.parametrize(
    ("n_cells", "narrow"),
    [
        (9, (1.0, 5.0, None, None, 2.0)),
        (5, (1.0, 5.0, None, None, 2.0)),
        (4, (5.0, None, 2.0)),
        (2, (5.0, 2.0)),
        (1, (5.0,)),
    ],
)
def test_neighbours_are_joined_and_the_worst_is_kept(
    n_cells: int, narrow: tuple[float | None, ...]
) -> None:
    assert narrow_row((1.0, 5.0, None, None, 2.0), n_cells) == narrow


def read_cells(svg: str) -> dict[tuple[int, int], str]:
    """Place of each cell in pixels -> its colour, but for the legend's, which lie below."""
    root = ElementTree.fromstring(svg)
    cells = {
        (int(x), int(y)): path.attrib["fill"]
        for path in root.iter(SVG + "path")
        for x, y in re.findall(r"M(\d+) (\d+)", path.attrib["d"])
    }
    legend = sorted({y for _, y in cells})[-1]
    return {place: colour for place, colour in cells.items() if place[1] != legend}


def test_the_svg_has_a_cell_of_the_right_colour_for_every_expert() -> None:
    heat_map = make_heat_map(make_table())
    cells = read_cells(draw_svg(heat_map, "A model"))
    assert len(cells) == 200
    colours = [cells[place] for place in sorted(cells, key=lambda place: (place[1], place[0]))]
    assert colours[0] == colours[100] == COLOURS[0]
    assert colours[98] == colours[198] == COLOURS[9]
    assert colours[99] == colours[199] == UNKNOWN_COLOUR
    # Errors rise from cell to cell, so colours never go back.
    steps = [COLOURS.index(colour) for colour in colours[:99]]
    assert steps == sorted(steps)


def test_the_svg_shows_any_title_as_text() -> None:
    svg = draw_svg(make_heat_map(make_table()), "</text><script>alert(1)</script> & more")
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter(SVG + "text")]
    assert texts[0] == "</text><script>alert(1)</script> & more"
    assert not list(root.iter(SVG + "script"))
    assert {"q2_0", "10.5", "981", "fewest samples"} <= set(texts)


def test_everything_lies_inside_the_picture() -> None:
    root = ElementTree.fromstring(draw_svg(make_heat_map(make_table()), "A model"))
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    for text in root.iter(SVG + "text"):
        assert 0 <= int(text.attrib["x"]) < width
        assert 0 < int(text.attrib["y"]) < height
    for path in root.iter(SVG + "path"):
        for x, y in re.findall(r"M(\d+) (\d+)", path.attrib["d"]):
            assert int(x) + 6 <= width
            assert int(y) + 12 <= height
