"""Safetensors checkpoints: open one (`open_checkpoint`), read its weights from any thread."""

from quantize.safetensors.checkpoint import Checkpoint, check_finite, open_checkpoint
from quantize.safetensors.documents import read_object
from quantize.safetensors.header import DTYPE_BYTES, StoredTensor
from quantize.safetensors.shards import Shards, Stretch

__all__ = [
    "DTYPE_BYTES",
    "Checkpoint",
    "Shards",
    "StoredTensor",
    "Stretch",
    "check_finite",
    "open_checkpoint",
    "read_object",
]
