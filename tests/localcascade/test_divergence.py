"""The arithmetic of a comparison, against formulas written out in extended precision."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from localcascade.evaluate import divergence
from localcascade.evaluate.divergence import (
    TokenScores,
    join_scores,
    score_tokens,
    summarize_by_context,
    summarize_scores,
)

SCALES = (0.0, 0.1, 3.0, 40.0)


def make_logits(n_tokens: int, n_vocab: int, scale: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 30, (n_tokens, 1))  # must not matter
    return (scale * rng.standard_normal((n_tokens, n_vocab)) + offset).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """By the textbook, in extended precision."""
    powers = np.exp(logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def make_scores(n_tokens: int, seed: int = 0) -> TokenScores:
    rng = np.random.default_rng(seed)
    return TokenScores(
        kl=rng.exponential(0.1, n_tokens),
        nll=rng.exponential(2.0, n_tokens),
        reference_nll=rng.exponential(2.0, n_tokens),
        same_top=rng.random(n_tokens) < 0.9,
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("noise", [1e-4, 0.3, 5.0])
def test_scores_are_those_of_the_textbook(scale: float, noise: float) -> None:
    n_tokens, n_vocab = 37, 501
    reference = make_logits(n_tokens, n_vocab, scale, seed=1)
    candidate = reference + make_logits(n_tokens, n_vocab, noise, seed=2)
    tokens = np.random.default_rng(3).integers(0, n_vocab, n_tokens)
    scores = score_tokens(candidate, reference, tokens)
    p, q = softmax(reference), softmax(candidate)
    rows = np.arange(n_tokens)
    kl = (p * (np.log(p) - np.log(q))).sum(axis=1).astype(np.float64)
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(scores.nll, -np.log(q[rows, tokens]).astype(float), rtol=1e-12)
    reference_nll = -np.log(p[rows, tokens]).astype(float)
    np.testing.assert_allclose(scores.reference_nll, reference_nll, rtol=1e-12)
    assert scores.same_top.tolist() == (p.argmax(axis=1) == q.argmax(axis=1)).tolist()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, reference = (make_logits(23, 64, 2.0, seed) for seed in (1, 2))
    tokens = np.arange(23)
    whole = score_tokens(candidate, reference, tokens)
    monkeypatch.setattr(divergence, "_BLOCK_ELEMENTS", 5 * 64)
    for name in TokenScores.__slots__:
        part = getattr(score_tokens(candidate, reference, tokens), name)
        assert part.tolist() == getattr(whole, name).tolist()


def test_equal_models_are_at_distance_zero_exactly() -> None:
    logits = make_logits(50, 1000, 7.0, seed=5)
    figures = summarize_scores(score_tokens(logits, logits.copy(), np.arange(50)))
    assert (figures.mean_kl.value, figures.mean_kl.error) == (0, 0)
    assert (figures.median_kl, figures.p99_kl, figures.p999_kl, figures.max_kl) == (0, 0, 0, 0)
    assert (figures.same_top1.value, figures.same_top1.error) == (1, 0)
    assert (figures.perplexity_ratio.value, figures.perplexity_ratio.error) == (1, 0)
    assert figures.perplexity == figures.reference_perplexity


def test_a_shift_of_all_logits_is_no_difference() -> None:
    logits = np.round(make_logits(10, 100, 3.0, seed=6))  # whole numbers shift without rounding
    assert score_tokens(logits + 64, logits, np.arange(10)).kl.tolist() == [0] * 10


def test_the_direction_is_from_reference_to_candidate() -> None:
    uniform, sure = np.zeros((1, 4), np.float32), np.array([[9, 0, 0, 0]], np.float32)
    (kl,) = score_tokens(uniform, sure, np.array([0])).kl
    p = math.exp(9) / (math.exp(9) + 3)
    entropy = -p * math.log(p) - (1 - p) * math.log((1 - p) / 3)
    assert kl == pytest.approx(math.log(4) - entropy, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_stays_visible(bad: float) -> None:
    logits = make_logits(3, 10, 1.0, seed=7)
    ruined = logits.copy()
    ruined[1, 4] = bad
    scores = score_tokens(ruined, logits, np.arange(3))
    assert np.isfinite(scores.nll).tolist() == [True, False, True]
    assert np.isfinite(scores.reference_nll).all()


@pytest.mark.parametrize("n_tokens", [2, 3, 101, 1000])
def test_figures_are_those_of_plain_statistics(n_tokens: int) -> None:
    scores = make_scores(n_tokens)
    figures = summarize_scores(scores)
    kl, nll, reference_nll = (
        values.tolist() for values in (scores.kl, scores.nll, scores.reference_nll)
    )

    def find_error(values: list[float]) -> float:
        return statistics.stdev(values) / math.sqrt(n_tokens)

    def find_percentile(share: float) -> float:
        place = share * (n_tokens - 1)
        low, high = sorted(kl)[math.floor(place)], sorted(kl)[math.ceil(place)]
        return low + (high - low) * (place - math.floor(place))

    assert figures.n_tokens == n_tokens
    assert figures.mean_kl.value == pytest.approx(statistics.fmean(kl))
    assert figures.mean_kl.error == pytest.approx(find_error(kl))
    assert figures.median_kl == pytest.approx(statistics.median(kl))
    assert figures.p99_kl == pytest.approx(find_percentile(0.99))
    assert figures.p999_kl == pytest.approx(find_percentile(0.999))
    assert figures.max_kl == max(kl)
    share = statistics.fmean(scores.same_top.tolist())
    assert figures.same_top1.value == pytest.approx(share)
    assert figures.same_top1.error == pytest.approx(math.sqrt(share * (1 - share) / (n_tokens - 1)))
    perplexity = math.exp(statistics.fmean(nll))
    assert figures.perplexity.value == pytest.approx(perplexity)
    assert figures.perplexity.error == pytest.approx(perplexity * find_error(nll))
    reference_perplexity = math.exp(statistics.fmean(reference_nll))
    assert figures.reference_perplexity.value == pytest.approx(reference_perplexity)
    # llama-perplexity has it from the two variances and their covariance.
    ratio = perplexity / reference_perplexity
    variance = find_error(nll) ** 2 + find_error(reference_nll) ** 2
    variance -= 2 * statistics.covariance(nll, reference_nll) / n_tokens
    assert figures.perplexity_ratio.value == pytest.approx(ratio)
    assert figures.perplexity_ratio.error == pytest.approx(ratio * math.sqrt(variance))


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    scores = make_scores(10)
    ruin = TokenScores(scores.kl, scores.nll + 1000, scores.reference_nll, scores.same_top)
    figures = summarize_scores(ruin)
    assert figures.perplexity.value == figures.perplexity_ratio.value == math.inf
    assert math.isfinite(figures.mean_kl.value)


@pytest.mark.parametrize("n_scored", [3, 4, 15, 255])
def test_buckets_hold_every_token_once_by_its_place(n_scored: int) -> None:
    n_windows = 5
    places = np.tile(np.arange(n_scored, dtype=np.float64), n_windows)
    scores = make_scores(n_windows * n_scored)
    placed = TokenScores(places, scores.nll, scores.reference_nll, scores.same_top)
    buckets = summarize_by_context(placed, n_scored, first_context_tokens=100)
    assert buckets[0].first_context_tokens == 100
    assert buckets[-1].last_context_tokens == 100 + n_scored - 1
    for i, bucket in enumerate(buckets):
        first, last = bucket.first_context_tokens - 100, bucket.last_context_tokens - 100
        assert bucket.figures.n_tokens == n_windows * (last - first + 1)
        assert bucket.figures.mean_kl.value == pytest.approx((first + last) / 2)
        assert bucket.figures.max_kl == last
        if i:
            assert bucket.first_context_tokens == buckets[i - 1].last_context_tokens + 1
    sizes = [bucket.figures.n_tokens for bucket in buckets]
    assert len(sizes) == min(4, n_scored)
    assert max(sizes) - min(sizes) <= n_windows


def test_scores_are_joined_in_their_order() -> None:
    one, other = make_scores(3, 1), make_scores(2, 2)
    joined = join_scores(iter([one, other]))
    for name in TokenScores.__slots__:
        expected = [*getattr(one, name).tolist(), *getattr(other, name).tolist()]
        assert getattr(joined, name).tolist() == expected
