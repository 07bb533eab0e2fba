"""What a user wants of the memory, and the plan that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localcascade.errors import OutOfBudget
from localcascade.fit.memory import N_BATCH, ContextOptions
from localcascade.fit.placement import Device, DeviceUse, Placement
from localcascade.settings import CHAT_OUTPUTS

CHECKPOINT_BUDGETS_BYTES = (1 << 30, 256 << 20, 0)
"""What is tried in turn for saved states: a model is worth more than the way back."""
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants; None leaves it to the plan."""

    n_ctx: int | None = None
    """Tokens of all sequences together."""
    kv_type: str = "f16"
    n_parallel: int = 1
    n_cpu_expert_layers: int | None = None
    """Layers, of those that have experts and the first ones first, whose experts go to main
    memory."""
    n_gpu_layers: int | None = None
    """Layers on GPUs, counted from the last, the output being one."""
    n_ubatch: int = N_BATCH
    n_outputs: int = CHAT_OUTPUTS
    """As in ContextOptions."""
    flash_attention: bool = True
    unified: bool = True
    checkpoint_bytes: int | None = None
    """Main memory for saved states; None is the first of CHECKPOINT_BUDGETS_BYTES that leaves room
    for all else."""

    def make_options(self, n_ctx: int) -> ContextOptions:
        """Make the context of that many tokens."""
        return ContextOptions(
            n_ctx=n_ctx,
            kv_type=self.kv_type,
            n_parallel=self.n_parallel,
            n_batch=self.n_ubatch,
            n_ubatch=self.n_ubatch,
            n_outputs=self.n_outputs,
            flash_attention=self.flash_attention,
            unified=self.unified,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be where."""

    options: ContextOptions
    placement: Placement
    uses: tuple[DeviceUse, ...]
    """One for each GPU, and last that of main memory."""
    fits: bool
    max_context: int
    """Most tokens that fit with the same placement, up to what the model was trained for; 0 if
    this plan does not fit."""
    tokens_per_s_estimate: float
    """A rough estimate, from how fast the devices read their memory."""
    change: str = ""
    """What is changed of what was asked for; empty for nothing."""
    alternatives: tuple[Plan, ...] = ()
    """Where this one does not fit: the nearest that do, at most three."""

    @property
    def weights_bytes(self) -> int:
        """Weights on all devices."""
        return sum(use.weights_bytes for use in self.uses)

    @property
    def kv_bytes(self) -> int:
        """Keys and values on all devices."""
        return sum(use.kv_bytes for use in self.uses)

    @property
    def state_bytes(self) -> int:
        """Recurrent state on all devices."""
        return sum(use.state_bytes for use in self.uses)

    @property
    def compute_bytes(self) -> int:
        """Buffers of intermediate results and logits on all devices."""
        return sum(use.compute_bytes for use in self.uses)

    @property
    def host_bytes(self) -> int:
        """All that lies in main memory."""
        return self.uses[-1].used_bytes

    @property
    def cards(self) -> tuple[Device, ...]:
        """The GPUs that hold anything; llama.cpp is to know of no others, which it would use."""
        return tuple(use.device for use in self.uses[:-1] if use.used_bytes)

    @property
    def gpu_shares(self) -> tuple[float, ...]:
        """Share of the layers that each of the cards gets, for llama.cpp's tensor_split."""
        total = sum(use.device.usable_bytes for use in self.uses[:-1]) or 1
        return tuple(card.usable_bytes / total for card in self.cards)


def check_fit(planned: Plan) -> Plan:
    """Refuse a plan that does not fit, before anything is loaded.

    Returns:
        The plan itself.

    Raises:
        OutOfBudget: Names the device and what would fit.
    """
    if planned.fits:
        return planned
    use = max(planned.uses, key=lambda use: use.excess_bytes)
    changes = "; ".join(nearest.change for nearest in planned.alternatives)
    have_bytes = use.device.free_bytes - use.device.margin_bytes
    need, have = _word_bytes(use.used_bytes), _word_bytes(have_bytes)
    raise OutOfBudget(
        f"{use.device.name}: {need} are needed, {have} can be had",
        need_bytes=use.used_bytes,
        have_bytes=have_bytes,
        hint=f"What fits: {changes}." if changes else "No smaller plan fits either.",
    )


def describe_plan(planned: Plan) -> dict[str, Any]:
    """Say a plan in plain data; the keys are a contract, more may be added."""
    return {
        "fits": planned.fits,
        "devices": [_describe_use(use) for use in planned.uses],
        "weights_bytes": planned.weights_bytes,
        "kv_bytes": planned.kv_bytes,
        "state_bytes": planned.state_bytes,
        "compute_bytes": planned.compute_bytes,
        "checkpoint_bytes": planned.uses[-1].checkpoint_bytes,
        "host_bytes": planned.host_bytes,
        "context": planned.options.n_ctx,
        "max_context": planned.max_context,
        "kv_type": planned.options.kv_type,
        "n_parallel": planned.options.n_parallel,
        "n_gpu_layers": planned.placement.n_gpu_layers,
        "cpu_expert_layers": list(planned.placement.cpu_expert_layers),
        "tokens_per_s_estimate": round(planned.tokens_per_s_estimate, 1),
        "change": planned.change,
        "alternatives": [describe_plan(nearest) for nearest in planned.alternatives],
    }


def _describe_use(use: DeviceUse) -> dict[str, Any]:
    return {
        "name": use.device.name,
        "kind": use.device.kind,
        "total_bytes": use.device.total_bytes,
        "free_bytes": use.device.free_bytes,
        "used_bytes": use.used_bytes,
        "weights_bytes": use.weights_bytes,
        "kv_bytes": use.kv_bytes,
        "state_bytes": use.state_bytes,
        "compute_bytes": use.compute_bytes,
        "margin_bytes": use.device.margin_bytes,
    }


def _word_bytes(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.2f} GiB"
