"""GGUF files: read one (`open_gguf`), lay out a new one (`plan_file`).

A file is: magic, version, counts, metadata, tensor infos, padding, tensor data. Only this package
knows that ggml counts axes from the other end; everywhere else shapes are in numpy order.
"""

from quantize.gguf.blocks import DEFAULT_ALIGNMENT, TYPES, BlockType, GGUFTensor
from quantize.gguf.file import GGUFArray, GGUFFile
from quantize.gguf.layout import FilePlan, MetadataEntry, TensorSpec, plan_file
from quantize.gguf.reader import open_gguf

__all__ = [
    "DEFAULT_ALIGNMENT",
    "TYPES",
    "BlockType",
    "FilePlan",
    "GGUFArray",
    "GGUFFile",
    "GGUFTensor",
    "MetadataEntry",
    "TensorSpec",
    "open_gguf",
    "plan_file",
]
