"""What ggml's graph allocator would need for a graph, found by replaying it over sizes alone.

A compute buffer is no sum: the allocator gives memory back after the last use, computes in place
where it may, and leaves gaps. So its rules are followed step by step, without any tensor.
Source: ggml/src/ggml-alloc.c of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from bisect import bisect_left
from math import prod

ALIGNMENT_BYTES = 32
"""Of the CPU's buffers, TENSOR_ALIGNMENT. CUDA's 128 changes a plan by kilobytes."""
_ENDLESS = 1 << 62


class Node:
    """One tensor of a graph: its size, what it is made of, and how it may be stored.

    Args:
        shape: Elements along each axis.
        sources: What it is computed from, in ggml's order; weights and caches are left out, as
            their memory is not the allocator's.
        item_bytes: Of an element.
        in_place: It may take the memory of a source of the same layout.
        view_of: The tensor whose memory it shows.
        is_external: Its memory is not the allocator's, as that of a cache is not.
        is_output: Its memory is never given back.
    """

    __slots__ = (
        "in_place", "is_external", "is_output", "item_bytes", "shape", "sources", "view_of",
    )  # fmt: skip

    def __init__(
        self,
        shape: tuple[int, ...],
        sources: tuple[Node, ...] = (),
        *,
        item_bytes: int = 4,
        in_place: bool = False,
        view_of: Node | None = None,
        is_external: bool = False,
        is_output: bool = False,
    ) -> None:
        self.shape, self.sources, self.item_bytes = shape, sources, item_bytes
        self.in_place, self.is_external, self.is_output = in_place, is_external, is_output
        self.view_of: Node | None = (view_of.view_of or view_of) if view_of else None

    @property
    def n_bytes(self) -> int:
        """Bytes the allocator would take for it."""
        n_bytes = prod(self.shape) * self.item_bytes
        return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def has_own_memory(self) -> bool:
        """Whether the allocator must find memory for it."""
        return self.view_of is None and not self.is_external


class Graph:
    """Nodes in the order of their computation; inputs apart, as ggml keeps its leafs."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Node] = []
        self._seen: set[int] = set()

    def expand(self, node: Node) -> Node:
        """Append a node behind all that it needs and that is not there yet."""
        if id(node) not in self._seen:
            self._seen.add(id(node))
            for source in node.sources:
                self.expand(source)
            (self.nodes if node.sources else self.inputs).append(node)
        return node


class _Heap:
    """The allocator's free blocks, [start, size], sorted by start; the last one never ends."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = [(0, _ENDLESS)]
        self.peak_bytes = 0

    def take(self, n_bytes: int) -> int:
        """Take the smallest block that is large enough, or the beginning of the endless one."""
        last = len(self.blocks) - 1
        fitting = ((size, -i) for i, (_, size) in enumerate(self.blocks[:-1]) if size >= n_bytes)
        index = -min(fitting, default=(0, -last))[1]
        start, size = self.blocks[index]
        self.blocks[index : index + 1] = [(start + n_bytes, size - n_bytes)] * (size > n_bytes)
        self.peak_bytes = max(self.peak_bytes, start + n_bytes)
        return start

    def give_back(self, start: int, n_bytes: int) -> None:
        """Return memory, joined with what is free beside it."""
        index = bisect_left(self.blocks, (start, 0))
        if index and sum(self.blocks[index - 1]) == start:
            index -= 1
            before, size = self.blocks.pop(index)
            start, n_bytes = before, size + n_bytes
        if start + n_bytes == self.blocks[index][0]:
            n_bytes += self.blocks.pop(index)[1]
        self.blocks.insert(index, (start, n_bytes))


class _Replay:
    """One run of the allocator over a graph."""

    def __init__(self, graph: Graph) -> None:
        self.heap = _Heap()
        self._places: dict[Node, int] = {}
        self._n_children: dict[Node, int] = {}
        self._n_views: dict[Node, int] = {}
        for node in graph.nodes:
            if node.view_of:
                self._n_views[node.view_of] = self._n_views.get(node.view_of, 0) + 1
            for source in node.sources:
                self._n_children[source] = self._n_children.get(source, 0) + 1
        for node in graph.inputs:
            self._place(node)
        for node in graph.nodes:
            self._place(node)
            for source in node.sources:
                self._release(source)

    def _place(self, node: Node) -> None:
        if not node.has_own_memory:
            return
        parent = self._find_reusable(node) if node.in_place else None
        if parent is None:
            self._places[node] = self.heap.take(node.n_bytes)
        else:
            self._places[node] = self._places.pop(parent)

    def _find_reusable(self, node: Node) -> Node | None:
        for parent in node.sources:
            if (
                parent in self._places
                and not parent.is_output
                and (parent.shape, parent.item_bytes) == (node.shape, node.item_bytes)
                and self._n_children[parent] == 1
                and not self._n_views.get(parent)
            ):
                return parent
        return None

    def _release(self, node: Node) -> None:
        self._n_children[node] -= 1
        if self._n_children[node] or self._n_views.get(node):
            return
        root = node.view_of or node
        if node.view_of:
            self._n_views[root] -= 1
        is_idle = not self._n_children.get(root) and not self._n_views.get(root)
        if is_idle and root in self._places and not root.is_output:
            self.heap.give_back(self._places.pop(root), root.n_bytes)


def measure_graph(graph: Graph) -> int:
    """Measure the compute buffer of a graph.

    Returns:
        Bytes, as `ggml_backend_sched_get_buffer_size` reports for a single device.
    """
    return _Replay(graph).heap.peak_bytes
