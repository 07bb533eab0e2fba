"""Small random Nemotron-H checkpoints in Hugging Face layout, the same from the same seed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from quantize.families.nemotron_h import describe_nemotron_h
from quantize.families.spec import Config
from tests.quantize.checkpoints import write_safetensors

TINY = Path(__file__).parents[2] / "localcascade" / "data" / "tiny"

_COMMON: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "vocab_size": 640,
    "max_position_embeddings": 512,
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    # transformers clamps dt from below at this; NVIDIA's own code and llama.cpp do not
    "time_step_min": 1e-9,
    "bos_token_id": 1,
    "eos_token_id": 5,
    "pad_token_id": 3,
}

DENSE: dict[str, Any] = _COMMON | {
    "hybrid_override_pattern": "M-*M-",
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 20,
    "mamba_num_heads": 6,
    "mamba_head_dim": 12,
    "n_groups": 3,
    "ssm_state_size": 20,
    "conv_kernel": 4,
    "intermediate_size": 110,
    # a dense model may carry keys of experts it does not have
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "tie_word_embeddings": False,
}
"""Dense feed-forward, no width a multiple of 32."""

ODD_EXPERTS: dict[str, Any] = _COMMON | {
    "layers_block_type": ["moe", "mamba", "attention", "moe", "mamba"],
    "hidden_size": 104,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "mamba_num_heads": 10,
    "mamba_head_dim": 8,
    "n_groups": 5,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 56,
    "moe_shared_expert_intermediate_size": 88,
    "n_shared_experts": 1,
    "moe_latent_size": 40,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
"""Grouped routing, a latent width, five state groups, heads that share keys in pairs."""


def make_checkpoint(folder: Path, config: dict[str, Any], dtype: str, seed: int) -> Path:
    """Write a whole checkpoint: config, weights in one file, and the tiny model's tokenizer.

    Args:
        folder: Created; returned.
        config: One of the above, or a variation of it.
        dtype: "BF16", "F16" or "F32".
        seed: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    weights = draw_weights(config, seed)
    write_safetensors(folder / "model.safetensors", {n: (dtype, w) for n, w in weights.items()})
    return folder


def hash_weights(folder: Path) -> str:
    """SHA-256 over the safetensors of a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def draw_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draw float32 weights of the sizes and scales a trained model has."""
    rng = np.random.Generator(np.random.PCG64(seed))
    model = describe_nemotron_h(
        Config(Path("config.json"), config), frozenset(["backbone.embeddings.weight"])
    )
    return {
        source: _draw_tensor(source, spec.source_shape, rng)
        for spec in model.tensors
        for source in spec.sources
    }


def _draw_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("A_log"):
        return np.log(1 + np.arange(shape[0], dtype=np.float32)) + 0.1 * noise
    if name.endswith("dt_bias"):
        return -3 + noise
    if name.endswith(("norm.weight", "norm_f.weight", ".D")):
        return 1 + 0.2 * noise
    if name.endswith(("bias", "conv1d.weight")):
        return 0.3 * noise
    gain = {"gate": 2.0, "embeddings": 4.0, "lm_head": 4.0}
    return noise * math.prod(g for part, g in gain.items() if part in name) / math.sqrt(shape[-1])
