"""A GGUF loaded by llama.cpp, with one context; lives in the worker only."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from localcascade.engine import _llama
from localcascade.engine.collector import Collector
from localcascade.engine.patience import Patience
from localcascade.engine.planning import (
    count_batch,
    count_outputs,
    count_sequences,
    plan_load,
)
from localcascade.engine.vocabulary import Vocabulary
from localcascade.engine.wire import LoadOptions, ModelInfo
from localcascade.errors import ModelFileError, NativeError
from localcascade.fit import CHECKPOINT_BUDGETS_BYTES, DEFAULT_N_CTX, Plan
from localcascade.hardware import count_usable_cores

LEAST_TOKENS = 32
"""What is read again in no time is worth no checkpoint: one of the 30 B model takes 48 MiB, and
cutting a prompt there takes a micro-batch more."""

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
        OutOfBudget: It does not fit the memory.
        NativeError: The context could not be created.
        ValueError: The options make no sense for this model.
    """

    def __init__(
        self, path: Path, options: LoadOptions, log: Log, on_progress: Callable[[float], None]
    ) -> None:
        started_s = time.perf_counter()
        devices = _llama.list_devices()
        planned = plan_load(path, options, devices)
        self._model = _load(path, options, planned, log, on_progress)
        n_ctx_train = _llama.get_n_ctx_train(self._model)
        self.collector = Collector(path) if options.collects else None
        self.has_recurrent_state = _llama.has_recurrent_state(self._model)
        chosen = choose_context(options, planned, n_ctx_train)
        self.context = _create_context(
            self._model, chosen, self.collector.tap if self.collector else None, log
        )
        self.n_batch = _llama.get_n_batch(self.context)
        self.batch = _llama.Batch(self.n_batch)
        self.n_outputs = min(chosen.n_outputs or self.n_batch, self.n_batch)
        self.checkpoint_bytes = choose_checkpoint_bytes(options, planned)
        self.patience = Patience("the grammar of an answer")
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


def choose_context(
    options: LoadOptions, planned: Plan | None, n_ctx_train: int
) -> _llama.ContextOptions:
    """Choose what the options leave open about the context.

    Args:
        options: The options.
        planned: The memory plan, if there is one.
        n_ctx_train: Context length that the model was trained for, in tokens.

    Returns:
        All of it.
    """
    fitting = planned.options.n_ctx if planned else min(n_ctx_train, DEFAULT_N_CTX)
    n_sequences = count_sequences(options)
    return _llama.ContextOptions(
        # A micro-batch is no longer than that, and has a token of each sequence.
        n_ctx=max(options.n_ctx or fitting, n_sequences),
        n_batch=count_batch(options),
        n_threads=options.n_threads or count_usable_cores(),
        n_sequences=n_sequences,
        cache_type=options.cache_type,
        flash_attention=options.flash_attention,
        n_outputs=count_outputs(options),
    )


def choose_checkpoint_bytes(options: LoadOptions, planned: Plan | None) -> int:
    """Choose how much main memory saved states may take: as wanted, else as planned."""
    if options.checkpoint_bytes is not None:
        return options.checkpoint_bytes
    return planned.uses[-1].checkpoint_bytes if planned else CHECKPOINT_BUDGETS_BYTES[0]


def choose_gpu_layers(options: LoadOptions, planned: Plan | None) -> int:
    """Choose how many layers go to GPUs: as planned, else as wanted, else all that there are.

    Returns:
        A count; -1 is all.
    """
    if planned is not None:
        return planned.placement.n_gpu_layers
    return -1 if options.n_gpu_layers is None else options.n_gpu_layers


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
    planned: Plan | None,
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
            n_gpu_layers=choose_gpu_layers(options, planned),
            cpu_tensors=planned.placement.tensor_overrides if planned else (),
            gpus=[card.name for card in planned.cards] if planned else None,
            gpu_shares=planned.gpu_shares if planned else (),
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
