"""The graph of one micro-batch, as sizes only: what llama.cpp computes for a Nemotron-H.

Each function stands for one of llama.cpp's that builds the same part, and makes its tensors in
the same order, as the order decides what is in memory together.
Source: src/models/nemotron-h.cpp, src/models/mamba-base.cpp and src/llama-graph.cpp of
llama.cpp 0c1e57098.
"""

from __future__ import annotations

from dataclasses import dataclass

from localcascade.fit.allocator import Graph, Node
from localcascade.fit.shape import ModelShape
from quantize.families.nemotron_h import ATTENTION, MAMBA

_ROTATION_UNIT = 64
"""Heads of a quantized cache are rotated by Hadamard matrices of this width or its doubles."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest micro-batch that memory is reserved for."""

    n_tokens: int
    n_sequences: int
    n_outputs: int
    """Tokens whose logits are computed."""
    n_cells: int
    """Cache cells that attention looks at, of one stream."""
    n_snapshots: int
    """Recurrent states kept of each sequence, the present one included."""
    flash_attention: bool
    rotates_keys: bool
    rotates_values: bool


class _Builder:
    def __init__(self, shape: ModelShape, batch: Batch) -> None:
        self.graph = Graph()
        self.shape, self.geometry, self.batch = shape, shape.geometry, batch
        n_tokens, geometry = batch.n_tokens, shape.geometry
        self.tokens = _make_input(n_tokens)
        self.mask = _make_input(
            batch.n_cells * n_tokens, item_bytes=2 if batch.flash_attention else 4
        )
        self.key_rows = _make_input(n_tokens, item_bytes=8)
        value_rows = n_tokens * (1 if batch.flash_attention else geometry.keys)
        self.value_rows = _make_input(value_rows, item_bytes=8)
        self.outputs = _make_input(batch.n_outputs)
        self.states = _make_input(batch.n_sequences)
        key_rotation = _measure_rotation(geometry.head_dim)
        self.key_rotation = _make_input(key_rotation**2) if batch.rotates_keys else None
        self.value_rotation = _make_input(_ROTATION_UNIT**2) if batch.rotates_values else None

    def build(self) -> Graph:
        n_embd, n_tokens = self.geometry.n_embd, self.batch.n_tokens
        embedded = Node((n_embd, n_tokens), (self.tokens,))
        self.graph.expand(Node((n_embd, n_tokens)))  # embeddings given as such, which nobody does
        stream = self.graph.expand(embedded)
        for layer, kind in enumerate(self.geometry.kinds):
            stream = self._add_layer(stream, layer, kind)
        self._add_output(stream)
        return self.graph

    def _add_layer(self, stream: Node, layer: int, kind: str) -> Node:
        normed = self._norm(stream)
        if kind == MAMBA:
            out = self._mix_states(normed)
        elif kind == ATTENTION:
            out = self._attend(normed)
        elif self.geometry.n_experts:
            out = self._route(normed, self.shape.expert_widths[layer])
        else:
            out = self._feed_forward(normed, self.geometry.n_ff)
        return Node(stream.shape, (out, stream), in_place=True)

    def _add_output(self, stream: Node) -> None:
        normed = self._norm(stream)
        normed.is_output = True
        rows = self.batch.n_outputs
        chosen = Node((self.geometry.n_embd, rows), (normed, self.outputs), is_output=True)
        self.graph.expand(Node((self.geometry.n_vocab, rows), (chosen,), is_output=True))

    def _norm(self, values: Node) -> Node:
        scaled = Node(values.shape, (values,), in_place=True)
        return Node(values.shape, (scaled,), in_place=True)

    def _project(self, values: Node, width: int) -> Node:
        return Node((width, self.batch.n_tokens), (values,))

    def _feed_forward(self, values: Node, width: int) -> Node:
        return self._project(_square_relu(self._project(values, width)), self.geometry.n_embd)

    def _store(self, *sources: Node) -> None:
        """Write to a cache, whose memory is not the allocator's."""
        self.graph.expand(Node((0,), sources, is_external=True))

    # ---- Mamba-2: build_mamba2_layer ---------------------------------------------------------

    def _mix_states(self, values: Node) -> Node:
        g, batch = self.geometry, self.batch
        n_sequences = batch.n_sequences
        length = batch.n_tokens // n_sequences
        recent = self._load_states((g.ssm_conv - 1) * g.ssm_conv_dim)
        projected = _view(self._project(values, g.ssm_in))
        gate, channels, steps = _view(projected), _view(projected), _view(projected)
        window = Node(
            (g.ssm_conv - 1 + length, g.ssm_conv_dim, n_sequences), (_view(recent), _view(channels))
        )
        for _ in range(min(length, batch.n_snapshots)):
            self._store(_view(window))
        mixed = Node((g.ssm_conv_dim, length, n_sequences), (window,))
        mixed = _chain_in_place(mixed, 2)  # bias, silu
        inputs, keys, queries = _view(mixed), _view(mixed), _view(mixed)
        steps = _chain_in_place(Node((g.n_ssm_heads, length, n_sequences), (steps,)), 1)
        scanned = self._scan(inputs, steps, keys, queries)
        head = (g.ssm_head_dim, g.n_ssm_heads, length, n_sequences)
        skipped = Node(head, (inputs,), in_place=True)
        summed = Node(head, (_view(scanned), skipped), in_place=True)
        gated = Node(head, (Node(head, (gate,)), summed))
        normed = self._norm_view(_view(gated), (g.ssm_group, g.n_ssm_groups, length, n_sequences))
        return self._project(_view(normed), g.n_embd)

    def _load_states(self, width: int) -> Node:
        n_sequences = self.batch.n_sequences
        chosen = self.graph.expand(Node((width, n_sequences), (_view(self.states),)))
        self._store(Node((0,), (_view(self.states),)))  # no state is only moved
        return chosen

    def _scan(self, inputs: Node, steps: Node, keys: Node, queries: Node) -> Node:
        g, batch = self.geometry, self.batch
        n_state = g.ssm_state * g.ssm_inner * batch.n_sequences
        n_values = g.ssm_inner * batch.n_tokens + batch.n_snapshots * n_state
        sources = (inputs, steps, keys, queries, _view(self.states))
        scanned = self.graph.expand(Node((n_values,), sources))
        self._store(Node((0,), (_view(self.states),)))
        self._store(_view(scanned))
        return scanned

    def _norm_view(self, values: Node, shape: tuple[int, ...]) -> Node:
        return _chain_in_place(Node(shape, (values,)), 1)

    # ---- attention: build_attn and build_attn_mha --------------------------------------------

    def _attend(self, values: Node) -> Node:
        g = self.geometry
        queries, keys, entries = (
            _view(self._project(values, width)) for width in (g.queries, g.keys, g.keys)
        )
        if self.key_rotation:
            queries = self._rotate(queries, g.queries, self.key_rotation)
            keys = self._rotate(keys, g.keys, self.key_rotation)
        if self.value_rotation:
            entries = self._rotate(entries, g.keys, self.value_rotation)
        for node in (queries, entries, keys):
            self.graph.expand(node)
        self._store(_view(keys), self.key_rows)
        self._store(_view(entries), self.value_rows)
        read = self._read_flash if self.batch.flash_attention else self._read_plain
        read_out = self.graph.expand(read(_view(_view(queries))))
        if self.value_rotation:
            read_out = self._rotate(read_out, g.queries, self.value_rotation)
        return self._project(read_out, g.n_embd)

    def _rotate(self, values: Node, width: int, rotation: Node) -> Node:
        return _view(Node((width, self.batch.n_tokens), (rotation, _view(values))))

    def _read_flash(self, queries: Node) -> Node:
        return _view(Node((self.geometry.queries, self.batch.n_tokens), (queries, self.mask)))

    def _read_plain(self, queries: Node) -> Node:
        g, batch = self.geometry, self.batch
        scores = (batch.n_cells, batch.n_tokens, g.n_heads)
        weights = Node(scores, (Node(scores, (queries,)), self.mask), in_place=True)
        summed = Node((g.head_dim, batch.n_tokens, g.n_heads), (weights,))
        return Node((g.queries, batch.n_tokens), (_view(summed),))

    # ---- experts: build_ffn_layer and build_moe_ffn ------------------------------------------

    def _route(self, values: Node, width: int) -> Node:
        g, n_tokens = self.geometry, self.batch.n_tokens
        narrowed = self._project(values, g.n_latent) if g.n_latent else values
        logits = Node((g.n_experts, n_tokens), (values,))
        scores = Node((g.n_experts, n_tokens), (logits,), in_place=True)
        biased = Node((g.n_experts, n_tokens), (scores,), in_place=True)
        chosen = _view(Node((g.n_experts, n_tokens), (biased,)))
        weights = self.graph.expand(self._weigh(scores, chosen))
        per_expert = (g.n_experts_used, n_tokens)
        up = Node((width, *per_expert), (_view(narrowed), chosen))
        down = Node((g.expert_in, *per_expert), (_square_relu(up), chosen))
        routed = self._sum_experts(
            self.graph.expand(Node(down.shape, (down, weights), in_place=True))
        )
        if g.n_latent:
            routed = self._project(routed, g.n_embd)
        shared = self._feed_forward(values, g.n_ff_shared)
        return Node(shared.shape, (routed, shared), in_place=True)

    def _weigh(self, scores: Node, chosen: Node) -> Node:
        g, n_tokens = self.geometry, self.batch.n_tokens
        weights = Node((1, g.n_experts_used, n_tokens), (_view(scores), chosen))
        if g.experts_norm:
            flat = _view(weights)
            total = _chain_in_place(Node((1, n_tokens), (flat,)), 1)
            weights = _view(Node((g.n_experts_used, n_tokens), (flat, total)))
        if g.experts_scale not in (0.0, 1.0):
            weights = Node((1, g.n_experts_used, n_tokens), (weights,), in_place=True)
        return weights

    def _sum_experts(self, outputs: Node) -> Node:
        g = self.geometry
        shape = (g.expert_in, self.batch.n_tokens)
        parts = [self.graph.expand(_view(outputs)) for _ in range(g.n_experts_used)]
        if len(parts) == 1:
            return Node(shape, (parts[0],))
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.expand(Node(shape, (total, part), in_place=True))
        return total


def build_graph(shape: ModelShape, batch: Batch) -> Graph:
    """Build the graph of one micro-batch.

    Args:
        shape: The model.
        batch: What memory is reserved for.
    """
    return _Builder(shape, batch).build()


def _make_input(n: int, *, item_bytes: int = 4) -> Node:
    return Node((n,), item_bytes=item_bytes)


def _view(node: Node) -> Node:
    return Node((0,), (node,), view_of=node)


def _chain_in_place(node: Node, n_operations: int) -> Node:
    for _ in range(n_operations):
        node = Node(node.shape, (node,), in_place=True)
    return node


def _square_relu(values: Node) -> Node:
    return _chain_in_place(values, 2)


def _measure_rotation(head_dim: int) -> int:
    """The widest power of two that divides a head, at least 64."""
    width = _ROTATION_UNIT
    while head_dim % (2 * width) == 0:
        width *= 2
    return width
