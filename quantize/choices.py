"""What was chosen for one model: the widths of its layers and the type of every matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Choices:
    """A decided recipe, free of any checkpoint; what allocation solves for and a user may edit."""

    types: Mapping[str, str]
    """Name of a matrix in the GGUF -> ggml type; tensors not named here are f32."""
    n_embd: int | None = None
    """Width of the residual stream in weights; None keeps the checkpoint's."""
    expert_widths: Mapping[int, int] = field(default_factory=dict)
    """Layer -> neurons of each of its routed experts; layers not named keep the checkpoint's."""
    shared_width: int | None = None
    """Neurons of the shared experts; None keeps the checkpoint's."""
    dense_width: int | None = None
    """Neurons of dense feed-forward layers; None keeps the checkpoint's."""
    latent_width: int | None = None
    """Width that routed experts work at, where it is not the stream's; None keeps it."""
