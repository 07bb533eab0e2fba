"""Error feedback: what later columns are changed by is the least-squares answer, and it pays."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.encoders import encode_rows
from quantize.feedback import RIDGE, _choose_codes, encode_with_feedback, plan_feedback
from quantize.ggml import decode_rows, type_named

MANY = 10**9


def draw_moments(width: int, decay: float, seed: int = 0) -> np.ndarray:
    """Inputs of which a few directions hold the more, the higher `decay` is; mean square 1."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]
    strengths = np.arange(1.0, width + 1) ** -decay
    moments: np.ndarray = axes * strengths @ axes.T * width / strengths.sum()
    return moments


def draw_weights(n_rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n_rows, width)).astype(np.float32)


def measure_error(
    weights: np.ndarray, encoded: np.ndarray, kind: str, moments: np.ndarray
) -> float:
    """The mean squared error of the results."""
    errors = decode_rows(encoded, type_named(kind), weights.shape[1]) - weights
    return float(np.einsum("ij,jk,ik", errors, moments, errors, optimize=True))


def make_room(weights: np.ndarray, kind: str) -> np.ndarray:
    return np.zeros(len(weights) * type_named(kind).row_bytes(weights.shape[1]), np.uint8)


def test_blocks_are_changed_by_the_least_squares_answer() -> None:
    """Against the textbook's: change = H_RR^-1 H_RB e, and the Schur complement."""
    width, block = 128, type_named("q4_0").block_weights
    moments = draw_moments(width, 1.5)
    importance = np.linspace(0.5, 2, width).astype(np.float32)
    feedback = plan_feedback(moments, MANY, importance, type_named("q4_0"))
    scale = np.sqrt(importance / moments.diagonal())
    blended = moments * np.outer(scale, scale) + RIDGE * importance.mean() * np.eye(width)
    np.testing.assert_allclose(feedback.factor @ feedback.factor.T, blended, atol=1e-5)
    left = draw_weights(4, width).astype(np.float64)
    errors = np.zeros_like(left)
    for first in range(0, width, block):
        own, rest = slice(first, first + block), slice(first + block, width)
        changes = np.linalg.solve(blended[rest, rest], blended[rest, own]).T
        schur = blended[own, own] - blended[own, rest] @ changes.T
        np.testing.assert_allclose(feedback.importance[own], schur.diagonal(), rtol=1e-3)
        pull = errors[:, :first] @ feedback.shares[:first, own]
        wanted = draw_weights(4, width)[:, own] + pull
        np.testing.assert_allclose(wanted, left[:, own], atol=1e-4)
        decoded = np.rint(left[:, own])  # an encoder of whole numbers
        errors[:, own] = draw_weights(4, width)[:, own] - decoded
        left[:, rest] += (left[:, own] - decoded) @ changes


def test_independent_inputs_give_the_bytes_of_the_plain_encoder() -> None:
    weights = draw_weights(24, 256)
    importance = np.ones(256, np.float32)
    # Ggml's encoders look at the magnitude of whole rows, too; ours do not.
    for kind in ("q2_0", "mxfp4"):
        plain, room = make_room(weights, kind), make_room(weights, kind)
        encode_rows(weights, type_named(kind), plain, importance)
        feedback = plan_feedback(np.diag(importance.astype(float)), 9, importance, type_named(kind))
        encode_with_feedback(weights, type_named(kind), room, feedback)
        np.testing.assert_array_equal(room, plain)
        # Nor do inputs that vary together count if there was none of them.
        none = plan_feedback(draw_moments(256, 1), 0, importance, type_named(kind))
        encode_with_feedback(weights, type_named(kind), room, none)
        np.testing.assert_array_equal(room, plain)


@pytest.mark.parametrize("kind", ["q2_0", "q2_k", "iq2_s", "iq3_s", "q4_0"])
def test_errors_shrink_where_inputs_vary_together(kind: str) -> None:
    width = 512
    moments = draw_moments(width, 1)
    importance = moments.diagonal().astype(np.float32)
    weights = draw_weights(16, width)
    plain, room = make_room(weights, kind), make_room(weights, kind)
    encode_rows(weights, type_named(kind), plain, importance)
    feedback = plan_feedback(moments, MANY, importance, type_named(kind))
    encode_with_feedback(weights, type_named(kind), room, feedback)
    ratio = measure_error(weights, room, kind, moments) / measure_error(
        weights, plain, kind, moments
    )
    assert ratio < 0.8


@pytest.mark.parametrize(
    "kind",
    ["q2_k", "q3_k", "q4_k", "q6_k", "iq4_xs", "mxfp4", "q2_0",
     "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"],
)  # fmt: skip
def test_columns_of_one_block_make_up_for_each_other(kind: str) -> None:
    """No other block is there: the codes are chosen one after the other, scales stay."""
    width = type_named(kind).block_weights
    moments = draw_moments(width, 1)
    importance = moments.diagonal().astype(np.float32)
    weights = draw_weights(64, width)
    plain, room = make_room(weights, kind), make_room(weights, kind)
    feedback = plan_feedback(moments, MANY, importance, type_named(kind))
    encode_rows(weights, type_named(kind), plain, feedback.importance)
    encode_with_feedback(weights, type_named(kind), room, feedback)
    factor = feedback.factor

    def cost(data: np.ndarray) -> np.ndarray:
        errors = decode_rows(data, type_named(kind), width) - weights
        costs: np.ndarray = np.square(errors @ factor).sum(axis=1)
        return costs

    assert (cost(room) <= cost(plain) * (1 + 1e-5)).all()
    assert cost(room).sum() < 0.85 * cost(plain).sum()
    before, after = (measure_error(weights, data, kind, moments) for data in (plain, room))
    assert after < 0.85 * before


def test_codes_of_columns_are_the_textbook_s() -> None:
    """GPTQ as it is published, column by column in float64, with the same scales."""
    kind, width = "q4_0", 32
    moments = draw_moments(width, 1)
    importance = moments.diagonal().astype(np.float32)
    weights, room = draw_weights(16, width), make_room(draw_weights(16, width), kind)
    feedback = plan_feedback(moments, MANY, importance, type_named(kind))
    encode_rows(weights, type_named(kind), room, feedback.importance)
    steps = room.reshape(16, 18)[:, :2].copy().view(np.float16).astype(np.float64)[:, 0]
    factor = feedback.factor.astype(np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(factor @ factor.T)).T
    left, expected = weights.astype(np.float64), np.empty((16, width))
    for j in range(width):
        expected[:, j] = np.clip(np.rint(left[:, j] / steps) + 8, 0, 15)
        errors = (left[:, j] - (expected[:, j] - 8) * steps) / upper[j, j]
        left[:, j:] -= errors[:, None] * upper[j, j:]
    found = _choose_codes(weights, type_named(kind), room.reshape(16, 18), feedback.factor)
    assert (found == expected).mean() > 0.99  # float32 may round a tie the other way


@pytest.mark.parametrize("kind", ["q2_0", "q4_0"])
def test_columns_that_hardly_matter_do_not_take_over_the_errors_of_others(kind: str) -> None:
    """A tenth of the columns has inputs a thousand times as large, and all vary together."""
    width = 256
    sizes = np.where(np.arange(width) % 10 == 0, 1.0, 1e-3)
    moments = draw_moments(width, 2) * np.outer(sizes, sizes)
    importance = moments.diagonal().astype(np.float32)
    weights = draw_weights(16, width)
    plain, room = make_room(weights, kind), make_room(weights, kind)
    encode_rows(weights, type_named(kind), plain, importance)
    feedback = plan_feedback(moments, MANY, importance, type_named(kind))
    encode_with_feedback(weights, type_named(kind), room, feedback)
    before, after = (measure_error(weights, data, kind, moments) for data in (plain, room))
    assert after < before
    assert np.abs(decode_rows(room, type_named(kind), width)).max() < 3 * np.abs(weights).max()


def test_inputs_that_never_fired_are_left_alone() -> None:
    moments = draw_moments(128, 1)
    moments[:64], moments[:, :64] = 0, 0
    importance = np.maximum(moments.diagonal(), 1e-6).astype(np.float32)
    feedback = plan_feedback(moments, 100, importance, type_named("q2_0"))
    assert np.isfinite(feedback.importance).all() and (feedback.importance > 0).all()
    np.testing.assert_array_equal(np.triu(feedback.factor[:64], 1), 0)


def test_what_does_not_match_is_refused() -> None:
    moments, importance = np.eye(96), np.ones(96, np.float32)
    with pytest.raises(ValueError, match="blocks of 64"):
        plan_feedback(moments, 1, importance, type_named("q2_0"))
    with pytest.raises(ValueError, match="width 64"):
        plan_feedback(moments, 1, importance[:64], type_named("q2_0"))
    feedback = plan_feedback(moments, 1, importance, type_named("q4_0"))
    with pytest.raises(ValueError, match="feedback of 96 columns"):
        encode_with_feedback(
            draw_weights(2, 64), type_named("q4_0"), np.zeros(72, np.uint8), feedback
        )
