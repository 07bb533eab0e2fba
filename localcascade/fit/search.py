"""Find the best plan: what is on which device, and how long the context may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from localcascade.fit.memory import ContextOptions
from localcascade.fit.placement import (
    DeviceUse,
    Machine,
    Placement,
    deal_layers,
    measure_placement,
)
from localcascade.fit.proposal import Plan, Wishes
from localcascade.fit.shape import ModelShape
from localcascade.fit.speed import estimate_speed
from localcascade.fit.weighing import Load, weigh_load

_CONTEXT_STEP = 1024


def try_context(shape: ModelShape, machine: Machine, wishes: Wishes, n_ctx: int) -> Plan:
    """Plan a context of a given length; the plan tells whether it fits."""
    options = wishes.make_options(n_ctx)
    load = weigh_load(shape, options, wishes.checkpoint_bytes or 0)
    placement = _search_placement(shape, load, machine, wishes)
    return _make_plan(load, placement, machine, options)


def _make_plan(load: Load, placement: Placement, machine: Machine, options: ContextOptions) -> Plan:
    uses = measure_placement(load, placement, machine)
    return Plan(
        options=options,
        placement=placement,
        uses=uses,
        fits=_find_overflow(uses) is None,
        max_context=0,
        tokens_per_s_estimate=estimate_speed(uses, len(load.layers)),
    )


def _search_placement(shape: ModelShape, load: Load, machine: Machine, wishes: Wishes) -> Placement:
    """Find the first placement whose GPUs are not too full; else the last that there is."""
    found = Placement(0)
    for found in _list_placements(shape, load, machine, wishes):
        overflow = _find_overflow(measure_placement(load, found, machine))
        if overflow is None or overflow == len(machine.gpus):
            break
    return found


def _list_placements(
    shape: ModelShape, load: Load, machine: Machine, wishes: Wishes
) -> Iterator[Placement]:
    """List placements from the fastest to the slowest: experts leave before whole layers do."""
    n_layers = len(shape.geometry.kinds)
    n_gpu_layers = n_layers + 1 if wishes.n_gpu_layers is None else wishes.n_gpu_layers
    n_gpu_layers = n_gpu_layers if machine.gpus else 0
    pinned = shape.expert_layers[: wishes.n_cpu_expert_layers or 0]
    placement = _place(shape, n_gpu_layers, pinned)
    yield placement
    while wishes.n_cpu_expert_layers is None:
        layer = _choose_expert_layer(shape, load, placement, machine)
        if layer is None:
            break
        placement = _place(shape, n_gpu_layers, (*placement.cpu_expert_layers, layer))
        yield placement
    while wishes.n_gpu_layers is None and n_gpu_layers:
        n_gpu_layers -= 1
        yield _place(shape, n_gpu_layers, placement.cpu_expert_layers)


def _place(shape: ModelShape, n_gpu_layers: int, cpu_expert_layers: tuple[int, ...]) -> Placement:
    """Make a placement; layers that are in main memory as a whole need no override."""
    n_kept = len(shape.geometry.kinds) + 1 - n_gpu_layers
    return Placement(n_gpu_layers, tuple(sorted(i for i in cpu_expert_layers if i >= n_kept)))


def _choose_expert_layer(
    shape: ModelShape, load: Load, placement: Placement, machine: Machine
) -> int | None:
    """Choose whose experts leave next: the first layer on the GPU that is too full."""
    overflow = _find_overflow(measure_placement(load, placement, machine))
    homes = deal_layers(len(shape.geometry.kinds), placement.n_gpu_layers, machine.gpus)
    left = (i for i in shape.expert_layers if i not in placement.cpu_expert_layers)
    return next((i for i in left if homes[i] == overflow != len(machine.gpus)), None)


def _find_overflow(uses: tuple[DeviceUse, ...]) -> int | None:
    """Find the first device that is too full; a GPU without memory of its own fills the host's."""
    for i, use in enumerate(uses):
        if use.excess_bytes > 0:
            return i
    shared = [use for use in uses[:-1] if use.device.kind == "igpu"]
    excess = uses[-1].excess_bytes + sum(use.used_bytes for use in shared)
    return len(uses) - 1 if shared and excess > 0 else None


def shrink_context(shape: ModelShape, machine: Machine, wishes: Wishes, below: int) -> Plan | None:
    """Find the largest context under a number of tokens that fits, if any does."""
    n_steps = bisect(
        (below - 1) // _CONTEXT_STEP,
        lambda n: try_context(shape, machine, wishes, n * _CONTEXT_STEP).fits,
    )
    return try_context(shape, machine, wishes, n_steps * _CONTEXT_STEP) if n_steps else None


def find_max_context(shape: ModelShape, machine: Machine, wishes: Wishes, found: Plan) -> int:
    """Find the largest context that fits with the placement of a plan that fits."""

    def fits(n_steps: int) -> bool:
        options = replace(found.options, n_ctx=n_steps * _CONTEXT_STEP)
        load = weigh_load(shape, options, wishes.checkpoint_bytes or 0)
        return _make_plan(load, found.placement, machine, options).fits

    n_steps = bisect(shape.geometry.n_context // _CONTEXT_STEP, fits)
    return max(n_steps * _CONTEXT_STEP, found.options.n_ctx)


def bisect(high: int, fits: Callable[[int], bool]) -> int:
    """Find the largest number from 1 to `high` that fits; 0 if none does."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
