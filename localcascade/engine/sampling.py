"""How a request's sampling, the model file's defaults and ours become one chain. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from localcascade.prompt.events import Sampling

Step = tuple[str, tuple[float, ...]]
"""A sampler of `_llama.create_sampler` and its arguments."""

DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 0.95
N_SEEDS = 2**32 - 1
"""llama.cpp reads the largest 32-bit seed as "draw one", so it is left out."""


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


def check_sampling(sampling: Sampling) -> None:
    """Refuse values that mean nothing.

    Raises:
        ValueError: Names the value and what it may be.
    """
    limits: tuple[tuple[str, float | None, float, float], ...] = (
        ("temperature", sampling.temperature, 0, math.inf),
        ("top_p", sampling.top_p, 0, 1),
        ("top_k", sampling.top_k, 0, 2**31 - 1),
        ("min_p", sampling.min_p, 0, 1),
        ("max_tokens", sampling.max_tokens, 1, math.inf),
    )
    for name, value, least, most in limits:
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            span = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            raise ValueError(f"{name} is {value}, but must be {span}")


def resolve_sampling(sampling: Sampling, metadata: Mapping[str, str]) -> Resolved:
    """Fill what a request leaves open: from the model file, else from our defaults.

    Args:
        sampling: The request's.
        metadata: The model file's, of which `general.sampling.*` count if they make sense.

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
        seed=seed % N_SEEDS,
    )


def plan_chain(resolved: Resolved) -> tuple[Step, ...]:
    """Order the samplers as llama.cpp's own tools do: filters, temperature, the draw.

    Source: common_params_sampling in llama.cpp's common/common.h.
    """
    if resolved.temperature == 0:
        return (("greedy", ()),)
    filters = (
        ("top_k", resolved.top_k, resolved.top_k > 0),
        ("top_p", resolved.top_p, resolved.top_p < 1),
        ("min_p", resolved.min_p, resolved.min_p > 0),
    )
    used: tuple[Step, ...] = tuple((name, (value,)) for name, value, on in filters if on)
    return (*used, ("temperature", (resolved.temperature,)), ("draw", (resolved.seed,)))


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
