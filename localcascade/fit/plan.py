"""The plan of a model on a machine, and what would fit if it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from localcascade.fit.memory import KV_TYPES, KVType, list_cache_types
from localcascade.fit.placement import Machine
from localcascade.fit.proposal import CHECKPOINT_BUDGETS_BYTES, Plan, Wishes
from localcascade.fit.search import bisect, find_max_context, shrink_context, try_context
from localcascade.fit.shape import ModelShape, Weight

DEFAULT_N_CTX = 32768
Change = tuple[str, Wishes]
"""What is changed, in words, and the wishes that come of it."""

_MAX_ALTERNATIVES = 3
_MIN_BITS = 2.0
"""A weight; below this a smaller quantization is no advice: there is no type to make it of."""


def plan(shape: ModelShape, machine: Machine, wishes: Wishes | None = None) -> Plan:
    """Plan where a model goes: on GPUs what fits there, experts to main memory first.

    Args:
        shape: The model.
        machine: Its devices; free_bytes of each is what may be used.
        wishes: What is wanted; what is given there is kept, whatever comes of it.

    Returns:
        The plan; where `fits` is False, it shows what was asked for, with alternatives.

    Raises:
        ValueError: A wish makes no sense for this model.
    """
    wishes = wishes or Wishes()
    _check_wishes(shape, wishes)
    n_ctx = wishes.n_ctx or min(shape.geometry.n_context, DEFAULT_N_CTX)
    budgets: Sequence[int] = CHECKPOINT_BUDGETS_BYTES
    if wishes.checkpoint_bytes is not None:
        budgets = (wishes.checkpoint_bytes,)
    settled = [replace(wishes, checkpoint_bytes=n_bytes) for n_bytes in budgets]
    for one, found in _list_plans(shape, machine, settled, n_ctx):
        if found.fits:
            return replace(found, max_context=find_max_context(shape, machine, one, found))
    refused = try_context(shape, machine, settled[-1], n_ctx)
    nearest = islice(_find_alternatives(shape, machine, settled[-1], n_ctx), _MAX_ALTERNATIVES)
    return replace(refused, alternatives=tuple(nearest))


def _list_plans(
    shape: ModelShape, machine: Machine, settled: Sequence[Wishes], n_ctx: int
) -> Iterator[tuple[Wishes, Plan]]:
    """List plans for wishes that differ in what saved states may take, the best first."""
    for one in settled:
        yield one, try_context(shape, machine, one, n_ctx)
    for one in settled:
        if one.n_ctx is None and (shorter := shrink_context(shape, machine, one, n_ctx)):
            yield one, shorter


def _check_wishes(shape: ModelShape, wishes: Wishes) -> None:
    n_experts, n_layers = len(shape.expert_layers), len(shape.geometry.kinds)
    if not 0 <= (wishes.n_cpu_expert_layers or 0) <= n_experts:
        raise ValueError(f"{n_experts} layers have experts, so no more can go to main memory")
    if not 0 <= (wishes.n_gpu_layers or 0) <= n_layers + 1:
        raise ValueError(f"there are {n_layers} layers and the output to put on a GPU")
    if wishes.n_parallel < 1 or (wishes.n_ctx or 1) < 1:
        raise ValueError("a context has at least one token and one sequence")


def _find_alternatives(
    shape: ModelShape, machine: Machine, wishes: Wishes, n_ctx: int
) -> Iterator[Plan]:
    """Find plans that fit, from the smallest change to the largest."""
    for changes in (_list_cheaper_caches(shape, wishes), _list_moves(wishes)):
        for change, changed in changes:
            found = try_context(shape, machine, changed, n_ctx)
            if found.fits:
                yield replace(found, change=change)
                break
    for change, changed in (("", wishes), *_list_cheapest_cache(shape, wishes)):
        shorter = shrink_context(shape, machine, changed, n_ctx)
        if shorter:
            tokens = shorter.options.n_ctx
            yield replace(shorter, change=f"{change}a context of {tokens} tokens (--ctx {tokens})")
            break
    for change, changed in _list_file_changes(shape, machine, wishes):
        smaller = _shrink_file(shape, machine, changed, n_ctx)
        if smaller:
            yield replace(smaller, change=f"{smaller.change}{change}")


def _list_cheaper_caches(shape: ModelShape, wishes: Wishes) -> Iterator[Change]:
    for kv_type in _list_cheaper_types(shape, wishes):
        yield f"a {kv_type} cache (--kv {kv_type})", replace(wishes, kv_type=kv_type)


def _list_cheapest_cache(shape: ModelShape, wishes: Wishes) -> Iterator[Change]:
    for kv_type in _list_cheaper_types(shape, wishes)[-1:]:
        yield f"a {kv_type} cache and ", replace(wishes, kv_type=kv_type)


def _list_cheaper_types(shape: ModelShape, wishes: Wishes) -> list[KVType]:
    dearer = KV_TYPES.index(wishes.kv_type) if wishes.kv_type in KV_TYPES else len(KV_TYPES)
    return [t for t in list_cache_types(shape) if t in KV_TYPES[dearer + 1 :]]


def _list_moves(wishes: Wishes) -> Iterator[Change]:
    """List changes that cost no quality and leave the context as it is."""
    free = replace(wishes, n_cpu_expert_layers=None, n_gpu_layers=None)
    if free != wishes:
        yield "more layers in main memory", free
    if wishes.checkpoint_bytes:
        yield "no saved conversation states", replace(wishes, checkpoint_bytes=0)
    if wishes.n_parallel > 1:
        yield "one conversation at a time (--parallel 1)", replace(wishes, n_parallel=1)


def _list_file_changes(shape: ModelShape, machine: Machine, wishes: Wishes) -> Iterator[Change]:
    """List under what other changes a smaller file is looked for."""
    yield "", wishes
    if wishes.checkpoint_bytes:
        yield " and no saved conversation states", replace(wishes, checkpoint_bytes=0)
    if machine.gpus:
        n_layers = len(shape.geometry.kinds) + 1
        alone = replace(wishes, n_gpu_layers=n_layers, n_cpu_expert_layers=0)
        yield ", wholly on the GPU", alone


def _shrink_file(shape: ModelShape, machine: Machine, wishes: Wishes, n_ctx: int) -> Plan | None:
    """Find how small the weights must become, in hundredths of what they are."""
    percent = bisect(
        99, lambda n: try_context(_scale_weights(shape, n), machine, wishes, n_ctx).fits
    )
    smaller = _scale_weights(shape, percent)
    if smaller.bits_per_weight < _MIN_BITS:
        return None
    size, bits = smaller.weights_bytes / (1 << 30), smaller.bits_per_weight
    found = try_context(smaller, machine, wishes, n_ctx)
    return replace(found, change=f"a file of {size:.1f} GiB, {bits:.2f} bits a weight")


def _scale_weights(shape: ModelShape, percent: int) -> ModelShape:
    weights = (Weight(w.name, w.n_bytes * percent // 100, w.n_weights) for w in shape.weights)
    return replace(shape, weights=tuple(weights))
