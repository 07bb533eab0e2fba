"""One small file per model family: config to metadata, checkpoint tensors to GGUF tensors."""

from __future__ import annotations

from collections.abc import Callable

from quantize.errors import UnsupportedModel
from quantize.families.nemotron_h import describe_nemotron_h
from quantize.families.spec import Config, ModelSpec, OutputTensor
from quantize.safetensors import Checkpoint

FAMILIES: dict[str, Callable[[Config, frozenset[str], int], ModelSpec]] = {
    "NemotronHForCausalLM": describe_nemotron_h,
}
"""`architectures` entry of config.json -> what reads the rest of it."""


def describe_model(checkpoint: Checkpoint, block: int = 1) -> ModelSpec:
    """Find the checkpoint's family and let it speak. Code named by `auto_map` is never run.

    Args:
        checkpoint: The source, open.
        block: Widths that may grow are padded with zeros to multiples of it, exactly.

    Raises:
        UnsupportedModel: No family of ours knows the architecture.
        CheckpointError: The config is damaged.
    """
    config = Config(checkpoint.folder / "config.json", checkpoint.config)
    architectures = checkpoint.config.get("architectures")
    for name in architectures if isinstance(architectures, list) else []:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name](config, frozenset(checkpoint.tensors), block)
    raise UnsupportedModel(
        f"{config.path}: key architectures: {architectures!r} is not a model known here",
        f"There are {', '.join(FAMILIES)}.",
    )


__all__ = ["FAMILIES", "Config", "ModelSpec", "OutputTensor", "describe_model"]
