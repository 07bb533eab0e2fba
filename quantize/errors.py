"""Everything the quantizer can refuse, as one tree.

QuantizeError
├── CheckpointError        the source files are missing, damaged or contradict each other
│   └── NotFinite          a weight is NaN or infinite
├── UnsupportedModel       sound files of a model that llama.cpp cannot load
├── ChoiceRefused          a recipe asks for what this model cannot become
├── TypeMismatch           the wanted type's block does not divide a tensor's width
├── BudgetTooSmall         no choice of types and widths makes the file as small as asked for
├── RecipeError            a recipe file is not one, or is another model's
├── GGUFError              a GGUF file is damaged, truncated or not one
├── SensitivityError       a file of sensitivities is wrong; names the key
├── OutputError            the result could not be written or did not read back as written
└── NativeError            libggml-base is missing, unloadable or lacks a symbol
"""

from __future__ import annotations

from pathlib import Path


class QuantizeError(Exception):
    """Base of all errors of this package.

    Args:
        message: What is wrong and where (file, tensor, key or byte), one sentence.
        hint: What to do about it, one sentence; empty if there is nothing to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckpointError(QuantizeError):
    """A checkpoint file is missing, damaged or contradicts another one.

    Args:
        path: The file at fault.
        problem: What is wrong with it.
        tensor: The tensor at fault, if one is.
        hint: What to do.
    """

    def __init__(self, path: Path, problem: str, *, tensor: str = "", hint: str = "") -> None:
        where = f"{path}: tensor {tensor}" if tensor else str(path)
        super().__init__(f"{where}: {problem}", hint)
        self.path = path
        self.tensor = tensor


class NotFinite(CheckpointError):
    """A weight is NaN or infinite; `position` is its index in numpy order."""

    def __init__(self, path: Path, tensor: str, position: tuple[int, ...], value: float) -> None:
        super().__init__(
            path,
            f"value {value} at position {list(position)}",
            tensor=tensor,
            hint="Download the file again; if it is the same, the checkpoint itself is broken.",
        )
        self.position = position


class UnsupportedModel(QuantizeError):
    """The files are sound, but no family of ours, or no llama.cpp, knows such a model."""


class ChoiceRefused(QuantizeError):
    """A width or a type that was chosen does not go with this model; the text names which."""


class TypeMismatch(QuantizeError):
    """A type's block size does not divide the width of a tensor.

    Args:
        tensor: Output name of the tensor.
        width: Length of its rows, in weights.
        type_name: The type asked for.
        block: Weights per block of that type.
        fitting: Names of the types that would fit.
    """

    def __init__(
        self, tensor: str, width: int, type_name: str, block: int, fitting: tuple[str, ...]
    ) -> None:
        super().__init__(
            f"{tensor}: rows of {width} weights cannot be cut into {type_name} blocks of {block}",
            f"Types that fit: {', '.join(fitting)}. Choose one with --type; or keep {type_name} "
            "where it fits and name another for the rest with --fallback; or widen the model with "
            "zeros, exactly, with --pad.",
        )
        self.tensor = tensor
        self.width = width
        self.block = block
        self.fitting = fitting


class BudgetTooSmall(QuantizeError):
    """No choice of types and widths makes the file as small as asked for; sizes in bytes."""

    def __init__(self, need_bytes: int, have_bytes: int) -> None:
        super().__init__(
            f"the smallest file of this model has {need_bytes} bytes, not {have_bytes}",
            "Allow more bytes.",
        )
        self.need_bytes = need_bytes
        self.have_bytes = have_bytes


class RecipeError(QuantizeError):
    """A recipe file is not one, or is another model's; names the file and the key."""

    def __init__(self, file: Path | str, key: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}", hint)
        self.file = file
        self.key = key


class GGUFError(QuantizeError):
    """A GGUF file is damaged, truncated or not one; `offset` is the byte at fault."""

    def __init__(
        self, path: Path, problem: str, *, offset: int | None = None, hint: str = ""
    ) -> None:
        where = f"{path}: byte {offset}" if offset is not None else str(path)
        super().__init__(f"{where}: {problem}", hint)
        self.path = path
        self.offset = offset


class SensitivityError(QuantizeError):
    """A file of sensitivities is wrong; names the file and the key."""

    def __init__(self, path: Path, key: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{path}: {key}: {problem}" if key else f"{path}: {problem}", hint)
        self.path = path
        self.key = key


class OutputError(QuantizeError):
    """The result could not be written, or did not read back as it was written."""


class NativeError(QuantizeError):
    """libggml-base could not be found, could not be loaded, or lacks a symbol."""
