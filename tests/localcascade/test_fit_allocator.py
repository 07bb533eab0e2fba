"""The allocator's rules, on graphs small enough to follow by hand; units of 32 bytes."""

from __future__ import annotations

import random

from localcascade.fit.allocator import Graph, Node, measure_graph

UNIT = 32


def make_node(units: int, *sources: Node, in_place: bool = False) -> Node:
    return Node((8, units), sources, in_place=in_place)


def measure(*ends: Node) -> int:
    """Bytes of a graph, in units."""
    graph = Graph()
    for end in ends:
        graph.expand(end)
    return measure_graph(graph) // UNIT


def test_memory_is_given_back_after_the_last_use() -> None:
    start = make_node(3)
    chain = make_node(3, make_node(3, make_node(3, start)))
    assert measure(chain) == 6  # two at a time


def test_work_in_place_takes_nothing() -> None:
    start = make_node(3)
    chain = make_node(3, make_node(3, start, in_place=True), in_place=True)
    assert measure(chain) == 3


def test_what_is_needed_again_is_not_overwritten() -> None:
    start = make_node(3)
    changed = make_node(3, start, in_place=True)
    assert measure(make_node(3, changed, start, in_place=True)) == 6


def test_another_layout_is_not_overwritten() -> None:
    start = make_node(4)
    assert measure(Node((16, 2), (start,), in_place=True)) == 8


def test_a_view_keeps_its_memory_and_is_not_overwritten() -> None:
    start = make_node(4)
    view = Node((0,), (make_node(4, start),), view_of=start)
    assert view.view_of is start
    assert Node((0,), (view,), view_of=view).view_of is start
    assert measure(make_node(4, Node((0,), (start,), view_of=start), in_place=True)) == 8


def test_an_output_is_kept() -> None:
    start = make_node(2)
    output = Node((8, 5), (start,), is_output=True)
    assert measure(make_node(4, output)) == 2 + 5 + 4  # the 2 that are free are too few for 4


def test_the_smallest_hole_that_fits_is_taken() -> None:
    large, wall, small, end = make_node(6), make_node(1), make_node(2), make_node(1)
    # First both holes are made, then 2 units go into the small one and 6 into the large one.
    first = Node((8, 1), (large, small))
    second = make_node(2, first)
    third = make_node(6, second, wall, end)
    graph = Graph()
    for node in (large, wall, small, end, third):
        graph.expand(node)
    assert measure_graph(graph) // UNIT == 6 + 1 + 2 + 1 + 1  # and no more for what follows


def test_no_graph_needs_less_than_what_lives_at_once_or_more_than_everything() -> None:
    rng = random.Random(5)
    for _ in range(200):
        nodes = [make_node(rng.randint(1, 9)) for _ in range(3)]
        for _ in range(30):
            sources = rng.sample(nodes, rng.randint(1, 3))
            nodes.append(make_node(rng.randint(1, 9), *sources))
        graph = Graph()
        for node in nodes:
            graph.expand(node)
        order = [*graph.inputs, *graph.nodes]
        last_use = {id(s): i for i, node in enumerate(order) for s in node.sources}
        # Every input is there from the start, and what nobody uses stays to the end.
        sizes = [node.n_bytes for node in order]
        at_once = [
            sum(
                size
                for i, (node, size) in enumerate(zip(order, sizes, strict=True))
                if (i <= now or not node.sources) and last_use.get(id(node), len(order)) >= now
            )
            for now in range(len(graph.inputs), len(order))
        ]
        assert max(at_once) <= measure_graph(graph) <= sum(sizes)
