"""How a request's sampling, the model file's defaults and ours become one chain. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localcascade.prompt.budget import MOST_TOKENS, check_budget, check_number
from localcascade.prompt.events import ChatRequest, Sampling
from localcascade.prompt.grammar import check_grammar_text

Step = tuple[str, tuple[Any, ...]]
"""A sampler of `_llama.create_sampler` and its arguments."""

DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 0.95
N_SEEDS = 2**32 - 1
"""llama.cpp reads the largest 32-bit seed as "draw one", so it is left out."""
ALL_TOKENS = 2**16
"""Penalties that look at all of an answer look at no more than so many of its last tokens."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Sampling with nothing left open."""

    temperature: float
    """0 is greedy."""
    top_p: float
    """1 is off."""
    top_k: int
    """0 is off."""
    min_p: float
    """0 is off."""
    seed: int
    repeat_penalty: float = 1.0
    """1 is off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_tokens: int = ALL_TOKENS
    logit_bias: tuple[tuple[int, float], ...] = ()


MAX_ANSWERS = 64
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARS = 1000
MOST = 1e9
"""Of biases, penalties and temperatures, which are 32-bit in llama.cpp: sums must not overflow."""
LEAST_TEMPERATURE = 1e-5
"""Below it, logits divided by it overflow, or leave nothing but the likeliest token."""


def check_request(request: ChatRequest) -> None:
    """Refuse a request whose numbers mean nothing; its messages are the template's to judge.

    Raises:
        ValueError: Names the value and what it may be.
    """
    check_sampling(request.sampling)
    if request.thinking_budget is not None:
        check_budget(request.thinking_budget)
    check_number("n", request.n, 1, MAX_ANSWERS, is_whole=True)
    if request.logprobs is not None:
        check_number("logprobs", request.logprobs, 0, MAX_LOGPROBS, is_whole=True)
    for number, tool in enumerate(request.tools):
        if not isinstance(tool, Mapping):
            raise ValueError(f"tools: number {number} is a {type(tool).__name__}, not an object")


def check_sampling(sampling: Sampling) -> None:
    """Refuse values that mean nothing.

    Raises:
        ValueError: Names the value and what it may be.
    """
    wholes: tuple[tuple[str, int | None, int, int], ...] = (
        ("top_k", sampling.top_k, 0, MOST_TOKENS),
        ("seed", sampling.seed, -(2**63), 2**63 - 1),
        ("max_tokens", sampling.max_tokens, 1, MOST_TOKENS),
        ("penalty_tokens", sampling.penalty_tokens, 0, MOST_TOKENS),
    )
    numbers: tuple[tuple[str, float | None, float, float], ...] = (
        ("temperature", sampling.temperature, 0, MOST),
        ("top_p", sampling.top_p, 0, 1),
        ("min_p", sampling.min_p, 0, 1),
        ("repeat_penalty", sampling.repeat_penalty, 1e-3, MOST),
        ("frequency_penalty", sampling.frequency_penalty, -MOST, MOST),
        ("presence_penalty", sampling.presence_penalty, -MOST, MOST),
        *(("logit_bias", bias, -MOST, MOST) for bias in sampling.logit_bias.values()),
    )
    for limits, is_whole in ((wholes, True), (numbers, False)):
        for name, value, least, most in limits:
            if value is not None:
                check_number(name, value, least, most, is_whole=is_whole)
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise ValueError("an answer cannot follow a grammar and a JSON schema at once")
    if sampling.grammar is not None:
        check_grammar_text(sampling.grammar)
    _check_stops(sampling.stop)


def _check_stops(stops: Sequence[str]) -> None:
    if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("stop: it must be a list of texts")
    if not all(stops):
        raise ValueError("stop: an empty text would end every answer at once")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"stop: there are {len(stops)} texts, but may be {MAX_STOPS}")
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARS:
        raise ValueError(f"stop: a text has {longest} characters, but may have {MAX_STOP_CHARS}")


def check_tokens(sampling: Sampling, n_vocab: int) -> None:
    """Refuse a bias for a token that does not exist.

    Raises:
        ValueError: Names the token.
    """
    for token in sampling.logit_bias:
        if type(token) is not int or not 0 <= token < n_vocab:
            raise ValueError(f"logit_bias: token {token} is not among {n_vocab}")


def resolve_sampling(sampling: Sampling, metadata: Mapping[str, str], index: int = 0) -> Resolved:
    """Fill what a request leaves open: from the model file, else from our defaults.

    Args:
        sampling: The request's.
        metadata: The model file's, of which `general.sampling.*` count if they make sense.
        index: Which of the request's answers it is for; each has a seed of its own.

    Returns:
        A complete set; the seed is drawn if the request names none.
    """
    wanted, file = sampling, _read_defaults(metadata)
    seed = random.SystemRandom().randrange(N_SEEDS) if wanted.seed is None else wanted.seed
    return Resolved(
        temperature=_first(wanted.temperature, file.temperature, DEFAULT_TEMPERATURE),
        top_p=_first(wanted.top_p, file.top_p, DEFAULT_TOP_P),
        top_k=int(_first(wanted.top_k, file.top_k, 0)),
        min_p=_first(wanted.min_p, file.min_p, 0.0),
        seed=(seed + index) % N_SEEDS,
        repeat_penalty=_first(wanted.repeat_penalty, 1.0),
        frequency_penalty=wanted.frequency_penalty,
        presence_penalty=wanted.presence_penalty,
        # llama.cpp makes room for all of them at once.
        penalty_tokens=min(int(_first(wanted.penalty_tokens, ALL_TOKENS)), ALL_TOKENS),
        logit_bias=tuple(wanted.logit_bias.items()),
    )


def plan_chain(resolved: Resolved, n_vocab: int) -> tuple[Step, ...]:
    """Order the samplers as llama.cpp's own tools do: biases, filters, temperature, the draw.

    Args:
        resolved: What was asked for.
        n_vocab: Size of the vocabulary.

    Returns:
        The chain.

    Source: common_sampler_init in llama.cpp's common/sampling.cpp.
    """
    penalties = (
        resolved.repeat_penalty, resolved.frequency_penalty, resolved.presence_penalty
    )  # fmt: skip
    is_greedy = resolved.temperature < LEAST_TEMPERATURE
    if is_greedy:
        ending: tuple[Step, ...] = (("greedy", ()),)
    else:
        ending = (("temperature", (resolved.temperature,)), ("draw", (resolved.seed,)))
    filters: tuple[tuple[bool, Step], ...] = (
        (bool(resolved.logit_bias), ("logit_bias", (n_vocab, dict(resolved.logit_bias)))),
        (penalties != (1, 0, 0), ("penalties", (n_vocab, resolved.penalty_tokens, *penalties))),
        (resolved.top_k > 0, ("top_k", (resolved.top_k,))),
        (resolved.top_p < 1, ("top_p", (resolved.top_p,))),
        (resolved.min_p > 0, ("min_p", (resolved.min_p,))),
    )
    # What only takes away the unlikely means nothing where the likeliest is taken anyway.
    kept = filters[:2] if is_greedy else filters
    return (*(step for is_on, step in kept if is_on), *ending)


def _read_defaults(metadata: Mapping[str, str]) -> Sampling:
    """Read `general.sampling.*`; a file whose values make no sense has none."""
    try:
        defaults = Sampling(
            temperature=_read_number(metadata, "temp"),
            top_p=_read_number(metadata, "top_p"),
            top_k=_whole(_read_number(metadata, "top_k")),
            min_p=_read_number(metadata, "min_p"),
        )
        check_sampling(defaults)
    except (ValueError, OverflowError):
        return Sampling()
    return defaults


def _read_number(metadata: Mapping[str, str], key: str) -> float | None:
    text = metadata.get(f"general.sampling.{key}")
    return None if text is None else float(text)


def _whole(number: float | None) -> int | None:
    """Files may carry -1 for "off"."""
    return None if number is None else max(0, int(number))


def _first(*values: float | None) -> float:
    """Take the first value that is one."""
    return next(value for value in values if value is not None)
