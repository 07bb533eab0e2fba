"""What a GGUF's header must say before llama.cpp may see the file.

llama.cpp aborts on some values instead of refusing them; those are refused here, by name.
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
            _check_architecture(file)
            _check_vocabulary(file)
    except GGUFError as exc:
        problem = exc.message.removeprefix(f"{path}: ")
        raise ModelFileError(path, problem, hint=exc.hint or HINT) from exc


def _check_architecture(file: GGUFFile) -> None:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _refuse(file, "general.architecture", "is missing or no text")
    for suffix in REQUIRED:
        if f"{architecture}.{suffix}" not in file.metadata:
            raise _refuse(file, f"{architecture}.{suffix}", "is missing")
    for suffix, (least, most) in LIMITS.items():
        key = f"{architecture}.{suffix}"
        for value in _list_values(file.metadata, key):
            if type(value) is not int or not least <= value <= most:
                raise _refuse(file, key, f"is {value!r}, not a number from {least} to {most}")


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
