"""What a GGUF's header must say before llama.cpp may see the file.

llama.cpp aborts on some values instead of refusing them; those are refused here, by name.
What passes and kills it none the less costs a worker, no more.
Source: llama_model_base::load_hparams in llama.cpp's src/llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcascade.errors import ModelFileError
from quantize.errors import GGUFError
from quantize.gguf import GGUFArray, GGUFFile, open_gguf

MAX_LAYERS = 512
MAX_EXPERTS = 512
MAX_WIDTH = 2**20
HINT = "The file is damaged or made to do harm: convert or download it again."

LIMITS: dict[str, tuple[int, int]] = {
    "block_count": (1, MAX_LAYERS),
    "context_length": (1, 2**31 - 1),
    "embedding_length": (1, MAX_WIDTH),
    "expert_count": (0, MAX_EXPERTS),
    "expert_used_count": (0, MAX_EXPERTS),
    "expert_group_count": (0, MAX_EXPERTS),
    "expert_group_used_count": (0, MAX_EXPERTS),
    "nextn_predict_layers": (0, MAX_LAYERS),
    "attention.head_count": (0, MAX_WIDTH),
    "attention.head_count_kv": (0, MAX_WIDTH),
    "attention.key_length": (1, MAX_WIDTH),
    "attention.value_length": (1, MAX_WIDTH),
    "feed_forward_length": (0, MAX_WIDTH),
    "expert_feed_forward_length": (0, MAX_WIDTH),
    "ssm.conv_kernel": (1, MAX_WIDTH),
    "ssm.inner_size": (1, MAX_WIDTH),
    "ssm.state_size": (1, MAX_WIDTH),
    "ssm.time_step_rank": (1, MAX_WIDTH),
    "ssm.group_count": (1, MAX_WIDTH),
}
"""Key behind the architecture -> least and most it may be; for arrays, each element."""

REAL_KEYS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
REQUIRED = ("block_count", "context_length", "embedding_length")


def check_header(path: Path) -> None:
    """Refuse a model file that llama.cpp would not survive.

    Args:
        path: The GGUF.

    Raises:
        ModelFileError: Names the byte, key or tensor at fault.
    """
    try:
        with open_gguf(path) as file:
            architecture = _check_architecture(file)
            _check_numbers(file, architecture)
            _check_relations(file, architecture)
            _check_vocabulary(file)
    except GGUFError as exc:
        problem = exc.message.removeprefix(f"{path}: ")
        raise ModelFileError(path, problem, hint=exc.hint or HINT) from exc


def _check_architecture(file: GGUFFile) -> str:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _refuse(file, "general.architecture", "is missing or no text")
    for suffix in REQUIRED:
        if f"{architecture}.{suffix}" not in file.metadata:
            raise _refuse(file, f"{architecture}.{suffix}", "is missing")
    return architecture


def _check_numbers(file: GGUFFile, architecture: str) -> None:
    for suffix, (least, most) in LIMITS.items():
        key = f"{architecture}.{suffix}"
        for value in _list_values(file.metadata, key):
            if type(value) is not int or not least <= value <= most:
                raise _refuse(file, key, f"is {value!r}, not a whole number, {least} to {most}")
    for suffix in REAL_KEYS:
        key = f"{architecture}.{suffix}"
        for value in _list_values(file.metadata, key):
            if type(value) is not float or not 0 <= value < 1:
                raise _refuse(file, key, f"is {value!r}, not a number from 0 to 1")


def _check_relations(file: GGUFFile, architecture: str) -> None:
    """Check what llama.cpp asserts of one number beside another."""

    def read(suffix: str) -> int:
        return max(_list_values(file.metadata, f"{architecture}.{suffix}"), default=0)

    n_experts, n_used = read("expert_count"), read("expert_used_count")
    n_groups, n_used_groups = read("expert_group_count"), read("expert_group_used_count")
    is_grouped = n_groups > 1
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    for suffix, is_sound in (
        ("expert_used_count", n_used <= n_experts and (n_used > 0) == (n_experts > 0)),
        ("expert_group_count", n_groups < n_experts or n_groups == 0),
        ("expert_group_count", not is_grouped or n_experts % n_groups == 0),
        ("expert_group_used_count", not is_grouped or 0 < n_used_groups < n_groups),
        ("nextn_predict_layers", read("nextn_predict_layers") < read("block_count")),
        ("rope.scaling.type", scaling in ROPE_SCALINGS),
    ):
        if not is_sound:
            key = f"{architecture}.{suffix}"
            raise _refuse(file, key, f"is {file.metadata.get(key)!r}, which contradicts the rest")


def _check_vocabulary(file: GGUFFile) -> None:
    """Token ids index arrays beside the texts, so these must be as long as the texts are."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GGUFArray) or tokens.value_type != "str" or not len(tokens):
        raise _refuse(file, "tokenizer.ggml.tokens", "is missing or no list of texts")
    for suffix, value_type in (("scores", "f32"), ("token_type", "i32")):
        key = f"tokenizer.ggml.{suffix}"
        beside = file.metadata.get(key)
        if beside is None:
            continue
        if not isinstance(beside, GGUFArray) or beside.value_type != value_type:
            raise _refuse(file, key, f"is no list of {value_type}")
        if len(beside) != len(tokens):
            raise _refuse(file, key, f"has {len(beside)} entries for {len(tokens)} tokens")


def _list_values(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """List the values under a key: none, one, or those of an array."""
    value = metadata.get(key)
    if value is None:
        return []
    return list(value) if isinstance(value, GGUFArray) else [value]


def _refuse(file: GGUFFile, key: str, problem: str) -> ModelFileError:
    return ModelFileError(file.path, f"{key} {problem}", hint=HINT)
