"""Laying out GGUF: byte for byte the header that the gguf package writes, read by llama.cpp."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.gguf import TYPES, FilePlan, MetadataEntry, TensorSpec, open_gguf, plan_file
from quantize.gguf.blocks import VALUE_IDS
from tests.quantize.ggufs import read_natively

BOUNDS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "i8": 8, "i16": 16, "i32": 32, "i64": 64}


def values_of(kind: str) -> st.SearchStrategy[Any]:
    """Values that a metadata type can hold; not empty texts, which the gguf package drops."""
    if kind in BOUNDS:
        bits = BOUNDS[kind]
        low, high = (
            (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        return st.integers(low, high)
    if kind == "bool":
        return st.booleans()
    if kind == "str":
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    return st.floats(width=32 if kind == "f32" else 64, allow_nan=False)


@st.composite
def metadata_entries(draw: st.DrawFn) -> MetadataEntry:
    kind = draw(st.sampled_from(sorted(VALUE_IDS)))
    key = draw(st.from_regex(r"[a-z]{1,6}\.[a-z_]{1,9}", fullmatch=True))
    if draw(st.booleans()):
        return key, draw(st.lists(values_of(kind), min_size=1, max_size=5)), f"arr:{kind}"
    return key, draw(values_of(kind)), kind


# gguf 0.19 counts 40 bytes for q8_1 where libggml has 36; no file holds either.
SHARED_TYPES = sorted({kind.value for kind in gguf.GGMLQuantizationType} & set(TYPES) - {9})


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    number = draw(st.sampled_from(SHARED_TYPES))
    width = TYPES[number].block_weights * draw(st.integers(1, 3))
    outer = draw(st.lists(st.integers(1, 4), max_size=3))
    name = draw(st.from_regex(r"blk\.[0-9]{1,3}\.[a-z_]{1,20}\.weight", fullmatch=True))
    return TensorSpec(name, (*outer, width), number)


entry_lists = st.lists(metadata_entries(), max_size=6, unique_by=lambda entry: entry[0])
spec_lists = st.lists(tensor_specs(), max_size=5, unique_by=lambda spec: spec.name)


def write_reference(
    path: Path, entries: list[MetadataEntry], specs: list[TensorSpec], arrays: list[Any]
) -> bytes:
    """The file that the gguf package writes; it puts general.architecture first."""
    writer = gguf.GGUFWriter(path, "test")
    for key, value, kind in entries:
        element = gguf.GGUFValueType(VALUE_IDS[kind.removeprefix("arr:")])
        if kind.startswith("arr:"):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, element)
        else:
            writer.add_key_value(key, value, element)
    for spec, array in zip(specs, arrays, strict=True):
        writer.add_tensor(spec.name, array, raw_dtype=gguf.GGMLQuantizationType(spec.type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def fill_plan(path: Path, plan: FilePlan, arrays: list[Any]) -> bytes:
    """Write a planned file, the last tensor first, as a converter with threads might."""
    with path.open("wb") as stream:
        for tensor, array in reversed(list(zip(plan.tensors, arrays, strict=True))):
            stream.seek(tensor.offset)
            assert stream.write(array.tobytes()) == tensor.n_bytes
        stream.seek(0)
        stream.write(plan.header)
        stream.truncate(plan.file_bytes)
    return path.read_bytes()


@given(entries=entry_lists, specs=spec_lists)
@settings(max_examples=150, deadline=None)
def test_a_planned_file_equals_the_gguf_packages_and_llama_cpp_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[MetadataEntry],
    specs: list[TensorSpec],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rng = np.random.default_rng(len(specs))
    arrays = [
        rng.integers(0, 256, (*s.shape[:-1], TYPES[s.type_id].row_bytes(s.shape[-1])), np.uint8)
        for s in specs
    ]
    plan = plan_file([("general.architecture", "test", "str"), *entries], specs)
    ours = fill_plan(folder / "ours.gguf", plan, arrays)
    assert ours == write_reference(folder / "reference.gguf", entries, specs, arrays)
    native = read_natively(folder / "ours.gguf")
    assert native is not None
    assert native.data_offset == plan.data_offset or not specs
    assert native.tensors == {t.name: (t.type_id, t.offset, t.n_bytes) for t in plan.tensors}
    assert list(native.tensors) == [spec.name for spec in specs]


@given(entries=entry_lists, specs=spec_lists)
@settings(max_examples=100, deadline=None)
def test_what_is_planned_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[MetadataEntry],
    specs: list[TensorSpec],
) -> None:
    path = tmp_path_factory.getbasetemp() / "planned.gguf"
    plan = plan_file(entries, specs)
    path.write_bytes(plan.header.ljust(plan.file_bytes, b"\0"))
    with open_gguf(path) as file:
        assert tuple(file.tensors.values()) == plan.tensors
        assert [(t.name, t.shape, t.type_id) for t in plan.tensors] == [
            (spec.name, spec.shape, spec.type_id) for spec in specs
        ]
        assert dict(file.metadata) == {key: value for key, value, _ in entries}
        assert (file.data_offset, file.file_bytes) == (plan.data_offset, plan.file_bytes)


def test_q2_0_which_the_gguf_package_does_not_know_is_read_by_llama_cpp(tmp_path: Path) -> None:
    specs = [TensorSpec("blk.0.ffn_up_exps.weight", (4, 3, 128), 42), TensorSpec("n", (5,), 0)]
    plan = plan_file([("general.architecture", "nemotron_h_moe", "str")], specs)
    (tmp_path / "q2.gguf").write_bytes(plan.header.ljust(plan.file_bytes, b"\0"))
    native = read_natively(tmp_path / "q2.gguf")
    assert native is not None
    start = plan.data_offset
    # 12 rows of two blocks of 18 bytes are 432 bytes, 448 with their padding to 32.
    assert native.tensors == {
        "blk.0.ffn_up_exps.weight": (42, start, 432),
        "n": (0, start + 448, 20),
    }
    assert plan.file_bytes == start + 448 + 32
    assert native.texts == {"general.architecture": "nemotron_h_moe"}


def test_a_file_larger_than_memory_is_planned_without_its_data() -> None:
    specs = [TensorSpec(f"blk.{i}.ffn_up_exps.weight", (128, 1856, 2688), 30) for i in range(52)]
    plan = plan_file([], specs)
    data_bytes = 52 * 128 * 1856 * 2688 * 2
    assert len(plan.header) == plan.data_offset
    assert plan.file_bytes - plan.data_offset == data_bytes > 1 << 35


def test_empty_texts_and_arrays_are_kept(tmp_path: Path) -> None:
    plan = plan_file([("a", "", "str"), ("b", [], "arr:str"), ("c", [], "arr:u32")], [])
    (tmp_path / "x.gguf").write_bytes(plan.header)
    with open_gguf(tmp_path / "x.gguf") as file:
        assert file.metadata["a"] == ""
        assert (file.metadata["b"], file.metadata["c"]) == ([], [])
        assert file.metadata["b"].value_type == "str"
    native = read_natively(tmp_path / "x.gguf")
    assert native is not None
    assert native.keys == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(256, "u8"), (-1, "u32"), (1.5, "i32"), ("1", "u32"), (None, "str"), (3, "str"), (1, "bool"),
     ("no", "bool"), ([1, -1], "arr:u8"), ([1, "a"], "arr:i32"), ("abc", "arr:str"), (7, "arr:u8"),
     (["a", None], "arr:str"), ("\ud800", "str"), (1e39, "f32"), (1, "u128"), ([[1]], "arr:arr:u8"),
     (1, "arr"), (math.pi, "u64")],
)  # fmt: skip
def test_a_value_that_is_not_of_its_type_is_refused_by_key(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=r"^some\.key: "):
        plan_file([("some.key", value, kind)], [])


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("w", (3, 48), 8),
        TensorSpec("w", (1, 1, 1, 1, 32), 0),
        TensorSpec("w", (0, 32), 0),
        TensorSpec("w", (-1, 32), 0),
        TensorSpec("x" * 64, (32,), 0),
        TensorSpec("", (32,), 0),
    ],
)
def test_a_tensor_that_llama_cpp_could_not_load_is_refused(spec: TensorSpec) -> None:
    with pytest.raises(ValueError, match=r"q8_0|axes|impossible|no name"):
        plan_file([], [spec])


def test_what_is_given_twice_is_refused() -> None:
    spec = TensorSpec("w", (32,), 0)
    with pytest.raises(ValueError, match="tensor w is given twice"):
        plan_file([], [spec, TensorSpec("v", (1,), 0), spec])
    with pytest.raises(ValueError, match=r"key a\.b is given twice"):
        plan_file([("a.b", 1, "u8"), ("a.c", 1, "u8"), ("a.b", 2, "u8")], [])
    with pytest.raises(ValueError, match="alignment"):
        plan_file([("general.alignment", 64, "u32")], [])
