"""GGUF files: read one (`open_gguf`), lay one out (`plan_file`), fill in values (`patch_metadata`).

A file is: magic, version, counts, metadata, tensor infos, padding, tensor data. Only this package
knows that ggml counts axes from the other end; everywhere else shapes are in numpy order.
"""

from quantize.gguf.blocks import DEFAULT_ALIGNMENT, TYPES, BlockType, GGUFTensor
from quantize.gguf.file import GGUFArray, GGUFFile
from quantize.gguf.layout import FilePlan, MetadataEntry, TensorSpec, plan_file
from quantize.gguf.patch import patch_metadata
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
    "patch_metadata",
    "plan_file",
]
