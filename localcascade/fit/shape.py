"""What of a model decides how much memory it takes: its sizes, and the bytes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcascade.errors import ModelFileError
from quantize.allocate import measure_tensor
from quantize.families import Config, ModelSpec
from quantize.families.nemotron_h import (
    ATTENTION,
    DENSE,
    EXPERTS,
    MAMBA,
    Geometry,
    describe_nemotron_h,
)
from quantize.gguf import TYPES, GGUFFile
from quantize.recipe_file import RecipeRules

ARCHITECTURES = ("nemotron_h", "nemotron_h_moe")
"""Whose memory can be planned; any other would be a guess."""

_LAYER = re.compile(r"blk\.(\d+)\.")
_EXPERTS = re.compile(r"blk\.\d+\.ffn_(up|down)_exps\.weight")
_PLAIN_BYTES = 4
"""Of a weight that is not quantized: all but the large matrices stay f32."""

# Field of Geometry -> key behind the architecture, and what it is where the key is missing.
_KEYS: dict[str, tuple[str, Any]] = {
    "n_embd": ("embedding_length", None),
    "n_context": ("context_length", None),
    "norm_eps": ("attention.layer_norm_rms_epsilon", 1e-5),
    "n_heads": ("attention.head_count", 1),
    "head_dim": ("attention.key_length", 1),
    "n_ssm_heads": ("ssm.time_step_rank", 0),
    "n_ssm_groups": ("ssm.group_count", 0),
    "ssm_state": ("ssm.state_size", 0),
    "ssm_conv": ("ssm.conv_kernel", 0),
    "n_experts": ("expert_count", 0),
    "n_experts_used": ("expert_used_count", 0),
    "n_expert_groups": ("expert_group_count", 1),
    "n_expert_groups_used": ("expert_group_used_count", 1),
    "n_ff_shared": ("expert_shared_feed_forward_length", 0),
    "n_shared": ("expert_shared_count", 0),
    "n_latent": ("moe_latent_size", 0),
    "experts_norm": ("expert_weights_norm", False),
    "experts_scale": ("expert_weights_scale", 0.0),
}


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model file."""

    name: str
    n_bytes: int
    n_weights: int

    @property
    def layer(self) -> int | None:
        """The layer it belongs to; None for embeddings, last norm and output."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None

    @property
    def is_experts(self) -> bool:
        """Whether it holds all routed experts of a layer, of which a token uses a few."""
        return _EXPERTS.fullmatch(self.name) is not None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One model, as far as memory goes."""

    geometry: Geometry
    """Its sizes; n_ff_expert is the largest of expert_widths."""
    expert_widths: tuple[int, ...]
    """Neurons of a routed expert, layer by layer; 0 where there are none."""
    weights: tuple[Weight, ...]
    name: str = ""

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.n_bytes for weight in self.weights)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average."""
        return 8 * self.weights_bytes / sum(weight.n_weights for weight in self.weights)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Layers that route to experts, ascending."""
        return tuple(i for i, width in enumerate(self.expert_widths) if width)


def read_file_shape(*files: GGUFFile) -> ModelShape:
    """Read what a GGUF says of its own size.

    Args:
        files: The model, open: one file, or all parts of a split one. Only headers are read.

    Raises:
        ModelFileError: It is of an architecture that cannot be planned, or a key is missing.
    """
    tensors = (tensor for file in files for tensor in file.tensors.values())
    listed = ((tensor.name, tensor.shape, tensor.n_bytes) for tensor in tensors)
    return _make_shape(files[0].path, dict(files[0].metadata), listed)


def make_spec_shape(path: Path, spec: ModelSpec, matrix_bytes: Mapping[str, int]) -> ModelShape:
    """Say what a GGUF would be that has not been written.

    Args:
        path: What to name in an error.
        spec: Of the checkpoint, as its family describes it.
        matrix_bytes: Name of each quantized matrix -> its bytes; what is not here is f32.

    Raises:
        ModelFileError: As read_file_shape.
    """
    metadata = {key: value for key, value, _ in spec.metadata}
    metadata["general.architecture"] = spec.architecture
    plain = {t.name: _count(t.shape) * _PLAIN_BYTES for t in spec.tensors}
    tensors = ((t.name, t.shape, matrix_bytes.get(t.name, plain[t.name])) for t in spec.tensors)
    return _make_shape(path, metadata, tensors)


def make_config_shape(
    path: Path, config: Mapping[str, Any], bits_per_weight: float | str
) -> ModelShape:
    """Estimate a model from its config.json alone, every large matrix of the same size a weight.

    Args:
        path: What to name in an error.
        config: As in config.json, or as the catalog stores it.
        bits_per_weight: Of the large matrices; or the name of a ggml type, whose bits count even
            where its blocks do not divide a row.

    Raises:
        ModelFileError: As read_file_shape.
        CheckpointError: The config is damaged.
        UnsupportedModel: llama.cpp cannot run such a model.
        ValueError: There is no type of that name.
    """
    bits = find_bits(bits_per_weight) if isinstance(bits_per_weight, str) else bits_per_weight
    spec = describe_nemotron_h(Config(path, config), frozenset())
    matrices = {t.name: int(_count(t.shape) * bits / 8) for t in spec.tensors if t.matrix}
    return make_spec_shape(path, spec, matrices)


def make_recipe_shape(path: Path, config: Mapping[str, Any], rules: RecipeRules) -> ModelShape:
    """Say what a recipe would make of a model, from its config.json alone.

    Args:
        path: What to name in an error.
        config: As in config.json, or as the catalog stores it.
        rules: The recipe.

    Raises:
        RecipeError: The recipe is not for this model.
        ModelFileError: As read_file_shape; CheckpointError and UnsupportedModel likewise.
    """
    source = Config(path, config)
    own = describe_nemotron_h(source, frozenset())
    choices = rules.choose([t.name for t in own.tensors if t.matrix])
    spec = describe_nemotron_h(source, frozenset(), choices)
    types = choices.types
    matrices = {t.name: measure_tensor(t, types[t.name]) for t in spec.tensors if t.matrix}
    return make_spec_shape(path, spec, matrices)


def find_bits(type_name: str) -> float:
    """Find the bits a weight of a ggml type takes.

    Raises:
        ValueError: There is no type of that name.
    """
    for block_type in TYPES.values():
        if block_type.name == type_name.lower():
            return block_type.bits_per_weight
    raise ValueError(f"{type_name!r} is no type of ggml; write for example q4_0 or iq3_s.")


def _make_shape(
    path: Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...], int]]
) -> ModelShape:
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            path,
            f"its architecture is {architecture!r}, whose memory cannot be planned",
            hint=f"There are {' and '.join(ARCHITECTURES)}.",
        )
    listed = {name: (shape, n_bytes) for name, shape, n_bytes in tensors}
    shapes = {name: shape for name, (shape, _) in listed.items()}
    geometry = _read_geometry(_Keys(path, architecture, metadata), shapes)
    ups = (shapes.get(f"blk.{i}.ffn_up_exps.weight") for i in range(len(geometry.kinds)))
    return ModelShape(
        geometry=geometry,
        expert_widths=tuple(shape[1] if shape and len(shape) == 3 else 0 for shape in ups),
        weights=tuple(
            Weight(name, n_bytes, _count(shape)) for name, (shape, n_bytes) in listed.items()
        ),
        name=str(metadata.get("general.name", "")),
    )


@dataclass(frozen=True, slots=True)
class _Keys:
    """The numbers of a header, read with suspicion."""

    path: Path
    architecture: str
    metadata: Mapping[str, Any]

    def read(self, suffix: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{suffix}", default)
        if value is None or isinstance(value, str):
            raise self.refuse(suffix, "is missing or no number")
        return value

    def read_layers(self, suffix: str, n_layers: int) -> list[int]:
        """Read a number for each layer, which may be written once for all."""
        value = self.read(suffix)
        values = [value] * n_layers if isinstance(value, int) else list(value)
        if len(values) != n_layers:
            raise self.refuse(suffix, f"has {len(values)} entries for {n_layers} layers")
        return values

    def refuse(self, suffix: str, problem: str) -> ModelFileError:
        return ModelFileError(
            self.path, f"{self.architecture}.{suffix} {problem}", hint="Convert the model again."
        )


def _read_geometry(keys: _Keys, shapes: Mapping[str, tuple[int, ...]]) -> Geometry:
    n_layers = keys.read("block_count")
    kv_heads = keys.read_layers("attention.head_count_kv", n_layers)
    widths = keys.read_layers("feed_forward_length", n_layers)
    n_inner, n_ssm_heads = keys.read("ssm.inner_size", 0), keys.read("ssm.time_step_rank", 0)
    embeddings = shapes.get("token_embd.weight")
    if embeddings is None:
        raise ModelFileError(keys.path, "is missing", tensor="token_embd.weight")
    experts = [shape for name, shape in shapes.items() if name.endswith("ffn_up_exps.weight")]
    dense = [width for width in widths if width] if not experts else []
    sizes = {field: keys.read(key, default) for field, (key, default) in _KEYS.items()}
    return Geometry(
        **sizes,
        kinds="".join(map(_tell_kind, kv_heads, widths, [bool(experts)] * n_layers)),
        n_vocab=embeddings[0],
        tied="output.weight" not in shapes,
        n_kv_heads=max(kv_heads),
        ssm_head_dim=n_inner // n_ssm_heads if n_ssm_heads else 0,
        n_ff=max(dense, default=0),
        n_ff_expert=max((shape[1] for shape in experts), default=0),
    )


def _tell_kind(n_kv_heads: int, width: int, has_experts: bool) -> str:
    """Tell a layer's kind as llama.cpp does."""
    if width:
        return EXPERTS if has_experts else DENSE
    return ATTENTION if n_kv_heads else MAMBA


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for length in shape:
        n *= length
    return n
