"""What a GGUF file weighs: by role in the model, and by type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantize.errors import GGUFError
from quantize.gguf import GGUFFile, GGUFTensor

_ROLE_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("other", re.compile(r"_norm(_\w+)?\.|\.ffn_gate_inp|\.exp_probs_b")),
    ("experts", re.compile(r"_(ch)?exps\.")),
    ("shared", re.compile(r"_shexp\.")),
    ("mamba", re.compile(r"\.ssm_")),
    ("attention", re.compile(r"\.attn_")),
    ("dense", re.compile(r"\.ffn_(gate|up|down|latent_up|latent_down)\.")),
    ("embeddings", re.compile(r"^(token_embd|output|position_embd|token_types)\.")),
)
"""Role and what its tensor names contain; the first that matches, else "other"."""

ROLES = ("experts", "shared", "dense", "mamba", "attention", "embeddings", "other")
"""Routed experts; experts every token takes; plain feed-forward; Mamba; attention; token
embeddings and output matrix; norms, routers and whatever else."""


@dataclass(frozen=True)
class Share:
    """A part of the file's tensors."""

    n_tensors: int
    n_params: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes on average; 0 if there is none."""
        return 8 * self.n_bytes / self.n_params if self.n_params else 0.0


@dataclass(frozen=True)
class Summary:
    """What a GGUF file holds and what it weighs."""

    architecture: str
    """Empty if the file does not say."""
    name: str
    """Empty if the file does not say."""
    file_bytes: int
    n_splits: int
    """Files the model is spread over; above 1, everything here is about this one."""
    total: Share
    """All tensors; the file is larger by its header and padding."""
    roles: dict[str, Share]
    """Every role of `ROLES`, also those without tensors."""
    types: dict[str, Share]
    """By ggml's name of the type, heaviest first."""

    def to_json(self) -> dict[str, Any]:
        """Build what `inspect --json` prints."""
        return {
            "architecture": self.architecture,
            "name": self.name,
            "file_bytes": self.file_bytes,
            "n_splits": self.n_splits,
            "n_params": self.total.n_params,
            "bits_per_weight": self.total.bits_per_weight,
            "roles": {
                role: {
                    "n_params": share.n_params,
                    "bytes": share.n_bytes,
                    "bits_per_weight": share.bits_per_weight,
                }
                for role, share in self.roles.items()
            },
            "types": {
                name: {"n_tensors": share.n_tensors, "bytes": share.n_bytes}
                for name, share in self.types.items()
            },
        }


def summarize_gguf(file: GGUFFile) -> Summary:
    """Weigh an open GGUF file.

    Args:
        file: The file; only its header is looked at.

    Returns:
        Its summary; the roles' bytes add up to those of all tensors, and so do the types'.

    Raises:
        GGUFError: The file's name or architecture is not text.
    """
    tensors = list(file.tensors.values())
    by_role = {
        role: [tensor for tensor in tensors if find_role(tensor.name) == role] for role in ROLES
    }
    by_type: dict[str, list[GGUFTensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.type.name, []).append(tensor)
    types = {name: _weigh(group) for name, group in by_type.items()}
    return Summary(
        architecture=_read_text(file, "general.architecture"),
        name=_read_text(file, "general.name"),
        file_bytes=file.file_bytes,
        n_splits=file.n_splits,
        total=_weigh(tensors),
        roles={role: _weigh(group) for role, group in by_role.items()},
        types=dict(sorted(types.items(), key=lambda item: -item[1].n_bytes)),
    )


def find_role(name: str) -> str:
    """Tell what part of the model a tensor belongs to, by its name; one of `ROLES`."""
    for role, pattern in _ROLE_PATTERNS:
        if pattern.search(name):
            return role
    return "other"


def _weigh(tensors: Iterable[GGUFTensor]) -> Share:
    group = list(tensors)
    return Share(
        n_tensors=len(group),
        n_params=sum(tensor.n_weights for tensor in group),
        n_bytes=sum(tensor.n_bytes for tensor in group),
    )


def _read_text(file: GGUFFile, key: str) -> str:
    text = file.metadata.get(key, "")
    if not isinstance(text, str):
        raise GGUFError(file.path, f"{key} is not text", hint="Convert the model again.")
    return text
