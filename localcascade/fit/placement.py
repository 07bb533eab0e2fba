"""Where the parts of a model lie: which layers on which device, which experts in main memory.

Source: llama_model_base::load_tensors in src/llama-model.cpp (layers are dealt out in order, by
the devices' shares; token embeddings stay in main memory) and ggml_backend_sched_split_graph in
ggml/src/ggml-backend.cpp of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from localcascade.fit.memory import DEVICE_MARGIN_BYTES, MARGIN_BYTES
from localcascade.fit.weighing import LayerLoad, Load

DeviceKind = Literal["cpu", "gpu", "igpu"]
_PIPELINE_COPIES = 4
"""Copies of a graph's inputs that llama.cpp keeps where several GPUs work in turn."""


@dataclass(frozen=True, slots=True)
class Device:
    """Something that computes, with memory of its own or the machine's."""

    name: str
    kind: DeviceKind
    """cpu is the machine's main memory; igpu is a GPU that shares it."""
    total_bytes: int
    free_bytes: int
    description: str = ""
    """What its maker calls it."""

    @property
    def margin_bytes(self) -> int:
        """What must stay free of it."""
        return MARGIN_BYTES if self.kind == "cpu" else DEVICE_MARGIN_BYTES

    @property
    def usable_bytes(self) -> int:
        """What a model may take of it."""
        return max(0, self.free_bytes - self.margin_bytes)


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices that a model may be spread over."""

    gpus: tuple[Device, ...]
    """In llama.cpp's order."""
    host: Device
    """The main memory."""

    @property
    def idle(self) -> Machine:
        """The same machine if nobody used it."""
        cards = (replace(gpu, free_bytes=gpu.total_bytes) for gpu in self.gpus)
        return Machine(tuple(cards), replace(self.host, free_bytes=self.host.total_bytes))


@dataclass(frozen=True, slots=True)
class Placement:
    """What is put where."""

    n_gpu_layers: int
    """Layers on GPUs, counted from the last, the output being one; as llama.cpp counts them."""
    cpu_expert_layers: tuple[int, ...] = ()
    """Layers on GPUs whose experts stay in main memory all the same."""

    @property
    def tensor_overrides(self) -> tuple[str, ...]:
        """Patterns of tensors to keep in main memory, as llama.cpp's tensor overrides take them."""
        if not self.cpu_expert_layers:
            return ()
        layers = "|".join(map(str, self.cpu_expert_layers))
        return (rf"blk\.({layers})\.ffn_(up|down)_exps\.weight",)


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one device would hold, in bytes."""

    device: Device
    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    """Intermediate results; in main memory the logits too."""
    checkpoint_bytes: int
    """Saved states of conversations."""
    read_bytes: int
    """What the computation of one token reads of it."""

    @property
    def used_bytes(self) -> int:
        """All that it holds."""
        return (
            self.weights_bytes
            + self.kv_bytes
            + self.state_bytes
            + self.compute_bytes
            + self.checkpoint_bytes
        )

    @property
    def excess_bytes(self) -> int:
        """Bytes that are too many; negative while there is room.

        A GPU that holds nothing is left out, driver and all, see Plan.cards.
        """
        if self.used_bytes == 0:
            return -self.device.free_bytes
        return self.used_bytes + self.device.margin_bytes - self.device.free_bytes


def deal_layers(n_layers: int, n_gpu_layers: int, gpus: Sequence[Device]) -> list[int]:
    """Deal layers to devices as llama.cpp does: in order, by the GPUs' shares of what is usable.

    Args:
        n_layers: Of the model.
        n_gpu_layers: How many of them, the output counted, go to GPUs.
        gpus: The GPUs, in llama.cpp's order.

    Returns:
        For each layer, and last for the output, the index of its GPU, or len(gpus) for main
        memory.
    """
    n_dealt = min(n_gpu_layers, n_layers + 1) if gpus else 0
    total = sum(gpu.usable_bytes for gpu in gpus) or 1
    ends = [end / total for end in accumulate(gpu.usable_bytes for gpu in gpus)]
    dealt = [min(bisect_right(ends, i / n_dealt), len(gpus) - 1) for i in range(n_dealt)]
    return [len(gpus)] * (n_layers + 1 - n_dealt) + dealt


def measure_placement(load: Load, placement: Placement, machine: Machine) -> tuple[DeviceUse, ...]:
    """Add up what each device would hold.

    Args:
        load: The model and its context.
        placement: What is put where.
        machine: The devices.

    Returns:
        One entry for each GPU, and last that of main memory.
    """
    host = len(machine.gpus)
    homes = deal_layers(len(load.layers) - 1, placement.n_gpu_layers, machine.gpus)
    held = [_Held() for _ in range(host + 1)]
    held[host].weights_bytes += load.embedding_bytes
    for layer, (home, part) in enumerate(zip(homes, load.layers, strict=True)):
        held[home].add_layer(part)
        home_of_experts = host if layer in placement.cpu_expert_layers else home
        held[home_of_experts].add_experts(part)
        if home != host:
            held[home].weights_bytes += part.tied_bytes
    for i, buffer_bytes in enumerate(_measure_buffers(load, placement, homes, host)):
        held[i].compute_bytes = buffer_bytes
    held[host].checkpoint_bytes = load.checkpoint_bytes
    devices = (*machine.gpus, machine.host)
    return tuple(item.freeze(device) for item, device in zip(held, devices, strict=True))


@dataclass(slots=True)
class _Held:
    """Sums of one device while they grow."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    state_bytes: int = 0
    compute_bytes: int = 0
    checkpoint_bytes: int = 0
    read_bytes: int = 0

    def add_layer(self, part: LayerLoad) -> None:
        self.weights_bytes += part.plain_bytes
        self.kv_bytes += part.kv_bytes
        self.state_bytes += part.state_bytes
        self.read_bytes += part.read_bytes

    def add_experts(self, part: LayerLoad) -> None:
        self.weights_bytes += part.expert_bytes
        self.read_bytes += part.expert_read_bytes

    def freeze(self, device: Device) -> DeviceUse:
        return DeviceUse(
            device, self.weights_bytes, self.kv_bytes, self.state_bytes, self.compute_bytes,
            self.checkpoint_bytes, self.read_bytes,
        )  # fmt: skip


def _measure_buffers(
    load: Load, placement: Placement, homes: Sequence[int], host: int
) -> list[int]:
    """Measure compute buffers. Those of GPUs are upper bounds, read in the source, not measured."""
    n_busy = len(set(homes) - {host})
    copies_bytes = 0
    if n_busy > 1 and host not in homes and not placement.cpu_expert_layers:
        copies_bytes = (_PIPELINE_COPIES - 1) * load.inputs_bytes
    gpu_bytes = load.compute_bytes + _measure_visits(load, placement, homes, host) + copies_bytes
    host_bytes = load.compute_bytes if host in homes else load.inputs_bytes
    gpus = [gpu_bytes if i in homes else 0 for i in range(host)]
    return [*gpus, host_bytes + load.logits_bytes]


def _measure_visits(load: Load, placement: Placement, homes: Sequence[int], host: int) -> int:
    """Measure the room for weights of main memory that a GPU borrows for prompts, one at a time.

    ggml sends large batches to the GPU even where the weights are not, and these after them.
    """
    sizes = [
        part.largest_bytes if home == host else part.largest_expert_bytes
        for layer, (home, part) in enumerate(zip(homes, load.layers, strict=True))
        if home == host or layer in placement.cpu_expert_layers
    ]
    return max(sizes, default=0)
