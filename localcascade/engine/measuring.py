"""How fast a model computes, measured as llama-bench does: random tokens, and llama_decode alone.

Source: test_prompt, test_gen and main of tools/llama-bench/llama-bench.cpp.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from localcascade.engine import _llama
from localcascade.engine.model import Model
from localcascade.engine.wire import SpeedTest
from localcascade.errors import ContextFull, NativeError

Clock = Callable[[], float]
"""Tells seconds since some moment."""


def measure_speed(
    model: Model, test: SpeedTest, clock: Clock = time.perf_counter
) -> Iterator[float]:
    """Time a model; its first sequence must be free, and nothing of it is kept.

    Args:
        model: The model.
        test: What to time. One run to warm up comes before.
        clock: What it is timed with.

    Yields:
        Seconds of each repetition, spent within llama_decode.

    Raises:
        ValueError: There is nothing to time, or a count is negative.
        ContextFull: It does not fit the context.
        NativeError: Decoding failed.
    """
    _check_test(model, test)
    draw = random.Random(0)
    tokens = [draw.randrange(model.info.n_vocab) for _ in range(test.depth + test.n_tokens)]
    if model.vocabulary.bos is not None:
        tokens[0] = model.vocabulary.bos
    _prepare(model, tokens[: min(test.n_prompt or 1, model.n_batch)])  # warms up
    state = _prepare(model, tokens[: test.depth])
    read = partial(_time_decoding, model, clock, model.n_batch)
    write = partial(_time_decoding, model, clock, 1)
    for _ in range(test.n_repetitions):
        _llama.clear_memory(model.context)
        if test.depth:
            _llama.write_state(model.context, 0, state)
        end = test.depth + test.n_prompt
        reading_s = read(tokens[test.depth : end], test.depth)
        yield reading_s + write(tokens[end:], end)
    _llama.clear_memory(model.context)


def _check_test(model: Model, test: SpeedTest) -> None:
    if min(test.n_prompt, test.n_gen, test.depth) < 0 or test.n_tokens == 0:
        raise ValueError("a speed test needs a prompt or tokens to generate")
    if test.n_repetitions < 1:
        raise ValueError("a speed test has at least one repetition")
    if test.depth + test.n_tokens > model.info.n_ctx:
        raise ContextFull(test.depth + test.n_tokens, model.info.n_ctx)


def _prepare(model: Model, tokens: Sequence[int]) -> bytes:
    """Read tokens from an empty context, and get the state after them."""
    _llama.clear_memory(model.context)
    _time_decoding(model, time.perf_counter, model.n_batch, tokens, 0)
    return _llama.read_state(model.context, 0) if tokens else b""


def _time_decoding(
    model: Model, clock: Clock, n_step: int, tokens: Sequence[int], start: int
) -> float:
    """Decode tokens, some at a time, and sum up the seconds that llama.cpp needs for it."""
    elapsed_s = 0.0
    for i in range(0, len(tokens), n_step):
        model.batch.clear()
        model.batch.add(0, tokens[i : i + n_step], start + i)
        begun_s = clock()
        if not model.batch.decode(model.context):
            raise NativeError("llama_decode", _llama.NO_ROOM)
        _llama.synchronize(model.context)
        elapsed_s += clock() - begun_s
    return elapsed_s


def read_peak_bytes() -> int:
    """Read the most main memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before this one began
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
