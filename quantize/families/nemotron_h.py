"""Nemotron-H: Mamba-2, attention and feed-forward layers in any order.

Two architectures of llama.cpp hold this family: `nemotron_h_moe`, whose feed-forward layers all
route to experts, and `nemotron_h`, whose feed-forward layers are all dense. llama.cpp decides by
the file, not by the layer, so a mixture of both cannot be loaded.

Source: src/models/nemotron-h.cpp of llama.cpp; modeling_nemotron_h.py of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantize.choices import Choices
from quantize.families.nemotron_h_geometry import (
    ATTENTION,
    DENSE,
    EXPERTS,
    MAMBA,
    Geometry,
    fill_widths,
    read_geometry,
    reshape_layers,
)
from quantize.families.spec import Change, Config, ModelSpec, OutputTensor
from quantize.gguf import MetadataEntry

__all__ = ["ATTENTION", "DENSE", "EXPERTS", "MAMBA", "Geometry", "describe_nemotron_h"]

UP_TO_DOWN = {
    "ffn_up.weight": "ffn_down.weight",
    "ffn_up_exps.weight": "ffn_down_exps.weight",
    "ffn_up_shexp.weight": "ffn_down_shexp.weight",
}
"""Matrices with relu squared between them."""
NORMS = {"n_embd": "attn_norm.weight", "ssm_inner": "ssm_norm.weight"}
"""Inputs of a layer's matrices that come straight from a norm -> the norm's weight."""

Axis = str | int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tables below. Axes are names of Geometry's sizes, or plain lengths."""

    source: str
    output: str
    axes: tuple[Axis, ...]
    """Of the output, of one expert where `stacked`."""
    source_axes: tuple[Axis, ...] | None = None
    """Of the source, where they differ."""
    matrix: bool = False
    stacked: bool = False
    change: Change = "copy"
    needs: str = ""
    """A size or flag of Geometry without which the tensor does not exist."""


NORM = Row("norm.weight", "attn_norm.weight", ("n_embd",))

LAYERS: dict[str, tuple[Row, ...]] = {
    MAMBA: (
        NORM,
        Row("mixer.in_proj.weight", "ssm_in.weight", ("ssm_in", "n_embd"), matrix=True),
        Row("mixer.conv1d.weight", "ssm_conv1d.weight", ("ssm_conv_dim", "ssm_conv"),
            ("ssm_conv_dim", 1, "ssm_conv")),
        Row("mixer.conv1d.bias", "ssm_conv1d.bias", ("ssm_conv_dim",)),
        Row("mixer.dt_bias", "ssm_dt.bias", ("n_ssm_heads",)),
        Row("mixer.A_log", "ssm_a", ("n_ssm_heads", 1), ("n_ssm_heads",), change="negative_exp"),
        Row("mixer.D", "ssm_d", ("n_ssm_heads", 1), ("n_ssm_heads",)),
        Row("mixer.norm.weight", "ssm_norm.weight", ("n_ssm_groups", "ssm_group"), ("ssm_inner",)),
        Row("mixer.out_proj.weight", "ssm_out.weight", ("n_embd", "ssm_inner"), matrix=True),
    ),
    ATTENTION: (
        NORM,
        Row("mixer.q_proj.weight", "attn_q.weight", ("queries", "n_embd"), matrix=True),
        Row("mixer.k_proj.weight", "attn_k.weight", ("keys", "n_embd"), matrix=True),
        Row("mixer.v_proj.weight", "attn_v.weight", ("keys", "n_embd"), matrix=True),
        Row("mixer.o_proj.weight", "attn_output.weight", ("n_embd", "queries"), matrix=True),
    ),
    EXPERTS: (
        NORM,
        Row("mixer.gate.weight", "ffn_gate_inp.weight", ("n_experts", "n_embd")),
        Row("mixer.gate.e_score_correction_bias", "exp_probs_b.bias", ("n_experts",)),
        Row("mixer.fc1_latent_proj.weight", "ffn_latent_down.weight", ("n_latent", "n_embd"),
            matrix=True, needs="n_latent"),
        Row("mixer.experts.{}.up_proj.weight", "ffn_up_exps.weight", ("n_ff_expert", "expert_in"),
            matrix=True, stacked=True),
        Row("mixer.experts.{}.down_proj.weight", "ffn_down_exps.weight",
            ("expert_in", "n_ff_expert"), matrix=True, stacked=True),
        Row("mixer.fc2_latent_proj.weight", "ffn_latent_up.weight", ("n_embd", "n_latent"),
            matrix=True, needs="n_latent"),
        Row("mixer.shared_experts.up_proj.weight", "ffn_up_shexp.weight",
            ("n_ff_shared", "n_embd"), matrix=True),
        Row("mixer.shared_experts.down_proj.weight", "ffn_down_shexp.weight",
            ("n_embd", "n_ff_shared"), matrix=True),
    ),
    DENSE: (
        NORM,
        Row("mixer.up_proj.weight", "ffn_up.weight", ("n_ff", "n_embd"), matrix=True),
        Row("mixer.down_proj.weight", "ffn_down.weight", ("n_embd", "n_ff"), matrix=True),
    ),
}  # fmt: skip

EMBEDDINGS = Row("{}.embeddings.weight", "token_embd.weight", ("n_vocab", "n_embd"), matrix=True)
ENDING = (
    Row("{}.norm_f.weight", "output_norm.weight", ("n_embd",)),
    Row("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), matrix=True, needs="untied"),
)


def describe_nemotron_h(
    config: Config, names: frozenset[str], choices: Choices | None = None
) -> ModelSpec:
    """Say what a Nemotron-H checkpoint becomes.

    Args:
        config: Its config.json.
        names: The names of its tensors, which tell how it spells its body.
        choices: The widths that it is to have; None keeps its own.

    Raises:
        CheckpointError: A key is missing or makes no sense.
        ChoiceRefused: A width that the model cannot have.
        UnsupportedModel: llama.cpp cannot load such a model.
    """
    geometry = read_geometry(config)
    widths = fill_widths(config, geometry, choices or Choices(types={}))
    layers = reshape_layers(geometry, widths)
    architecture = "nemotron_h_moe" if EXPERTS in geometry.kinds else "nemotron_h"
    body = "backbone" if "backbone.embeddings.weight" in names else "model"
    return ModelSpec(
        architecture=architecture,
        metadata=tuple((f"{architecture}.{k}", v, t) for k, v, t in _list_metadata(layers)),
        tensors=tuple(_list_tensors(geometry, layers, body)),
        n_embeddings=geometry.n_vocab,
        widths=widths,
        left_out=("mtp.",),
    )


def _list_metadata(layers: tuple[Geometry, ...]) -> list[MetadataEntry]:
    """Keys without the architecture's prefix, values, and GGUF value types."""
    g = layers[0]
    expert_widths = [
        own.n_ff_expert * (k == EXPERTS) for own, k in zip(layers, g.kinds, strict=True)
    ]
    n_ff = [w or g.n_ff * (k == DENSE) for w, k in zip(expert_widths, g.kinds, strict=True)]
    return [
        ("block_count", len(g.kinds), "u32"),
        ("context_length", g.n_context, "u32"),
        ("embedding_length", g.n_embd, "u32"),
        ("vocab_size", g.n_vocab, "u32"),
        ("feed_forward_length", n_ff, "arr:i32"),
        # A scalar even without attention layers: llama.cpp divides by it.
        ("attention.head_count", g.n_heads or 1, "u32"),
        # 0 marks the layers that are not attention; with feed_forward_length 0, Mamba.
        ("attention.head_count_kv", [g.n_kv_heads * (k == ATTENTION) for k in g.kinds], "arr:i32"),
        ("attention.key_length", g.head_dim or 1, "u32"),
        ("attention.value_length", g.head_dim or 1, "u32"),
        ("attention.layer_norm_epsilon", g.norm_eps, "f32"),
        ("attention.layer_norm_rms_epsilon", g.norm_eps, "f32"),
        ("ssm.conv_kernel", g.ssm_conv, "u32"),
        ("ssm.inner_size", g.ssm_inner, "u32"),
        ("ssm.state_size", g.ssm_state, "u32"),
        ("ssm.time_step_rank", g.n_ssm_heads, "u32"),
        ("ssm.group_count", g.n_ssm_groups, "u32"),
        *(_list_expert_metadata(g, expert_widths) if EXPERTS in g.kinds else []),
    ]


def _list_expert_metadata(g: Geometry, widths: list[int]) -> list[MetadataEntry]:
    # An array only where it is needed: other readers expect a number.
    differ = len({*widths} - {0}) > 1
    width, kind = (widths, "arr:i32") if differ else (max(widths), "u32")
    # With all groups in use, routing by group is plain routing, and llama.cpp aborts on it.
    grouped = g.n_expert_groups_used < g.n_expert_groups
    return [
        ("expert_count", g.n_experts, "u32"),
        ("expert_used_count", g.n_experts_used, "u32"),
        ("expert_shared_count", g.n_shared, "u32"),
        ("expert_feed_forward_length", width, kind),
        ("expert_shared_feed_forward_length", g.n_ff_shared, "u32"),
        ("expert_weights_norm", g.experts_norm, "bool"),
        ("expert_weights_scale", g.experts_scale, "f32"),
        *([("expert_group_count", g.n_expert_groups, "u32")] if grouped else []),
        *([("expert_group_used_count", g.n_expert_groups_used, "u32")] if grouped else []),
        *([("moe_latent_size", g.n_latent, "u32")] if g.n_latent else []),
    ]


def _list_tensors(
    geometry: Geometry, layers: tuple[Geometry, ...], body: str
) -> list[OutputTensor]:
    outer = [("", row, layers[0]) for row in (EMBEDDINGS, *ENDING)]
    inner = [
        (f"blk.{i}.", row, layers[i])
        for i, kind in enumerate(geometry.kinds)
        for row in LAYERS[kind]
    ]
    return [
        _make_tensor(geometry, reshaped, body, prefix, row)
        for prefix, row, reshaped in (outer[0], *inner, *outer[1:])
        if not row.needs or getattr(geometry, row.needs)
    ]


def _make_tensor(
    geometry: Geometry, reshaped: Geometry, body: str, prefix: str, row: Row
) -> OutputTensor:
    shape = _measure_axes(reshaped, row.axes)
    n_experts = geometry.n_experts if row.stacked else 1
    source = f"{body}.layers.{prefix[4:]}{row.source}" if prefix else row.source.format(body)
    feeds = UP_TO_DOWN.get(row.output)
    return OutputTensor(
        name=prefix + row.output,
        shape=(n_experts, *shape) if row.stacked else shape,
        sources=tuple(source.format(e) for e in range(n_experts)) if row.stacked else (source,),
        source_shape=_measure_axes(geometry, row.source_axes or row.axes),
        matrix=row.matrix,
        change=row.change,
        scale=_choose_scale(geometry, row, math.sqrt(reshaped.n_embd / geometry.n_embd)),
        feeds=prefix + feeds if feeds else "",
        norm=_find_norm(geometry, row, prefix),
    )


def _measure_axes(geometry: Geometry, axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else getattr(geometry, axis) for axis in axes)


def _find_norm(geometry: Geometry, row: Row, prefix: str) -> str:
    """Name the norm weight that multiplies a matrix's inputs, if one does."""
    if not prefix:
        return "output_norm.weight" if row.output == "output.weight" else ""
    axis = row.axes[-1]
    if axis == "expert_in" and not geometry.n_latent:
        axis = "n_embd"
    norm = NORMS.get(str(axis)) if len(row.axes) == 2 else None
    return prefix + norm if norm else ""


def _choose_scale(geometry: Geometry, row: Row, factor: float) -> float:
    """What keeps every norm's output the same when zeros widen the residual stream.

    A norm over P weights, P - D of them zeros that were added, divides by sqrt(D / P) of what it
    did. So all that is written to the stream grows by `factor` = sqrt(P / D), and the norms' own
    weights shrink by it. Their eps stays: the stream's mean square is the same.
    """
    if row.axes == ("n_embd",):
        return 1 / factor
    written = ("n_embd",) if geometry.n_latent else ("n_embd", "expert_in")
    return factor if row is EMBEDDINGS or (len(row.axes) == 2 and row.axes[0] in written) else 1.0
