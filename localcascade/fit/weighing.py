"""A model and a context, taken apart into what each layer weighs."""

from __future__ import annotations

from dataclasses import dataclass

from localcascade.fit.memory import (
    ContextOptions,
    measure_buffers,
    measure_layer_cache,
    measure_layer_state,
    measure_outputs,
)
from localcascade.fit.shape import ModelShape, Weight


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """What one layer, or the output, takes wherever it lies; in bytes."""

    plain_bytes: int
    """Weights that every token uses."""
    expert_bytes: int
    """Weights of all its routed experts."""
    largest_bytes: int
    """Of its largest tensor."""
    largest_expert_bytes: int
    kv_bytes: int
    state_bytes: int
    read_bytes: int
    """Read for one token: weights, half a cache, and the state of one sequence twice."""
    expert_read_bytes: int
    """Read for one token of the experts."""
    tied_bytes: int = 0
    """Weights that a GPU needs a copy of: embeddings that are the output as well."""


@dataclass(frozen=True, slots=True)
class Load:
    """What must be placed; in bytes."""

    layers: tuple[LayerLoad, ...]
    """Every layer, and the output as the last."""
    embedding_bytes: int
    """Token embeddings, of which a row a token is read in main memory."""
    compute_bytes: int
    inputs_bytes: int
    logits_bytes: int
    checkpoint_bytes: int


def weigh_load(shape: ModelShape, options: ContextOptions, checkpoint_bytes: int) -> Load:
    """Weigh a model and a context.

    Args:
        shape: The model.
        options: The context.
        checkpoint_bytes: Main memory for saved states of conversations.

    Raises:
        ValueError: As measure_context.
    """
    layers: list[list[Weight]] = [[] for _ in shape.geometry.kinds]
    ending: list[Weight] = []
    embedding_bytes = 0
    compute_bytes, inputs_bytes = measure_buffers(shape, options)
    for weight in shape.weights:
        if weight.name == "token_embd.weight":
            embedding_bytes = weight.n_bytes
        else:
            (ending if weight.layer is None else layers[weight.layer]).append(weight)
    return Load(
        layers=(
            *(_weigh_layer(shape, options, i, weights) for i, weights in enumerate(layers)),
            _weigh_ending(ending, embedding_bytes if shape.geometry.tied else 0),
        ),
        embedding_bytes=embedding_bytes,
        compute_bytes=compute_bytes,
        inputs_bytes=inputs_bytes,
        logits_bytes=measure_outputs(shape, options),
        checkpoint_bytes=checkpoint_bytes,
    )


def _weigh_layer(
    shape: ModelShape, options: ContextOptions, layer: int, weights: list[Weight]
) -> LayerLoad:
    kind, g = shape.geometry.kinds[layer], shape.geometry
    plain = [weight.n_bytes for weight in weights if not weight.is_experts]
    experts = [weight.n_bytes for weight in weights if weight.is_experts]
    kv_bytes = measure_layer_cache(shape, options, kind)
    state_bytes = measure_layer_state(shape, options, kind)
    return LayerLoad(
        plain_bytes=sum(plain),
        expert_bytes=sum(experts),
        largest_bytes=max(plain + experts, default=0),
        largest_expert_bytes=max(experts, default=0),
        kv_bytes=kv_bytes,
        state_bytes=state_bytes,
        read_bytes=sum(plain) + kv_bytes // 2 + 2 * state_bytes // options.n_parallel,
        expert_read_bytes=sum(experts) * g.n_experts_used // max(g.n_experts, 1),
    )


def _weigh_ending(weights: list[Weight], tied_bytes: int) -> LayerLoad:
    sizes = [weight.n_bytes for weight in weights]
    return LayerLoad(
        plain_bytes=sum(sizes),
        expert_bytes=0,
        largest_bytes=max(sizes, default=0),
        largest_expert_bytes=0,
        kv_bytes=0,
        state_bytes=0,
        read_bytes=sum(sizes) + tied_bytes,
        expert_read_bytes=0,
        tied_bytes=tied_bytes,
    )
