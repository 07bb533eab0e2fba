"""What llama.cpp reserves for a model that has a header and no weights, read from its log."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp

from localcascade.fit import ContextOptions
from quantize.choices import Choices
from quantize.families import Config
from quantize.families.nemotron_h import describe_nemotron_h
from quantize.gguf import TYPES, TensorSpec, plan_file

MIB = 1 << 20
TYPE_IDS = {block_type.name: block_type.id for block_type in TYPES.values()}
CASCADE_2: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "vocab_size": 131072, "hidden_size": 2688, "max_position_embeddings": 262144,
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "mamba_num_heads": 64, "mamba_head_dim": 64,
    "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4, "n_routed_experts": 128,
    "num_experts_per_tok": 6, "moe_intermediate_size": 1856, "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 3712, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "mlp_hidden_act": "relu2",
}  # fmt: skip
TINY = CASCADE_2 | {
    "hybrid_override_pattern": "MEM*EM*E", "vocab_size": 4096, "hidden_size": 192,
    "num_attention_heads": 6, "head_dim": 32, "mamba_num_heads": 12, "mamba_head_dim": 32,
    "n_groups": 2, "ssm_state_size": 32, "n_routed_experts": 16, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 128,
    "max_position_embeddings": 4096,
}  # fmt: skip
GEOMETRIES: Mapping[str, dict[str, Any]] = {
    "cascade-2": CASCADE_2,
    "tiny": TINY,
    "dense": CASCADE_2 | {
        "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        "hidden_size": 4480, "num_attention_heads": 40, "num_key_value_heads": 8,
        "mamba_num_heads": 128, "mamba_head_dim": 80, "intermediate_size": 15680,
    },
    "latent experts": CASCADE_2 | {
        "hybrid_override_pattern": "ME*EMEM*E", "moe_latent_size": 1024, "n_routed_experts": 64,
        "num_experts_per_tok": 3, "hidden_size": 2048, "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    "one wide expert": CASCADE_2 | {
        "hybrid_override_pattern": "M*M*ME", "n_routed_experts": 8, "num_experts_per_tok": 1,
        "hidden_size": 1024, "moe_intermediate_size": 8192,
    },
    "tied, wide heads": CASCADE_2 | {
        "hybrid_override_pattern": "*M-M*-", "hidden_size": 1536, "num_attention_heads": 12,
        "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 6144,
        "tie_word_embeddings": True, "vocab_size": 65536,
    },
}  # fmt: skip
"""Name -> what config.json says."""
WIDTHS = Choices(types={}, expert_widths={1: 128, 4: 64, 7: 32 * 9})
"""Of TINY's experts, layer by layer."""


@dataclass(frozen=True)
class Reserved:
    """Bytes, as exactly as the log tells: a hundredth of a MiB."""

    kv_bytes: float
    state_bytes: float
    compute_bytes: float
    output_bytes: float
    weights_bytes: float
    """0 unless the weights were loaded."""


def write_header(path: Path, config: dict[str, Any], choices: Choices | None = None) -> Path:
    """Write a GGUF with everything but weights: a hole is where they would be."""
    spec = describe_nemotron_h(Config(path, config), frozenset(), choices)
    metadata = [
        ("general.architecture", spec.architecture, "str"),
        *spec.metadata,
        ("tokenizer.ggml.model", "none", "str"),
    ]
    q8_0 = {t.name for t in spec.tensors if t.matrix and t.shape[-1] % 32 == 0}
    plan = plan_file(
        metadata,
        [TensorSpec(t.name, t.shape, TYPE_IDS["q8_0"] * (t.name in q8_0)) for t in spec.tensors],
    )
    with path.open("wb") as file:
        file.write(plan.header)
        file.truncate(plan.file_bytes)
    return path


def read_reserved(
    path: Path, options: ContextOptions, *, n_gpu_layers: int = 0, real: bool = False
) -> Reserved:
    """Let llama.cpp open a context and read from its log what it took.

    Args:
        path: A GGUF; without `real`, no weights are read and little is allocated.
        options: The context.
        n_gpu_layers: Layers on the GPU.
        real: Load and allocate everything, instead of only reckoning.
    """
    lines: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda _level, text, _data: lines.append(text.decode()))
    llama_cpp.llama_log_set(callback, None)
    llama_cpp.llama_backend_init()
    model = _load(path, n_gpu_layers, real)
    context = llama_cpp.llama_init_from_model(model, _make_parameters(options))
    assert context, "".join(lines)[-2000:]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    _keep.append(callback)  # C calls it until the next one is set
    return _parse_log("".join(lines))


_keep: list[Any] = []


def _load(path: Path, n_gpu_layers: int, real: bool) -> Any:
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = n_gpu_layers
    parameters.use_extra_bufts = False  # AMX kernels crash, see localcascade/engine/model.py
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    parameters.no_alloc = not real
    model = llama_cpp.llama_model_load_from_file(bytes(path), parameters)
    assert model, f"llama.cpp refuses {path}"
    return model


def _make_parameters(options: ContextOptions) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max = options.n_ctx, options.n_parallel
    parameters.n_batch, parameters.n_ubatch = options.n_batch, options.n_ubatch
    parameters.kv_unified, parameters.n_rs_seq = options.unified, options.n_rs_seq
    parameters.flash_attn_type = -1 if options.flash_attention else 0  # automatic or off
    parameters.n_outputs_max = options.n_outputs
    parameters.type_k = parameters.type_v = TYPE_IDS[options.kv_type]
    return parameters


def _parse_log(log: str) -> Reserved:
    def add_up(pattern: str) -> float:
        return MIB * sum(map(float, re.findall(pattern + r" *([\d.]+) MiB", log)))

    return Reserved(
        kv_bytes=add_up("llama_kv_cache: size ="),
        state_bytes=add_up("RS buffer size ="),
        compute_bytes=add_up("compute buffer size ="),
        output_bytes=add_up("output buffer size ="),
        weights_bytes=add_up("model buffer size ="),
    )


def draw_cases(n_cases: int) -> Iterator[tuple[str, ContextOptions]]:
    """Draw geometries and contexts that llama.cpp accepts, the same ones every time."""
    rng = random.Random(20260731)
    for i in range(n_cases):
        n_parallel = rng.choice((1, 1, 2, 3, 4, 8))
        n_ubatch = rng.choice((32, 64, 128, 512, 1024))
        flash_attention = rng.random() < 0.75
        n_outputs = rng.choice((0, n_parallel, 64))
        yield (
            list(GEOMETRIES)[i % len(GEOMETRIES)],
            ContextOptions(
                n_ctx=rng.choice((300, 1000, 4096, 10000, 32768, 131072, 262144)),
                # llama.cpp has quantized values only with flash attention.
                kv_type=rng.choice(("f16", "q8_0", "q4_0")) if flash_attention else "f16",
                n_parallel=n_parallel,
                n_batch=n_ubatch * rng.choice((1, 2)),
                n_ubatch=n_ubatch,
                unified=rng.random() < 0.6,
                flash_attention=flash_attention,
                n_outputs=0 if n_outputs < n_parallel else n_outputs,
                # States are allocated even where nothing else is: not gigabytes of them.
                n_rs_seq=rng.choice((0, 0, 2)) if n_parallel < 4 else 0,
            ),
        )
