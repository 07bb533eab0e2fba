"""Write small safetensors checkpoints, with numpy alone, for tests of this package and others."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, tuple[str, npt.NDArray[Any]]]
"""Name to dtype (BF16, F16, F32) and weights; BF16 weights may also be given as uint16 bits."""

_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


def round_to_bf16(weights: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; its bits as uint16. NaN stays NaN."""
    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(weights), quiet, rounded)


def widen_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 that bfloat16 bits stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode_tensor(dtype: str, weights: npt.NDArray[Any]) -> bytes:
    """The bytes of a tensor as a shard stores them."""
    if dtype != "BF16":
        return weights.astype(_DTYPES[dtype]).tobytes()
    bits = weights if weights.dtype == np.uint16 else round_to_bf16(weights)
    return bits.astype("<u2").tobytes()


def pack_shard(header: Mapping[str, Any], data: bytes) -> bytes:
    """A shard's bytes from its header as JSON will hold it, and its data."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def describe_tensors(tensors: Tensors) -> tuple[dict[str, Any], bytes]:
    """The header entries and the data of a shard that holds these tensors, in this order."""
    header: dict[str, Any] = {}
    data = bytearray()
    for name, (dtype, weights) in tensors.items():
        start = len(data)
        data += encode_tensor(dtype, weights)
        header[name] = {
            "dtype": dtype,
            "shape": list(weights.shape),
            "data_offsets": [start, len(data)],
        }
    return header, bytes(data)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Write one shard."""
    header, data = describe_tensors(tensors)
    path.write_bytes(pack_shard({"__metadata__": {"format": "pt"}, **header}, data))


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Tensors, n_shards: int = 1
) -> None:
    """Write config.json and the weights, in so many shards with an index if more than one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        chosen = names[i * len(names) // n_shards : (i + 1) * len(names) // n_shards]
        write_safetensors(folder / shard, {name: tensors[name] for name in chosen})
        weight_map |= dict.fromkeys(chosen, shard)
    total_size = sum(len(encode_tensor(*tensor)) for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
