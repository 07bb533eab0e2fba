"""What a context takes beside the weights: cache, recurrent state, compute buffers, outputs.

Source: llama_context and llama_context::sched_reserve in src/llama-context.cpp, llama_kv_cache and
llama_memory_recurrent of llama.cpp 0c1e57098; compared with the sizes that llama.cpp reports by
bench/memory.py and the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from localcascade.fit.allocator import measure_graph
from localcascade.fit.graph import Batch, build_graph
from localcascade.fit.shape import ModelShape
from localcascade.settings import CHAT_OUTPUTS
from quantize.families.nemotron_h import ATTENTION, MAMBA
from quantize.gguf import TYPES, BlockType

KVType = Literal["f16", "q8_0", "q4_0"]
KV_TYPES: tuple[KVType, ...] = ("f16", "q8_0", "q4_0")
"""From the dearest to the cheapest."""
N_BATCH = 512
MARGIN_BYTES = 256 << 20
"""Of main memory that stays free, for the program itself and what the system does beside it."""
DEVICE_MARGIN_BYTES = 512 << 20
"""Of a GPU's memory: its driver's context and kernels, which llama.cpp does not report."""

_CELL_STEP = 256
_FLOAT_BYTES = 4
_ROTATION_UNIT = 64


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How a context is opened, as far as memory goes."""

    n_ctx: int
    """Tokens of all sequences together."""
    kv_type: str = "f16"
    """ggml type of keys and values."""
    n_parallel: int = 1
    """Sequences at once."""
    n_batch: int = N_BATCH
    """Most tokens of one decode call."""
    n_ubatch: int = N_BATCH
    """Most tokens computed at once."""
    unified: bool = True
    """One cache that all sequences share, instead of an equal part for each."""
    flash_attention: bool = True
    """False only where a device cannot, or the user says so; automatic means true on a CPU."""
    n_outputs: int = 0
    """Most tokens of one decode call whose logits are computed; 0 is all."""
    n_rs_seq: int = 0
    """Earlier recurrent states kept of each sequence, to go back to."""


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """What a context takes, in bytes."""

    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    output_bytes: int
    """Logits of the last decode call, in main memory."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.kv_bytes + self.state_bytes + self.compute_bytes + self.output_bytes


def measure_context(shape: ModelShape, options: ContextOptions) -> ContextMemory:
    """Measure what a context takes on a single device.

    Args:
        shape: The model.
        options: The context.

    Raises:
        ValueError: The cache type's blocks do not divide a head, or there is no such type.
    """
    return ContextMemory(
        kv_bytes=sum(measure_layer_cache(shape, options, kind) for kind in shape.geometry.kinds),
        state_bytes=sum(measure_layer_state(shape, options, kind) for kind in shape.geometry.kinds),
        compute_bytes=measure_buffers(shape, options)[0],
        output_bytes=measure_outputs(shape, options),
    )


def measure_layer_cache(shape: ModelShape, options: ContextOptions, kind: str) -> int:
    """Measure keys and values of one layer in bytes; 0 unless it is attention."""
    if kind != ATTENTION:
        return 0
    row_bytes = _find_type(options.kv_type).row_bytes(shape.geometry.keys)
    return 2 * row_bytes * count_cells(options) * _count_streams(options)


def measure_layer_state(shape: ModelShape, options: ContextOptions, kind: str) -> int:
    """Measure the recurrent state of one layer in bytes; 0 unless it is Mamba. Always f32."""
    if kind != MAMBA:
        return 0
    g = shape.geometry
    n_values = (g.ssm_conv - 1) * g.ssm_conv_dim + g.ssm_state * g.ssm_inner
    return n_values * _FLOAT_BYTES * options.n_parallel * (1 + options.n_rs_seq)


def measure_buffers(shape: ModelShape, options: ContextOptions) -> tuple[int, int]:
    """Measure the buffers of what is computed between tokens and logits.

    Returns:
        Bytes of all of it on one device, and of the part that main memory keeps even if all
        layers are on a GPU: the inputs, such as the attention mask, and the embedded tokens.
    """
    batch = make_batch(shape, options)
    graph = build_graph(shape, batch)
    embedded_bytes = _FLOAT_BYTES * shape.geometry.n_embd * batch.n_tokens
    return measure_graph(graph), embedded_bytes + sum(node.n_bytes for node in graph.inputs)


def measure_outputs(shape: ModelShape, options: ContextOptions) -> int:
    """Measure the first buffer for logits; it grows with the outputs that a call asks for."""
    return shape.geometry.n_vocab * options.n_parallel * _FLOAT_BYTES


def count_cells(options: ContextOptions) -> int:
    """Count the cells of one stream of the cache, as llama.cpp rounds them."""
    cells = _round_up(options.n_ctx, _CELL_STEP)
    if options.unified:
        return cells
    return _round_up(cells // options.n_parallel, _CELL_STEP)


def make_batch(shape: ModelShape, options: ContextOptions) -> Batch:
    """Find the micro-batch that llama.cpp reserves memory for."""
    n_batch = min(options.n_ctx, options.n_batch)
    n_tokens = min(n_batch, options.n_ubatch)
    is_quantized = _find_type(options.kv_type).block_weights > 1
    rotates = is_quantized and shape.geometry.head_dim % _ROTATION_UNIT == 0
    return Batch(
        n_tokens=_round_up(n_tokens, options.n_parallel),
        n_sequences=options.n_parallel,
        n_outputs=min(n_tokens, options.n_outputs or n_batch),
        n_cells=count_cells(options),
        n_snapshots=1 + options.n_rs_seq,
        flash_attention=options.flash_attention,
        rotates_keys=rotates,
        rotates_values=rotates,
    )


def non_weight_bytes(shape: ModelShape, n_ctx: int, kv_type: str, parallel: int) -> int:
    """Say how much of a card's memory is not for weights, if the model runs wholly on it.

    Args:
        shape: The model; its weights do not matter.
        n_ctx: Tokens of all sequences together.
        kv_type: ggml type of keys and values.
        parallel: Sequences at once.

    Returns:
        Bytes of cache, recurrent state, compute buffer and the margin for the driver.

    Raises:
        ValueError: As measure_context.
    """
    memory = measure_context(
        shape, ContextOptions(n_ctx, kv_type, parallel, n_outputs=CHAT_OUTPUTS)
    )
    return memory.total_bytes + DEVICE_MARGIN_BYTES


def _count_streams(options: ContextOptions) -> int:
    return 1 if options.unified else options.n_parallel


def list_cache_types(shape: ModelShape) -> tuple[KVType, ...]:
    """List the types whose blocks divide a head of this model, dearest first."""
    width = shape.geometry.head_dim
    return tuple(t for t in KV_TYPES if width % _find_type(t).block_weights == 0)


def _find_type(name: str) -> BlockType:
    for block_type in TYPES.values():
        if block_type.name == name:
            return block_type
    raise ValueError(f"{name!r} is no type of ggml; a cache is {', '.join(KV_TYPES)}.")


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step
