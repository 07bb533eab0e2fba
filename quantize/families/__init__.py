"""One small file per model family: config to metadata, checkpoint tensors to GGUF tensors."""

from __future__ import annotations

from collections.abc import Callable

from quantize.choices import Choices
from quantize.errors import UnsupportedModel
from quantize.families.nemotron_h import describe_nemotron_h
from quantize.families.spec import Config, ModelSpec, OutputTensor
from quantize.safetensors import Checkpoint

FAMILIES: dict[str, Callable[[Config, frozenset[str], Choices], ModelSpec]] = {
    "NemotronHForCausalLM": describe_nemotron_h,
}
"""`architectures` entry of config.json -> what reads the rest of it."""


def describe_model(checkpoint: Checkpoint, choices: Choices | None = None) -> ModelSpec:
    """Find the checkpoint's family and let it speak. Code named by `auto_map` is never run.

    Args:
        checkpoint: The source, open.
        choices: The widths that it is to have; None keeps its own.

    Raises:
        ChoiceRefused: A width that it cannot have.
        UnsupportedModel: No family of ours knows the architecture.
        CheckpointError: The config is damaged.
    """
    config = Config(checkpoint.folder / "config.json", checkpoint.config)
    architectures = checkpoint.config.get("architectures")
    for name in architectures if isinstance(architectures, list) else []:
        if isinstance(name, str) and name in FAMILIES:
            names = frozenset(checkpoint.tensors)
            return FAMILIES[name](config, names, choices or Choices(types={}))
    raise UnsupportedModel(
        f"{config.path}: key architectures: {architectures!r} is not a model known here",
        f"There are {', '.join(FAMILIES)}.",
    )


__all__ = ["FAMILIES", "Config", "ModelSpec", "OutputTensor", "describe_model"]
