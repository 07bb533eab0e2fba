"""Predicted memory against what llama.cpp reserves."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest

from localcascade.fit import (
    ContextOptions,
    measure_context,
    non_weight_bytes,
    read_file_shape,
)
from localcascade.fit.shape import make_config_shape
from localcascade.settings import CHAT_OUTPUTS
from quantize.gguf import open_gguf
from tests.localcascade import reserved
from tests.localcascade.reserved import GEOMETRIES, MIB, TINY, WIDTHS, read_reserved, write_header
from tests.soak import sample

TOLERANCE_BYTES = 0.03 * MIB
"""The log has two digits behind the point, for each of several buffers."""
CASES = list(reserved.draw_cases(240))


@pytest.mark.parametrize(
    ("name", "options"), sample(CASES, 42), ids=lambda value: value if type(value) is str else ""
)
def test_memory_is_what_llama_cpp_reserves(
    tmp_path: Path, name: str, options: ContextOptions
) -> None:
    path = write_header(tmp_path / "model.gguf", GEOMETRIES[name])
    with open_gguf(path) as file:
        predicted = measure_context(read_file_shape(file), options)
    theirs = read_reserved(path, options)
    for ours, measured in zip(astuple(predicted), astuple(theirs)[:4], strict=True):
        assert ours == pytest.approx(measured, abs=TOLERANCE_BYTES), (predicted, theirs)


def test_the_sample_covers_every_kind_of_context() -> None:
    options = [options for _, options in sample(CASES, 42)]
    assert {option.kv_type for option in options} == {"f16", "q8_0", "q4_0"}
    assert {option.unified for option in options} == {True, False}
    assert {option.flash_attention for option in options} == {True, False}
    assert len({option.n_ctx for option in options}) >= 6
    assert {option.n_parallel for option in options} == {1, 2, 3, 4, 8}


@pytest.mark.parametrize("choices", [None, WIDTHS], ids=["as made", "widths by layer"])
def test_a_real_load_takes_what_was_predicted(tmp_path: Path, choices: object) -> None:
    path = write_header(tmp_path / "model.gguf", TINY, choices)  # type: ignore[arg-type]
    options = ContextOptions(2048, n_parallel=2)
    with open_gguf(path) as file:
        shape = read_file_shape(file)
    predicted = measure_context(shape, options)
    theirs = read_reserved(path, options, real=True)
    expected = (*astuple(predicted), shape.weights_bytes)
    for ours, measured in zip(expected, astuple(theirs), strict=True):
        assert ours == pytest.approx(measured, abs=TOLERANCE_BYTES)


def test_the_figures_of_the_30_b_model_are_the_known_ones() -> None:
    shape = make_config_shape(Path("config.json"), GEOMETRIES["cascade-2"], "q8_0")
    memory = measure_context(shape, ContextOptions(262144))
    # 6 attention layers x 2 x 2 heads x 128 x 2 bytes = 6 KiB a token, 1.5 GiB in all.
    assert memory.kv_bytes == 6 * 1024 * 262144 == 3 << 29
    # 23 Mamba layers x (3 x 6144 + 128 x 4096) floats.
    assert memory.state_bytes == 23 * (3 * 6144 + 128 * 4096) * 4
    assert shape.geometry.kinds.count("E") == len(shape.expert_layers) == 23


def test_non_weight_bytes_is_the_context_and_a_margin() -> None:
    shape = make_config_shape(Path("config.json"), GEOMETRIES["cascade-2"], 4.0)
    memory = measure_context(shape, ContextOptions(32768, "q8_0", 2, n_outputs=CHAT_OUTPUTS))
    margin = non_weight_bytes(shape, 32768, "q8_0", 2) - memory.total_bytes
    assert margin == 512 * MIB


def test_a_type_that_is_none_is_refused() -> None:
    shape = make_config_shape(Path("config.json"), TINY, "q8_0")
    with pytest.raises(ValueError, match="f16, q8_0, q4_0"):
        measure_context(shape, ContextOptions(4096, "q9_9"))
