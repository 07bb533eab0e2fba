"""The memory plan of a model that is about to be loaded: what does not fit is refused before.

It is made in the worker, which sees the devices as llama.cpp does, at the moment that counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from localcascade.engine import _llama
from localcascade.engine.backends import make_machine
from localcascade.engine.wire import LoadOptions
from localcascade.errors import ModelFileError, OutOfBudget
from localcascade.fit import (
    ModelShape,
    Plan,
    Wishes,
    check_fit,
    plan,
    read_file_shape,
)
from localcascade.hardware import list_hoarders, read_memory
from localcascade.store import list_parts
from quantize.errors import QuantizeError
from quantize.gguf import open_gguf

N_BATCH = 512
"""Tokens of a micro-batch: progress is told, and cancelling heard, between two of them."""
DEFAULT_N_PARALLEL = 1
"""Sequences. One more costs its recurrent state, 48 MiB for the 30 B model, and one person asks
one thing at a time; who wants more says so."""


def plan_load(path: Path, options: LoadOptions, devices: Iterable[_llama.Device]) -> Plan | None:
    """Plan where a model and its context go on this machine.

    Args:
        path: The model file.
        options: What is wanted of it.
        devices: What llama.cpp computes on.

    Returns:
        The plan, which fits; None for an architecture that cannot be planned, which llama.cpp
        may know all the same.

    Raises:
        OutOfBudget: It does not fit; tells what would, and who holds the memory if that is why.
        ValueError: The options make no sense for this model.
    """
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(open_gguf(part)) for part in list_parts(path)]
            shape = read_file_shape(*files)
    except (ModelFileError, QuantizeError):
        return None
    machine = make_machine(devices, read_memory())
    try:
        return check_fit(plan(shape, machine, make_wishes(shape, options)))
    except OutOfBudget as refused:
        if plan(shape, machine.idle, make_wishes(shape, options)).fits:
            refused.hint += name_hoarders()
        raise


def name_hoarders() -> str:
    """Say which programs are in the way of a model that would fit if nobody held any memory."""
    held = "; ".join(holder.describe() for holder in list_hoarders())
    return f" It would fit if other programs held no memory{': ' if held else ''}{held}."


def make_wishes(shape: ModelShape, options: LoadOptions) -> Wishes:
    """Say load options in the words of the plan.

    Args:
        shape: The model.
        options: What is wanted of it.
    """
    n_layers, n_gpu_layers = len(shape.geometry.kinds) + 1, options.n_gpu_layers
    if n_gpu_layers is not None:
        n_gpu_layers = n_layers if n_gpu_layers < 0 else min(n_gpu_layers, n_layers)
    n_parallel = count_sequences(options)
    return Wishes(
        n_ctx=options.n_ctx,
        kv_type=options.cache_type,
        n_parallel=n_parallel,
        n_cpu_expert_layers=options.n_cpu_expert_layers,
        n_gpu_layers=n_gpu_layers,
        n_ubatch=count_batch(options),
        n_outputs=count_outputs(options),
        flash_attention=options.flash_attention is not False,
        checkpoint_bytes=options.checkpoint_bytes,
    )


def count_sequences(options: LoadOptions) -> int:
    """Count the sequences of the context; what collects reads nothing but whole texts, in one."""
    return 1 if options.collects else options.n_parallel or DEFAULT_N_PARALLEL


def count_batch(options: LoadOptions) -> int:
    """Count the tokens of a micro-batch: at least one for each sequence."""
    return max(options.n_batch or N_BATCH, count_sequences(options))


def count_outputs(options: LoadOptions) -> int:
    """Count the tokens of a micro-batch that may have logits; 0 is all."""
    if options.collects or options.n_outputs is None:
        return 0
    return min(count_batch(options), max(options.n_outputs, count_sequences(options)))
