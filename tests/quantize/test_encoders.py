"""Our encoders against ggml's, against exhaustive search, and at the edges of float32.

What was encoded is always decoded by ggml, and errors are summed in float64.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize import ggml
from quantize.encoders import encode_rows
from quantize.ggml import F32Array, U8Array, decode_rows, type_named

F64Array = npt.NDArray[np.float64]

OURS = ("q2_0", "mxfp4", "nvfp4")
GROUP = {"q2_0": 64, "mxfp4": 32, "nvfp4": 16}
MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def encode(encoder: Any, rows: F32Array, name: str, importance: F32Array | None = None) -> U8Array:
    block_type = type_named(name)
    out = np.full(len(rows) * block_type.row_bytes(rows.shape[1]), 0xA5, dtype=np.uint8)
    encoder(rows, block_type, out, importance)
    return out


def recode(encoder: Any, rows: F32Array, name: str, importance: F32Array | None = None) -> F32Array:
    encoded = encode(encoder, rows, name, importance)
    return decode_rows(encoded, type_named(name), rows.shape[1])


def measure_error(rows: F32Array, decoded: F32Array, importance: F32Array | None) -> F64Array:
    """Importance-weighted squared error of each block of 64 weights; infinite if not finite."""
    weight = np.float64(1) if importance is None else importance.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = weight * (decoded.astype(np.float64) - rows) ** 2
        return np.nan_to_num(error.reshape(-1, 64).sum(axis=1), nan=np.inf, posinf=np.inf)


def make_generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def make_rows(kind: str, n_rows: int = 16, width: int = 3840) -> F32Array:
    """960 blocks of 64 weights of one kind; the kinds together are 11,520."""
    rng = make_generator(sum(kind.encode()))
    shape = (n_rows, width)
    normal = rng.standard_normal(shape)

    def scale_blocks(low: int, high: int) -> F64Array:
        return np.exp2(rng.integers(low, high, (n_rows, width // 64)).repeat(64, axis=1))

    kinds: dict[str, Any] = {
        "random": lambda: normal,
        "like weights": lambda: normal / 50,
        "heavy-tailed": lambda: rng.standard_t(2, shape),
        "sparse": lambda: normal * (rng.random(shape) < 0.05),
        "one-sided": lambda: rng.exponential(size=shape),
        "constant": lambda: np.repeat(normal[:, ::64], 64, axis=1),
        "lattice": lambda: rng.integers(-12, 13, shape) * 0.25,
        "spread": lambda: normal * np.exp2(rng.integers(-20, 20, shape)),
        "tiny": lambda: normal * scale_blocks(-149, -10),
        "huge": lambda: np.clip(normal, -3.9, 3.9) * scale_blocks(10, 127),
        "saturating": lambda: normal * 600,  # near the end of NVFP4
        "zero": lambda: np.zeros(shape),
    }  # fmt: skip
    return kinds[kind]().astype(np.float32)


KINDS = (
    "random", "like weights", "heavy-tailed", "sparse", "one-sided", "constant", "lattice",
    "spread", "tiny", "huge", "saturating", "zero",
)  # fmt: skip


def make_importance(width: int, hardness: float = 1.0) -> F32Array:
    """Log-normal, as the second moments of activations are; one column in 20 is dead."""
    rng = make_generator(7)
    importance = np.exp(hardness * rng.standard_normal(width)) * (rng.random(width) < 0.95)
    importance[:64] = 0
    return importance.astype(np.float32)


# Bounds: 0.0005 (Q2_0) and 0.0002 above what exhaustive search reaches on the same distribution.
@pytest.mark.parametrize(
    ("name", "bound"), [("q2_0", 0.1235), ("mxfp4", 0.0126), ("nvfp4", 0.0068)]
)
def test_error_on_gaussian_rows(name: str, bound: float) -> None:
    rows = make_generator(0).standard_normal((160, 2688), dtype=np.float32)
    ours = measure_error(rows, recode(encode_rows, rows, name), None).sum()
    assert ours / np.square(rows, dtype=np.float64).sum() <= bound


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OURS)
def test_no_block_errs_more_than_ggml_s(name: str, kind: str, weighted: bool) -> None:
    rows = make_rows(kind)
    importance = make_importance(rows.shape[1]) if weighted else None
    ours = measure_error(rows, recode(encode_rows, rows, name, importance), importance)
    theirs = measure_error(rows, recode(ggml.encode_rows, rows, name), importance)
    assert np.isfinite(ours).all()
    worse = np.flatnonzero(ours > theirs)
    assert worse.size == 0, (worse[0], ours[worse[0]], theirs[worse[0]])


@pytest.mark.parametrize("name", OURS)
def test_importance_lowers_the_weighted_error(name: str) -> None:
    rows = make_rows("random")
    importance = make_importance(rows.shape[1])
    blind = measure_error(rows, recode(encode_rows, rows, name), importance).sum()
    seeing = measure_error(rows, recode(encode_rows, rows, name, importance), importance).sum()
    # Scales of MXFP4 are an octave apart: there is little to choose from.
    assert seeing < {"q2_0": 0.9, "mxfp4": 0.996, "nvfp4": 0.8}[name] * blind


def search_q2_0(group: F64Array, importance: F64Array) -> float:
    """Least error of any real scale: between the points where a code changes, codes are fixed."""
    points = np.unique(np.abs(np.concatenate([group / 0.5, group / 1.5])))
    between = np.concatenate([(points[1:] + points[:-1]) / 2, points[-1:] * 2])
    scales = np.concatenate([between, -between])[:, None]
    levels = np.clip(np.rint(group / scales), -1, 2)
    norm = (importance * levels**2).sum(axis=1)
    product = (importance * levels * group).sum(axis=1)
    gain = np.divide(product**2, norm, out=np.zeros_like(norm), where=norm > 0)
    return float((importance * group**2).sum() - gain.max())


def search_e2m1(group: F64Array, importance: F64Array, scales: F64Array) -> float:
    """Least error of any scale code, each weight at the nearest of all levels."""
    levels = scales[:, None, None] * MAGNITUDES
    distance = np.abs(np.abs(group)[None, :, None] - levels).min(axis=2)
    return float((importance * distance**2).sum(axis=1).min())


SCALES = {
    "mxfp4": np.exp2(np.arange(100, 140) - 127.0),
    "nvfp4": np.array(
        [m * 2.0**-9 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
         for e in range(16) for m in range(8)][:127]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "slack"), [("random", 1.01), ("heavy-tailed", 1.03)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_error_is_near_that_of_exhaustive_search(
    name: str, weighted: bool, kind: str, slack: float
) -> None:
    rows = np.ascontiguousarray(make_rows(kind)[:4, 64:1280])
    importance = make_importance(1280)[64:] if weighted else np.ones(1216, dtype=np.float32)
    ours = measure_error(rows, recode(encode_rows, rows, name, importance), importance).sum()
    groups = rows.reshape(-1, GROUP[name]).astype(np.float64)
    weights = np.tile(importance.astype(np.float64), 4).reshape(-1, GROUP[name])
    if name == "q2_0":
        least = sum(map(search_q2_0, groups, weights))
    else:
        least = sum(
            search_e2m1(group, weight, SCALES[name])
            for group, weight in zip(groups, weights, strict=True)
        )
    assert least * 0.999 < ours < least * slack


@pytest.mark.parametrize("sign", [1, -1])
def test_q2_0_uses_every_level_and_either_sign(sign: int) -> None:
    rows = sign * np.tile(np.array([[-0.5, 0, 0.5, 1]], dtype=np.float32), 16)
    assert np.array_equal(recode(encode_rows, rows, "q2_0"), rows)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_fp4_can_hold_is_held_exactly(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["mxfp4", "nvfp4"]))
    block_type = type_named(name)
    block = data.draw(arrays(np.uint8, block_type.block_bytes))
    # Scales away from either end, so that half and double of them exist.
    scales = block[:1] if name == "mxfp4" else block[:4]
    scales[:] = 40 + scales % (200 if name == "mxfp4" else 80)
    rows = decode_rows(block, block_type, block_type.block_weights)
    assert np.array_equal(recode(encode_rows, rows, name), rows)


@pytest.mark.parametrize("name", OURS)
def test_zeros_are_ggml_s_bytes(name: str) -> None:
    rows = np.zeros((3, 192), dtype=np.float32)
    rows[1] = make_generator(1).standard_normal(192)
    assert np.array_equal(
        encode(encode_rows, rows[::2].copy(), name),
        encode(ggml.encode_rows, rows[::2].copy(), name),
    )
    assert not recode(encode_rows, rows, name)[::2].any()
    assert not recode(encode_rows, np.negative(rows), name)[::2].any()


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
IMPORTANCE = st.floats(0, 2.0**127, width=32)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(OURS),
    arrays(np.float32, (2, 64), elements=FINITE),
    st.none() | arrays(np.float32, 64, elements=IMPORTANCE),
)
def test_any_finite_weight_decodes_finite_and_no_worse(
    name: str, rows: F32Array, importance: F32Array | None
) -> None:
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        decoded = recode(encode_rows, rows, name, importance)
    assert np.isfinite(decoded).all()
    theirs = recode(ggml.encode_rows, rows, name)
    error = measure_error(rows, decoded, importance)
    # Importance of more than float32's 24 bits apart is summed in float32: allow its rounding.
    assert (error <= measure_error(rows, theirs, importance) * (1 + 1e-6)).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(OURS), st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_bytes_do_not_depend_on_the_cut(name: str, cuts: list[int]) -> None:
    rows = make_generator(8).standard_t(2, (sum(cuts), 448)).astype(np.float32)
    importance = make_importance(448)
    whole = encode(encode_rows, rows, name, importance)
    ends = np.cumsum(cuts)
    with ThreadPoolExecutor(2) as pool:
        pieces = pool.map(
            lambda piece: encode(encode_rows, np.ascontiguousarray(piece), name, importance),
            np.split(rows, ends[:-1]),
        )
        assert np.array_equal(np.concatenate(list(pieces)), whole)


@pytest.mark.parametrize("name", OURS)
def test_a_block_alone_is_as_within_a_wide_row(name: str) -> None:
    # A row wider than a panel, so that panels begin inside it.
    row = make_generator(5).standard_normal((1, 64 * 1100), dtype=np.float32)
    importance = make_importance(row.shape[1])
    # Blocks alone have an importance scaled by a power of two of their own, which changes nothing.
    block_bytes = type_named(name).row_bytes(64)
    wide = encode(encode_rows, row, name, importance).reshape(-1, block_bytes)
    for i in (0, 1, 511, 512, 513, 1023, 1024, 1099):
        part = slice(64 * i, 64 * i + 64)
        alone = encode(encode_rows, row[:, part].copy(), name, importance[part])
        assert np.array_equal(alone, wide[i]), i


@pytest.mark.parametrize(
    "name", ("f16", "q8_0", "q4_0", "q4_k", "q2_k", "iq4_nl", "iq3_s", "tq2_0", "q1_0")
)
def test_other_types_are_ggml_s(name: str) -> None:
    rows = make_generator(6).standard_normal((2, 512), dtype=np.float32)
    importance = make_importance(512) + np.float32(0.1)
    for given_importance in (None, importance):
        ours = encode(encode_rows, rows, name, given_importance)
        assert np.array_equal(ours, encode(ggml.encode_rows, rows, name, given_importance))


@pytest.mark.parametrize("name", OURS)
def test_misuse_is_refused(name: str) -> None:
    block_type = type_named(name)
    rows = np.zeros((2, 128), dtype=np.float32)
    room = np.empty(2 * block_type.row_bytes(128), dtype=np.uint8)
    importance = np.ones(128, dtype=np.float32)
    with pytest.raises(ValueError, match="bytes of room"):
        encode_rows(rows, block_type, room[1:])
    with pytest.raises(ValueError, match=f"whole {name} blocks"):
        encode_rows(rows[:, :40].copy(), block_type, room)
    with pytest.raises(ValueError, match="contiguous"):
        encode_rows(rows[:, ::2], block_type, room[::2])
    with pytest.raises(ValueError, match="float64"):
        encode_rows(rows.astype(np.float64), block_type, room)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not \(128,\)"):
        encode_rows(rows, block_type, room, importance[1:])
    for wrong in (-1.0, np.nan, np.inf):
        importance[5] = wrong
        with pytest.raises(ValueError, match="importance of column 5 is"):
            encode_rows(rows, block_type, room, importance)
