"""The sizes of a Nemotron-H model: read from its config, then changed as was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantize.choices import Choices
from quantize.errors import ChoiceRefused, UnsupportedModel
from quantize.families.spec import Config

MAMBA, ATTENTION, EXPERTS, DENSE = "M", "*", "E", "-"

_KIND_NAMES = {
    "mamba": MAMBA, "linear_attention": MAMBA, "attention": ATTENTION, "full_attention": ATTENTION,
    "moe": EXPERTS, "mlp": DENSE,
}  # fmt: skip

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
    if kind in _KIND_NAMES.values():
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


def fill_widths(config: Config, geometry: Geometry, choices: Choices) -> Choices:
    """Give every width a number, and refuse what cannot be.

    Zeros are exact: relu(0)^2 is 0, and what reads a zero of the stream has zero weights.

    Args:
        config: The model's, for messages.
        geometry: Its own widths.
        choices: The widths that it is to have.

    Returns:
        Choices with every width and no type.

    Raises:
        ChoiceRefused: A layer without experts has a width, or a width is too small.
        UnsupportedModel: Tied embeddings cannot be padded.
    """
    experts = [i for i, kind in enumerate(geometry.kinds) if kind == EXPERTS]
    strangers = sorted({*choices.expert_widths} - {*experts})
    if strangers:
        raise ChoiceRefused(
            f"{config.path}: layer {strangers[0]} has no routed experts to be given a width",
            f"Layers with experts: {', '.join(map(str, experts)) or 'none'}.",
        )
    filled = Choices(
        types={},
        n_embd=_grow(config, "n_embd", geometry.n_embd, choices.n_embd),
        expert_widths={i: choices.expert_widths.get(i, geometry.n_ff_expert) for i in experts},
        shared_width=choices.shared_width or geometry.n_ff_shared,
        dense_width=choices.dense_width or geometry.n_ff,
        latent_width=_grow(config, "latent_width", geometry.n_latent, choices.latent_width),
    )
    _check_widths(config, filled.expert_widths)
    if filled.n_embd != geometry.n_embd and geometry.tied:
        raise UnsupportedModel(
            f"{config.path}: key tie_word_embeddings: tied embeddings cannot be padded, because "
            "the one matrix would need two scales",
            "Convert it without padding.",
        )
    return filled


def _grow(config: Config, name: str, own: int, chosen: int | None) -> int:
    """The width chosen, which must not be less than the model's own."""
    width = own if chosen is None or own == 0 else chosen
    if width < own:
        raise ChoiceRefused(
            f"{config.path}: {name} {width} is less than the model's {own}, and can only grow",
            f"Choose at least {own}.",
        )
    return width


def _check_widths(config: Config, widths: Mapping[int, int]) -> None:
    for layer, width in widths.items():
        if width < 1:
            raise ChoiceRefused(
                f"{config.path}: layer {layer} cannot have experts of {width} neurons",
                "Choose at least 1.",
            )


def reshape_layers(geometry: Geometry, widths: Choices) -> tuple[Geometry, ...]:
    """Make the geometry of each layer of the output: one an index, all widths in `widths`."""
    reshaped = replace(
        geometry,
        n_embd=widths.n_embd or geometry.n_embd,
        n_ff=widths.dense_width or geometry.n_ff,
        n_ff_shared=widths.shared_width or geometry.n_ff_shared,
        n_latent=widths.latent_width or geometry.n_latent,
    )
    return tuple(
        replace(reshaped, n_ff_expert=widths.expert_widths.get(i, geometry.n_ff_expert))
        for i in range(len(geometry.kinds))
    )
