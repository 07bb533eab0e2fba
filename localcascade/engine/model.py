"""A GGUF loaded by llama.cpp, with one context; lives in the worker only."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from localcascade.engine import _llama
from localcascade.engine.collector import Collector
from localcascade.engine.vocabulary import Vocabulary
from localcascade.engine.wire import LoadOptions, ModelInfo
from localcascade.errors import ModelFileError, NativeError

DEFAULT_N_CTX = 8192
N_BATCH = 512
"""Tokens of a micro-batch: progress is told, and cancelling heard, between two of them."""
DEFAULT_N_PARALLEL = 4
"""Sequences. One more costs its recurrent state, 48 MiB for the 30 B model; attention is shared."""

FATAL_BUFFERS = {"AMX"}
"""Layouts whose code may crash: GCC up to 12 drops most of the AMX tile configuration, since its
_tile_loadconfig claims to read 8 of the 64 bytes, and the next instruction faults. A build cannot
be asked which compiler made it, and the layouts can only be switched off together."""


class Log:
    """Passes llama.cpp's messages on to stderr, and keeps the errors among them."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        self._level = _llama.LEVEL_INFO

    def write(self, level: int, text: str) -> None:
        """Take one message; those for llama.cpp's own developers are dropped."""
        self._level = self._level if level == _llama.LEVEL_CONTINUED else level
        if self._level == _llama.LEVEL_DEBUG:
            return
        os.write(2, text.encode("utf-8", "replace"))
        if level == _llama.LEVEL_ERROR:
            self.errors.append(text.strip())


class Model:
    """A loaded model with its vocabulary, its metadata and one context.

    Args:
        path: The GGUF.
        options: How to load it.
        log: Where llama.cpp's messages go.
        on_progress: Called with the share of the weights loaded, 0 to 1.

    Raises:
        ModelFileError: llama.cpp refuses the file; its own words are in the message.
        NativeError: The context could not be created.
    """

    def __init__(
        self, path: Path, options: LoadOptions, log: Log, on_progress: Callable[[float], None]
    ) -> None:
        started_s = time.perf_counter()
        devices = _llama.list_devices()
        self._model = _load(path, options, devices, log, on_progress)
        n_ctx_train = _llama.get_n_ctx_train(self._model)
        self.collector = Collector(path) if options.collects else None
        self.has_recurrent_state = _llama.has_recurrent_state(self._model)
        chosen = choose_context(options, n_ctx_train)
        self.context = _create_context(
            self._model, chosen, self.collector.tap if self.collector else None, log
        )
        self.n_batch, self.batch = chosen.n_batch, _llama.Batch(chosen.n_batch)
        self.metadata = _llama.read_metadata(self._model)
        self.vocabulary = Vocabulary(
            _llama.get_vocab(self._model),
            cut_before_apostrophe=self.metadata.get("localcascade.cut_before_apostrophe") == "true",
        )
        self.info = ModelInfo(
            name=self.metadata.get("general.name") or path.stem,
            n_ctx=_llama.get_n_ctx(self.context),
            n_ctx_train=n_ctx_train,
            n_vocab=self.vocabulary.n_tokens,
            load_s=time.perf_counter() - started_s,
            devices=tuple(f"{device.name} ({device.description})" for device in devices),
            bos=self.vocabulary.bos,
            n_parallel=chosen.n_sequences,
        )


def choose_context(options: LoadOptions, n_ctx_train: int) -> _llama.ContextOptions:
    """Choose what the options leave open about the context.

    Args:
        options: The options. What collects has one sequence: it reads nothing but whole texts.
        n_ctx_train: Context length that the model was trained for, in tokens.

    Returns:
        All of it.
    """
    n_parallel = 1 if options.collects else options.n_parallel or DEFAULT_N_PARALLEL
    return _llama.ContextOptions(
        n_ctx=options.n_ctx or min(n_ctx_train, DEFAULT_N_CTX),
        n_batch=max(options.n_batch or N_BATCH, n_parallel),
        n_threads=options.n_threads or count_threads(),
        n_sequences=n_parallel,
        cache_type=options.cache_type,
        flash_attention=options.flash_attention,
    )


def count_threads() -> int:
    """Count the physical cores that this process may use: more threads make ggml slower."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(physical, len(os.sched_getaffinity(0))))
    return physical


def choose_gpu_layers(wanted: int | None, devices: tuple[_llama.Device, ...]) -> int:
    """Choose how many layers go to the GPU: as wanted, else all if the build knows one.

    Returns:
        A count; -1 is all.
    """
    if wanted is not None:
        return wanted
    return -1 if any(device.kind in ("gpu", "igpu") for device in devices) else 0


def _create_context(
    model: _llama.ModelHandle,
    options: _llama.ContextOptions,
    tap: _llama.Tap | None,
    log: Log,
) -> _llama.ContextHandle:
    log.errors.clear()
    try:
        return _llama.create_context(model, options, tap)
    except NativeError as exc:
        reasons = "; ".join(log.errors)
        hint = f"llama.cpp says: {reasons}" if reasons else exc.hint
        raise NativeError(exc.call, exc.code, hint) from exc


def _load(
    path: Path,
    options: LoadOptions,
    devices: tuple[_llama.Device, ...],
    log: Log,
    on_progress: Callable[[float], None],
) -> _llama.ModelHandle:
    def tell(share: float) -> bool:
        on_progress(share)
        return True

    log.errors.clear()
    try:
        return _llama.load_model(
            path,
            n_gpu_layers=choose_gpu_layers(options.n_gpu_layers, devices),
            use_mmap=options.use_mmap,
            use_mlock=options.use_mlock,
            # What is collected is then the same on every CPU.
            use_extra_buffers=not (
                options.collects or FATAL_BUFFERS & set(_llama.list_extra_buffers())
            ),
            on_progress=tell,
        )
    except NativeError as exc:
        reason = log.errors[0] if log.errors else "no reason was given"
        raise ModelFileError(
            path,
            f"llama.cpp refuses it: {reason}",
            hint="Convert or download the file again; `localcascade inspect` shows what is in it.",
        ) from exc
