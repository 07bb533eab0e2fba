"""How far one model's predictions are from another's; pure arithmetic on logits.

The reference's distribution is p, the candidate's is q, and KL is the sum of p ln(p / q) over the
vocabulary: the nats a token that coding with q instead of p costs. It is computed in float64 from
raw float32 logits, so two equal models have exactly 0.
Source: process_logits and kl_divergence in tools/perplexity/perplexity.cpp of llama.cpp, which keep
the reference in 16 bits; the standard errors are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]

N_BUCKETS = 4
_BLOCK_ELEMENTS = 1 << 18
"""Logits that are widened to float64 at a time: 2 MiB, which stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What two models make of the same tokens; arrays [n_tokens]."""

    kl: Floats
    """Divergence of the candidate from the reference before each token, in nats."""
    nll: Floats
    """Negative log-likelihood of each token under the candidate, in nats."""
    reference_nll: Floats
    """The same under the reference."""
    same_top: npt.NDArray[np.bool_]
    """Both find the same token the likeliest."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or what is computed of one, with its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What is said of a row of tokens; divergences in nats."""

    n_tokens: int
    mean_kl: Estimate
    median_kl: float
    p99_kl: float
    p999_kl: float
    max_kl: float
    same_top1: Estimate
    """A share, 0 to 1."""
    perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_ratio: Estimate
    """The candidate's over the reference's."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The figures of the tokens before which the models had read about as much."""

    first_context_tokens: int
    last_context_tokens: int
    """How many tokens they had read: from, and to."""
    figures: Figures


def score_tokens(
    candidate: Logits, reference: Logits, tokens: npt.NDArray[np.integer]
) -> TokenScores:
    """Compare what two models expected with what came.

    Args:
        candidate: float32 [n_tokens, n_vocab], raw logits.
        reference: float32 [n_tokens, n_vocab].
        tokens: integers [n_tokens], the token that came after each row.

    Returns:
        Scores of each token; not finite where the logits are not.
    """
    n_rows = max(1, _BLOCK_ELEMENTS // candidate.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):
        return join_scores(
            _score_block(candidate[rows], reference[rows], tokens[rows])
            for rows in (slice(i, i + n_rows) for i in range(0, len(tokens), n_rows))
        )


def _score_block(
    candidate: Logits, reference: Logits, tokens: npt.NDArray[np.integer]
) -> TokenScores:
    log_q, _, log_sum_q = _normalize(candidate)
    log_p, weights, log_sum_p = _normalize(reference)
    n_tokens = np.arange(len(tokens))
    # With ln p = log_p - log_sum_p, and likewise q, so that the sum runs over small differences.
    mean_difference = np.einsum("ij,ij->i", weights, log_p - log_q) / weights.sum(axis=1)
    kl = mean_difference - log_sum_p + log_sum_q
    return TokenScores(
        kl=np.maximum(kl, 0),  # it is never negative but by rounding
        nll=log_sum_q - log_q[n_tokens, tokens],
        reference_nll=log_sum_p - log_p[n_tokens, tokens],
        same_top=candidate.argmax(axis=1) == reference.argmax(axis=1),
    )


def _normalize(logits: Logits) -> tuple[Floats, Floats, Floats]:
    """Shift logits so that the largest is 0; with their exponentials, and the log of those' sum."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    return shifted, weights, np.log(weights.sum(axis=1))


def join_scores(parts: Iterable[TokenScores]) -> TokenScores:
    """Put scores one after the other; at least one part."""
    listed = list(parts)
    return TokenScores(
        kl=np.concatenate([part.kl for part in listed]),
        nll=np.concatenate([part.nll for part in listed]),
        reference_nll=np.concatenate([part.reference_nll for part in listed]),
        same_top=np.concatenate([part.same_top for part in listed]),
    )


def summarize_scores(scores: TokenScores) -> Figures:
    """Compute means, percentiles and standard errors.

    Args:
        scores: Of two tokens or more.

    Returns:
        The figures. A perplexity is the exponential of a mean, and infinite if that is too
        large; percentiles are interpolated between the two nearest values.
    """
    median, p99, p999 = np.percentile(scores.kl, (50, 99, 99.9))
    return Figures(
        n_tokens=len(scores.kl),
        mean_kl=_average(scores.kl),
        median_kl=float(median),
        p99_kl=float(p99),
        p999_kl=float(p999),
        max_kl=float(scores.kl.max()),
        same_top1=_average(scores.same_top.astype(np.float64)),
        perplexity=_exponentiate(_average(scores.nll)),
        reference_perplexity=_exponentiate(_average(scores.reference_nll)),
        # The error of the mean difference counts that both models stumble at the same tokens.
        perplexity_ratio=_exponentiate(_average(scores.nll - scores.reference_nll)),
    )


def summarize_by_context(
    scores: TokenScores, n_scored: int, first_context_tokens: int
) -> tuple[Bucket, ...]:
    """Compute the figures of early and late tokens of a window apart.

    Args:
        scores: Of whole windows, one after the other; two or more.
        n_scored: Tokens of a window that are scored.
        first_context_tokens: How many tokens come before the first of these.

    Returns:
        Up to N_BUCKETS buckets, each of about as many tokens.
    """
    n_buckets = min(N_BUCKETS, n_scored)
    edges = [i * n_scored // n_buckets for i in range(n_buckets + 1)]
    places = np.arange(len(scores.kl)) % n_scored
    buckets = []
    for start, end in pairwise(edges):
        chosen = (places >= start) & (places < end)
        part = TokenScores(
            kl=scores.kl[chosen],
            nll=scores.nll[chosen],
            reference_nll=scores.reference_nll[chosen],
            same_top=scores.same_top[chosen],
        )
        first, last = first_context_tokens + start, first_context_tokens + end - 1
        buckets.append(Bucket(first, last, summarize_scores(part)))
    return tuple(buckets)


def _average(values: Floats) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))


def _exponentiate(mean: Estimate) -> Estimate:
    try:
        value = math.exp(mean.value)
    except OverflowError:
        value = math.inf
    return Estimate(value, value * mean.error)
