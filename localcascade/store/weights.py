"""What the headers of a model say: kind of weights, their number, bits each.

Opening the headers is also the check that a model is one: what cannot be opened is not installed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localcascade.errors import ModelFileError
from localcascade.store.manifest import Kind, Weights

if TYPE_CHECKING:
    from quantize.report import Summary

SPLIT_PATTERN = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""Name of one file of a GGUF model that is spread over several."""


def read_weights(folder: Path, kind: Kind, files: Sequence[str]) -> Weights:
    """Open the headers of a model and say what they hold.

    Args:
        folder: Where the files lie.
        kind: Of the model.
        files: Paths in the folder, divided by "/".

    Raises:
        QuantizeError: A header is damaged, or contradicts its file.
        ModelFileError: A file is missing, or there is more than one model.
    """
    if kind == "checkpoint":
        return _read_checkpoint(folder)
    return _read_ggufs([folder / file for file in order_ggufs(folder, files)])


def order_ggufs(folder: Path, files: Sequence[str]) -> list[str]:
    """Pick the GGUF files of one model, in the order of its splits.

    Args:
        folder: Where they lie, for messages.
        files: Paths in it; what does not end in .gguf is passed over.

    Returns:
        One path, or every split of one model; llama.cpp is given the first.

    Raises:
        ModelFileError: There is none, more than one model, or a split is missing.
    """
    found = sorted(file for file in files if file.lower().endswith(".gguf"))
    if len(found) == 1 and not SPLIT_PATTERN.fullmatch(found[0]):
        return found
    if not found:
        raise ModelFileError(folder, "there is no GGUF file", hint="Install another one.")
    matches = [SPLIT_PATTERN.fullmatch(file) for file in found]
    stems = {(match["stem"], match["count"]) if match else None for match in matches}
    if None in stems or len(stems) > 1:
        hint = "Install them one by one, each under its own name."
        raise ModelFileError(folder, f"{len(found)} GGUF files of several models", hint=hint)
    ((stem, count),) = (key for key in stems if key)
    for number in range(1, int(count) + 1):
        wanted = f"{stem}-{number:05}-of-{count}.gguf"
        if wanted not in found:
            raise ModelFileError(folder / wanted, "this part is missing", hint="Get all parts.")
    return found


def _read_ggufs(paths: Sequence[Path]) -> Weights:
    from quantize.gguf import open_gguf
    from quantize.report import summarize_gguf

    summaries: list[Summary] = []
    for path in paths:
        with open_gguf(path) as file:
            summary = summarize_gguf(file)
        if summary.n_splits != len(paths):
            problem = f"it says that it is one of {summary.n_splits} files, not of {len(paths)}"
            raise ModelFileError(path, problem, hint="Get all parts, under their own names.")
        summaries.append(summary)
    type_bytes: Counter[str] = Counter()
    for summary in summaries:
        type_bytes.update({name: share.n_bytes for name, share in summary.types.items()})
    n_params = sum(summary.total.n_params for summary in summaries)
    return _weigh(summaries[0].architecture, type_bytes, n_params)


def _read_checkpoint(folder: Path) -> Weights:
    from quantize.safetensors import DTYPE_BYTES, open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        type_bytes: Counter[str] = Counter()
        for tensor in checkpoint.tensors.values():
            type_bytes[tensor.dtype.lower()] += tensor.n_bytes
        n_params = sum(t.n_bytes // DTYPE_BYTES[t.dtype] for t in checkpoint.tensors.values())
        architecture = checkpoint.config.get("model_type")
    return _weigh(architecture if isinstance(architecture, str) else "", type_bytes, n_params)


def _weigh(architecture: str, type_bytes: Counter[str], n_params: int) -> Weights:
    heaviest = type_bytes.most_common(1)
    bits = 8 * type_bytes.total() / n_params if n_params else 0.0
    return Weights(architecture, heaviest[0][0] if heaviest else "", n_params, bits)
