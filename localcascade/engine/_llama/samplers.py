"""Samplers: chains that choose a token from a row of logits, in C."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import ContextHandle, SamplerHandle, VocabHandle

Step = tuple[str, tuple[Any, ...]]
"""Name of a sampler and its arguments."""

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _create_logit_bias(n_vocab: int, biases: Mapping[int, float]) -> Any:
    """Make the sampler that adds to logits; token id -> what is added."""
    array = (lib.llama_logit_bias * len(biases))(*biases.items())
    return lib.llama_sampler_init_logit_bias(n_vocab, len(biases), array)


_SAMPLERS: dict[str, Callable[..., Any]] = {
    "logit_bias": _create_logit_bias,
    "penalties": lib.llama_sampler_init_penalties,
    "greedy": lib.llama_sampler_init_greedy,
    "top_k": lib.llama_sampler_init_top_k,
    "top_p": lambda p: lib.llama_sampler_init_top_p(p, 1),
    "min_p": lambda p: lib.llama_sampler_init_min_p(p, 1),
    "temperature": lib.llama_sampler_init_temp,
    "draw": lib.llama_sampler_init_dist,
}


def create_sampler(steps: Sequence[Step]) -> SamplerHandle:
    """Build a chain of C samplers.

    Args:
        steps: In order, `logit_bias` (n_vocab, {token: bias}), `penalties` (n_vocab, last n
            tokens, repeat, frequency, presence), `top_k`, `top_p`, `min_p`, `temperature`; the
            last one must choose: `greedy` () or `draw` (seed).

    Returns:
        A handle for free_sampler.
    """
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for name, arguments in steps:
        lib.llama_sampler_chain_add(chain, _SAMPLERS[name](*arguments))
    return SamplerHandle(chain)


def create_grammar(vocab: VocabHandle, grammar: str) -> SamplerHandle:
    """Build a sampler that lets through what a grammar allows.

    Args:
        vocab: The vocabulary.
        grammar: GBNF, whose start is `root`.

    Returns:
        A handle for free_sampler.

    Raises:
        ValueError: llama.cpp does not understand the grammar; why is in its log.
    """
    handle = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    if not handle:
        raise ValueError("grammar: it is not GBNF that llama.cpp understands, with a rule `root`")
    return SamplerHandle(handle)


def free_sampler(sampler: SamplerHandle) -> None:
    """Free a chain and its samplers, or a grammar."""
    lib.llama_sampler_free(sampler)


def sample(sampler: SamplerHandle, context: ContextHandle, row: int) -> int:
    """Choose a token, and tell the chain.

    Args:
        sampler: The chain.
        context: The context.
        row: Place in the last batch of the token whose successor is wanted.

    Returns:
        The token's id.
    """
    return int(lib.llama_sampler_sample(sampler, context, row))


def accept(sampler: SamplerHandle, token: int) -> None:
    """Tell a chain or a grammar of a token that something else chose."""
    lib.llama_sampler_accept(sampler, token)


def choose(sampler: SamplerHandle, grammar: SamplerHandle, logits: npt.NDArray[np.float32]) -> int:
    """Choose a token that a grammar allows, and tell both.

    A grammar looks at every candidate it is shown, so first it is shown only the one that the
    chain would choose without it; most often that will do.

    Args:
        sampler: The chain.
        grammar: The grammar.
        logits: float32 [n_vocab].

    Returns:
        The token's id.

    Raises:
        ValueError: The grammar allows none here. llama.cpp would choose one all the same, and
            abort the process when the grammar is told.
    """
    token = _select(sampler, _make_candidates(logits))
    if not allows(grammar, token):
        candidates = _make_candidates(logits)
        _apply(grammar, candidates)
        is_allowed = ~np.isneginf(candidates["logit"])  # by id: the chain changes the order
        if not is_allowed.any():
            raise ValueError(
                "grammar: no token of this model can follow what the answer has so far"
            )
        token = _select(sampler, candidates)
        if not is_allowed[token]:  # rounding, or values that are no numbers
            token = int(np.where(is_allowed, logits, -np.inf).argmax())
    accept(sampler, token)
    accept(grammar, token)
    return token


def _make_candidates(logits: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    candidates = np.zeros(len(logits), _CANDIDATE)
    candidates["id"] = np.arange(len(logits))
    candidates["logit"] = logits
    return candidates


def allows(grammar: SamplerHandle, token: int) -> bool:
    """Tell whether a grammar lets a token through as the next one."""
    candidate = np.zeros(1, _CANDIDATE)
    candidate["id"] = token
    _apply(grammar, candidate)
    return bool(np.isfinite(candidate["logit"][0]))


def _select(sampler: SamplerHandle, candidates: npt.NDArray[Any]) -> int:
    array = _apply(sampler, candidates)
    return int(array.data[array.selected].id)


def _apply(sampler: SamplerHandle, candidates: npt.NDArray[Any]) -> Any:
    data = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    array = lib.llama_token_data_array(data, len(candidates), -1, False)
    lib.llama_sampler_apply(sampler, ctypes.byref(array))
    return array
