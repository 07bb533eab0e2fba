"""Nemotron-H: Mamba-2, attention and feed-forward layers in any order.

Two architectures of llama.cpp hold this family: `nemotron_h_moe`, whose feed-forward layers all
route to experts, and `nemotron_h`, whose feed-forward layers are all dense. llama.cpp decides by
the file, not by the layer, so a mixture of both cannot be loaded.

Source: src/models/nemotron-h.cpp of llama.cpp; modeling_nemotron_h.py of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from quantize.errors import UnsupportedModel
from quantize.families.spec import Change, Config, ModelSpec, OutputTensor
from quantize.gguf import MetadataEntry

MAMBA, ATTENTION, EXPERTS, DENSE = "M", "*", "E", "-"

_KIND_NAMES = {
    "mamba": MAMBA, "linear_attention": MAMBA, "attention": ATTENTION, "full_attention": ATTENTION,
    "moe": EXPERTS, "mlp": DENSE,
}  # fmt: skip
PADDABLE = ("n_embd", "n_ff", "n_ff_expert", "n_ff_shared", "n_latent")
"""Widths that zeros may widen without changing what the model computes."""

Axis = str | int

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS; more aborts the process that loads the file
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one model; all counts in weights, heads, experts or tokens."""

    kinds: str
    """One letter a layer: M, *, E or -."""
    n_vocab: int
    n_embd: int
    n_context: int
    norm_eps: float
    tied: bool
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ssm_heads: int
    ssm_head_dim: int
    n_ssm_groups: int
    ssm_state: int
    ssm_conv: int
    n_ff: int
    n_experts: int
    n_experts_used: int
    n_expert_groups: int
    n_expert_groups_used: int
    n_ff_expert: int
    n_ff_shared: int
    n_shared: int
    n_latent: int
    """Width the routed experts work at; 0 if they work at n_embd."""
    experts_norm: bool
    experts_scale: float

    @property
    def untied(self) -> bool:
        """Whether the output has a matrix of its own."""
        return not self.tied

    @property
    def queries(self) -> int:
        """Width of all query heads side by side."""
        return self.n_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, or value heads, side by side."""
        return self.n_kv_heads * self.head_dim

    @property
    def ssm_group(self) -> int:
        """Channels that a Mamba layer normalizes together."""
        return self.ssm_inner // self.n_ssm_groups

    @property
    def ssm_inner(self) -> int:
        """Width inside a Mamba layer."""
        return self.n_ssm_heads * self.ssm_head_dim

    @property
    def ssm_conv_dim(self) -> int:
        """Channels of the short convolution: x, B and C side by side."""
        return self.ssm_inner + 2 * self.n_ssm_groups * self.ssm_state

    @property
    def ssm_in(self) -> int:
        """Rows of in_proj: gate, convolved channels and one dt a head."""
        return self.ssm_inner + self.ssm_conv_dim + self.n_ssm_heads

    @property
    def expert_in(self) -> int:
        """Width that enters and leaves a routed expert."""
        return self.n_latent or self.n_embd


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


def describe_nemotron_h(config: Config, names: frozenset[str], block: int = 1) -> ModelSpec:
    """Say what a Nemotron-H checkpoint becomes.

    Args:
        config: Its config.json.
        names: The names of its tensors, which tell how it spells its body.
        block: Widths that may grow are padded with zeros to multiples of it, exactly.

    Raises:
        CheckpointError: A key is missing or makes no sense.
        UnsupportedModel: llama.cpp cannot load such a model.
    """
    geometry = read_geometry(config)
    if block > 1 and geometry.tied:
        raise UnsupportedModel(
            f"{config.path}: key tie_word_embeddings: tied embeddings cannot be padded, because "
            "the one matrix would need two scales",
            "Convert it without padding.",
        )
    padded = _pad_geometry(geometry, block)
    architecture = "nemotron_h_moe" if EXPERTS in geometry.kinds else "nemotron_h"
    body = "backbone" if "backbone.embeddings.weight" in names else "model"
    return ModelSpec(
        architecture=architecture,
        metadata=tuple((f"{architecture}.{k}", v, t) for k, v, t in _list_metadata(padded)),
        tensors=tuple(_list_tensors(geometry, padded, body)),
        n_embeddings=geometry.n_vocab,
        left_out=("mtp.",),
    )


def read_layer_kinds(config: Config) -> str:
    """Read the layer pattern in either spelling, one letter a layer.

    Raises:
        CheckpointError: No pattern, an unknown kind of layer, or two patterns that disagree.
    """
    spellings = {
        key: "".join(_read_kind(config, key, kind) for kind in config.values[key])
        for key in ("hybrid_override_pattern", "layers_block_type", "layer_types")
        if isinstance(config.values.get(key), str | list)
    }
    if len(set(spellings.values())) != 1:
        problem = "names no layers" if not spellings else f"disagrees with {list(spellings)[1]}"
        raise config.refuse(next(iter(spellings), "layers_block_type"), problem)
    kinds = next(iter(spellings.values()))
    if not 1 <= len(kinds) <= _MAX_LAYERS:
        raise config.refuse(
            next(iter(spellings)), f"{len(kinds)} layers; llama.cpp holds {_MAX_LAYERS}"
        )
    return kinds


def read_geometry(config: Config) -> Geometry:
    """Read every size the family needs and check what llama.cpp would abort on.

    Raises:
        CheckpointError: A key is missing or makes no sense.
        UnsupportedModel: Experts and dense feed-forward layers in one model.
    """
    kinds = read_layer_kinds(config)
    if EXPERTS in kinds and DENSE in kinds:
        raise UnsupportedModel(
            f"{config.path}: layers {kinds} mix experts (E) with dense feed-forward (-); "
            "llama.cpp loads only the one or the other",
            "There is no way to run this model in llama.cpp.",
        )
    _refuse_unrunnable(config)
    sizes = dict.fromkeys(Geometry.__dataclass_fields__, 0) | _read_body(config)
    readers = {
        MAMBA: _read_mamba,
        ATTENTION: _read_attention,
        EXPERTS: _read_experts,
        DENSE: _read_dense,
    }
    for kind in sorted(set(kinds)):
        sizes |= readers[kind](config)
    return Geometry(**sizes | {"kinds": kinds})  # type: ignore[arg-type]


def _read_kind(config: Config, key: str, kind: object) -> str:
    if kind in LAYERS:
        return str(kind)
    if isinstance(kind, str) and kind in _KIND_NAMES:
        return _KIND_NAMES[kind]
    raise config.refuse(key, f"{kind!r} is no kind of layer; there are {', '.join(_KIND_NAMES)}")


def _refuse_unrunnable(config: Config) -> None:
    config.expect("mamba_hidden_act", "silu")
    config.expect("mlp_hidden_act", "relu2")
    config.expect("sliding_window", None)
    for key in ("use_bias", "mamba_proj_bias", "attention_bias", "mlp_bias"):
        config.expect(key, False)
    config.expect("use_conv_bias", True)  # the graph of llama.cpp adds it unconditionally


Sizes = dict[str, int | float | bool]


def _read_body(config: Config) -> Sizes:
    return {
        "n_vocab": config.integer("vocab_size"),
        "n_embd": config.integer("hidden_size"),
        "n_context": config.integer("max_position_embeddings"),
        "norm_eps": config.number("layer_norm_epsilon", 1e-5),
        "tied": config.boolean("tie_word_embeddings", False),
    }


def _read_attention(config: Config) -> Sizes:
    n_heads = config.integer("num_attention_heads", high=65536)
    n_kv_heads = config.integer("num_key_value_heads", default=n_heads, high=65536)
    if n_heads % n_kv_heads:
        raise config.refuse("num_key_value_heads", f"{n_kv_heads} does not divide {n_heads} heads")
    head_dim = config.integer("head_dim", "attention_head_dim", high=65536)
    return {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}


def _read_mamba(config: Config) -> Sizes:
    n_heads = config.integer("mamba_num_heads", high=65536)
    n_groups = config.integer("n_groups", "mamba_n_groups", default=8, high=65536)
    if n_heads % n_groups:
        raise config.refuse("n_groups", f"{n_groups} does not divide {n_heads} Mamba heads")
    return {
        "n_ssm_heads": n_heads,
        "ssm_head_dim": config.integer("mamba_head_dim", high=65536),
        "n_ssm_groups": n_groups,
        "ssm_state": config.integer("ssm_state_size", high=65536),
        "ssm_conv": config.integer("conv_kernel", "mamba_d_conv", default=4, low=2, high=64),
    }


def _read_dense(config: Config) -> Sizes:
    return {"n_ff": config.integer("intermediate_size")}


def _read_experts(config: Config) -> Sizes:
    n_experts = config.integer("n_routed_experts", "num_local_experts", high=_MAX_EXPERTS)
    n_used = config.integer("num_experts_per_tok", high=n_experts)
    n_groups = config.integer("n_group", default=1, high=n_experts)
    n_groups_used = config.integer("topk_group", default=1, high=n_groups)
    if n_experts % n_groups or n_groups == n_experts > 1:
        raise config.refuse("n_group", f"{n_groups} groups of {n_experts} experts cannot be routed")
    if n_used > n_experts // n_groups * n_groups_used:
        raise config.refuse(
            "topk_group", f"{n_groups_used} groups hold fewer than {n_used} experts"
        )
    return {
        "n_experts": n_experts,
        "n_experts_used": n_used,
        "n_expert_groups": n_groups,
        "n_expert_groups_used": n_groups_used,
        "n_ff_expert": config.integer("moe_intermediate_size"),
        "n_ff_shared": config.integer("moe_shared_expert_intermediate_size"),
        "n_shared": config.integer("n_shared_experts", default=1),
        "n_latent": config.integer("moe_latent_size", default=0, low=0),
        "experts_norm": config.boolean("norm_topk_prob", True),
        "experts_scale": config.number("routed_scaling_factor", 1.0),
    }


def _list_metadata(g: Geometry) -> list[MetadataEntry]:
    """Keys without the architecture's prefix, values, and GGUF value types."""
    n_ff = [g.n_ff_expert if k == EXPERTS else g.n_ff if k == DENSE else 0 for k in g.kinds]
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
        *(_list_expert_metadata(g) if EXPERTS in g.kinds else []),
    ]


def _list_expert_metadata(g: Geometry) -> list[MetadataEntry]:
    # With all groups in use, routing by group is plain routing, and llama.cpp aborts on it.
    grouped = g.n_expert_groups_used < g.n_expert_groups
    return [
        ("expert_count", g.n_experts, "u32"),
        ("expert_used_count", g.n_experts_used, "u32"),
        ("expert_shared_count", g.n_shared, "u32"),
        ("expert_feed_forward_length", g.n_ff_expert, "u32"),
        ("expert_shared_feed_forward_length", g.n_ff_shared, "u32"),
        ("expert_weights_norm", g.experts_norm, "bool"),
        ("expert_weights_scale", g.experts_scale, "f32"),
        *([("expert_group_count", g.n_expert_groups, "u32")] if grouped else []),
        *([("expert_group_used_count", g.n_expert_groups_used, "u32")] if grouped else []),
        *([("moe_latent_size", g.n_latent, "u32")] if g.n_latent else []),
    ]


def _list_tensors(geometry: Geometry, padded: Geometry, body: str) -> list[OutputTensor]:
    outer = [(row.source.format(body), row.output, row) for row in (EMBEDDINGS, *ENDING)]
    layers = [
        (f"{body}.layers.{i}.{row.source}", f"blk.{i}.{row.output}", row)
        for i, kind in enumerate(geometry.kinds)
        for row in LAYERS[kind]
    ]
    return [
        _make_tensor(geometry, padded, source, output, row)
        for source, output, row in (outer[0], *layers, *outer[1:])
        if not row.needs or getattr(geometry, row.needs)
    ]


def _make_tensor(
    geometry: Geometry, padded: Geometry, source: str, output: str, row: Row
) -> OutputTensor:
    shape = _measure_axes(padded, row.axes)
    n_experts = geometry.n_experts if row.stacked else 1
    return OutputTensor(
        name=output,
        shape=(n_experts, *shape) if row.stacked else shape,
        sources=tuple(source.format(e) for e in range(n_experts)) if row.stacked else (source,),
        source_shape=_measure_axes(geometry, row.source_axes or row.axes),
        matrix=row.matrix,
        change=row.change,
        scale=_choose_scale(geometry, row, math.sqrt(padded.n_embd / geometry.n_embd)),
    )


def _measure_axes(geometry: Geometry, axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else getattr(geometry, axis) for axis in axes)


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


def _pad_geometry(geometry: Geometry, block: int) -> Geometry:
    """Round the widths that may grow up to whole blocks.

    Zeros are exact there: relu(0)^2 is 0, and what reads a zero of the stream has zero weights.
    """
    widths = {name: -(-getattr(geometry, name) // block) * block for name in PADDABLE}
    return replace(geometry, **widths)
