"""Reading GGUF: the same as the gguf package and llama.cpp read, or GGUFError with the byte."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Value
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.errors import GGUFError
from quantize.gguf import TYPES, GGUFArray, TensorSpec, open_gguf, plan_file
from quantize.gguf.blocks import VALUE_IDS
from tests.quantize.fuzz import N_DAMAGED_FILES
from tests.quantize.ggufs import encode_at_random, load_libggml, read_natively, write_with_gguf

METADATA: list[tuple[str, Any, Value, Value | None]] = [
    ("a.u8", 255, Value.UINT8, None),
    ("a.i8", -128, Value.INT8, None),
    ("a.u16", 65535, Value.UINT16, None),
    ("a.i16", -32768, Value.INT16, None),
    ("a.u32", 4294967295, Value.UINT32, None),
    ("a.i32", -2147483648, Value.INT32, None),
    ("a.f32", 0.1, Value.FLOAT32, None),
    ("a.bool", True, Value.BOOL, None),
    ("a.no", False, Value.BOOL, None),
    ("a.str", "Grüße, 世界\n\x00\x1b", Value.STRING, None),
    ("a.empty", "", Value.STRING, None),
    ("a.u64", (1 << 64) - 1, Value.UINT64, None),
    ("a.i64", -(1 << 63), Value.INT64, None),
    ("a.f64", 0.1, Value.FLOAT64, None),
    ("b.tokens", ["", "a", "Ġthe", "世界", "</s>"], Value.ARRAY, Value.STRING),
    ("b.scores", [0.5, -1.0, float("inf")], Value.ARRAY, Value.FLOAT32),
    ("b.types", [3, 1, 1, 6], Value.ARRAY, Value.INT32),
    ("b.flags", [True, False, True], Value.ARRAY, Value.BOOL),
    ("b.bytes", [0, 255, 7], Value.ARRAY, Value.UINT8),
    ("b.wide", [1 << 63, 0], Value.ARRAY, Value.UINT64),
]
TENSORS = {
    "blk.0.ffn_up_exps.weight": (encode_at_random((3, 5, 64), 32, 34, seed=0), Kind.Q8_0),
    "blk.0.attn_norm.weight": (np.arange(7, dtype=np.float32), None),
    "output.weight": (encode_at_random((2, 256), 256, 84, seed=1), Kind.Q2_K),
    "half": (np.arange(6, dtype=np.float16).reshape(1, 2, 3), None),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_with_gguf(tmp_path / "model.gguf", METADATA, TENSORS)
    return tmp_path / "model.gguf"


# --- sound files


def test_all_value_types_read_as_the_gguf_package_wrote_them(path: Path) -> None:
    with open_gguf(path) as file:
        assert list(file.metadata) == ["general.architecture", *(row[0] for row in METADATA)]
        for key, value, kind, _ in METADATA:
            found = file.metadata[key]
            if kind == Value.FLOAT32:
                assert found == np.float32(value)
            elif kind == Value.ARRAY:
                assert isinstance(found, GGUFArray)
                assert list(found) == value
            else:
                assert found == value
                assert type(found) is type(value)


def test_tensors_have_numpy_shapes_and_the_bytes_that_were_written(path: Path) -> None:
    with open_gguf(path) as file:
        assert list(file.tensors) == list(TENSORS)
        assert file.tensors["blk.0.ffn_up_exps.weight"].shape == (3, 5, 64)
        assert file.tensors["half"].shape == (1, 2, 3)
        for name, (array, _) in TENSORS.items():
            rows = file.read(name)
            assert rows.shape == (*array.shape[:-1], array.shape[-1] * array.itemsize)
            assert rows.tobytes() == array.tobytes()
            assert not rows.flags.writeable


def test_the_gguf_package_and_llama_cpp_find_the_same_tensors(path: Path) -> None:
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    native = read_natively(path)
    assert native is not None
    with open_gguf(path) as file:
        assert list(file.metadata) == native.keys
        assert file.alignment == native.alignment
        assert file.data_offset == native.data_offset
        for name, tensor in file.tensors.items():
            assert native.tensors[name] == (tensor.type_id, tensor.offset, tensor.n_bytes)
            assert reference[name].data_offset == tensor.offset
            assert tuple(reversed(reference[name].shape.tolist())) == tensor.shape
            assert reference[name].n_elements == tensor.n_weights


def test_every_block_type_agrees_with_libggml() -> None:
    library = load_libggml()
    known = {
        number
        for number in range(64)
        if number < 43 and library.ggml_type_size(number) > 0  # 43 is GGML_TYPE_COUNT
    }
    assert set(TYPES) == known
    for number, row in TYPES.items():
        assert row.id == number
        assert row.name == library.ggml_type_name(number).decode().lower()
        assert row.block_weights == library.ggml_blck_size(number)
        assert row.block_bytes == library.ggml_type_size(number)


def test_value_types_have_the_numbers_of_the_gguf_package() -> None:
    long = {"u": "UINT", "i": "INT", "f": "FLOAT"}
    for name, number in VALUE_IDS.items():
        spelled = {"str": "STRING", "bool": "BOOL"}.get(name) or long[name[0]] + name[1:]
        assert Value[spelled].value == number
    assert set(VALUE_IDS.values()) | {Value.ARRAY.value} == {kind.value for kind in Value}


def test_arrays_are_sequences(path: Path) -> None:
    with open_gguf(path) as file:
        tokens, types = file.metadata["b.tokens"], file.metadata["b.types"]
        assert (len(tokens), len(types)) == (5, 4)
        assert tokens[2] == "Ġthe"
        assert tokens[-1] == "</s>"
        assert tokens[1:4] == ["a", "Ġthe", "世界"]
        assert types[::-1] == [6, 1, 1, 3]
        assert tokens.index("世界") == 3
        assert 6 in types
        assert types == (3, 1, 1, 6)
        assert types != [3, 1, 1]
        for bad in (5, -6):
            with pytest.raises(IndexError):
                tokens[bad]
        assert (tokens.value_type, types.value_type) == ("str", "i32")


def test_a_view_outlives_its_file(path: Path) -> None:
    with open_gguf(path) as file:
        rows = file.read("blk.0.attn_norm.weight")
    assert rows.view(np.float32).tolist() == list(range(7))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_rows_are_copied_and_do_not_stay_in_memory(tmp_path: Path) -> None:
    path, stored = tmp_path / "m.gguf", np.random.default_rng(0).random((16, 1 << 18), np.float32)
    write_with_gguf(path, [], {"rows": (stored, None)})
    with open_gguf(path) as file:
        for index, row in enumerate(stored):
            np.testing.assert_array_equal(file.copy_row("rows", index).view(np.float32), row)
        mapped = Path("/proc/self/smaps").read_text().partition(str(path))[2]
        resident = next(line for line in mapped.splitlines() if line.startswith("Rss:"))
        assert int(resident.split()[1]) < 1024  # kB, of 16 MiB
        with pytest.raises(IndexError):
            file.copy_row("rows", 16)


def test_version_2_and_another_alignment_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_custom_alignment(256)
    writer.add_tensor("w", np.arange(3, dtype=np.float32))
    writer.add_tensor("x", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    content[4] = 2
    path.write_bytes(content)
    with open_gguf(path) as file:
        assert (file.version, file.alignment, file.data_offset % 256) == (2, 256, 0)
        assert file.tensors["x"].offset == file.data_offset + 256
        assert file.read("x").view(np.float32).tolist() == [0, 1, 2, 3, 4]


def test_a_scalar_and_a_file_without_tensors_are_read(tmp_path: Path) -> None:
    for specs in ([], [TensorSpec("s", (), 0)]):
        plan = plan_file([("split.count", 3, "u16")], specs)
        (tmp_path / "x.gguf").write_bytes(plan.header.ljust(plan.file_bytes, b"\0"))
        with open_gguf(tmp_path / "x.gguf") as file:
            assert [file.read(name).shape for name in file.tensors] == [(4,)] * len(specs)
            assert file.n_splits == 3


def test_opening_and_walking_a_file_imports_no_numpy(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from quantize.gguf import open_gguf\n"
        "from quantize.report import summarize_gguf\n"
        f"with open_gguf(Path({str(path)!r})) as file:\n"
        "    assert summarize_gguf(file).total.n_tensors == 4\n"
        "sys.exit('numpy' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0


# --- damaged files


def refuse(path: Path) -> GGUFError:
    """Open the file, which must fail, close it, and advise."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    assert str(path) in str(caught.value)
    return caught.value


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def text(content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return u64(len(content)) + content


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(dims)) + u64(*dims) + u32(kind) + u64(offset)


def build(entries: list[bytes], tensors: list[bytes] = [], data: int = 1 << 12) -> bytes:  # noqa: B006
    header = b"GGUF" + u32(3) + u64(len(tensors), len(entries)) + b"".join(entries + tensors)
    return header.ljust(-(-len(header) // 32) * 32, b"\0") + bytes(data)


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


OK = entry("k", 4, u32(1))
HUGE = (1 << 64) - 1
DAMAGED: dict[str, tuple[bytes, int | None, str]] = {
    "another format": (b"PK\3\4" + bytes(99), 0, "not a GGUF file"),
    "empty": (b"", 0, "not a GGUF file"),
    "magic only": (b"GGUF", 4, "version needs 4 bytes"),
    "version 0": (b"GGUF" + u32(0) + bytes(99), 4, "version 0 is obsolete"),
    "version 1": (b"GGUF" + u32(1) + bytes(99), 4, "version 1 is obsolete"),
    "version 4": (b"GGUF" + u32(4) + bytes(99), 4, "newer than 3"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(99), 4, "big-endian"),
    "tensor count": (b"GGUF" + u32(3) + u64(HUGE, 0) + bytes(99), 8, "number of tensors"),
    "entry count": (b"GGUF" + u32(3) + u64(0, 1 << 40) + bytes(99), 16, "metadata entries"),
    "key length": (build([u64(HUGE)]), 24, "length of metadata key 0"),
    "empty key": (build([entry("", 4, u32(1))]), 24, "empty"),
    "escape in key": (build([entry("\x1b[2J", 4, u32(1))]), 24, "unprintable"),
    "key not UTF-8": (build([text(b"ab\xff") + u32(4, 1)]), 34, "not UTF-8"),
    "key twice": (build([OK, OK]), 41, "key k occurs twice"),
    "value type 13": (build([entry("k", 13, bytes(8))]), 33, "unknown value type 13"),
    "string length": (build([entry("k", 8, u64(HUGE))]), 37, "length of k"),
    "string not UTF-8": (build([entry("k", 8, text(b"\xc3("))]), 45, "k is not UTF-8"),
    "array length": (build([entry("k", 9, u32(4) + u64(1 << 62))]), 41, "length of k"),
    "array of strings": (build([entry("k", 9, u32(8) + u64(1 << 62))]), 41, "length of k"),
    "string in array": (
        build([entry("k", 9, u32(8) + u64(2) + text("ok") + u64(HUGE))]), 59, "a string of k"),
    "strings past the end": (
        b"GGUF" + u32(3) + u64(0, 1) + entry("k", 9, u32(8) + u64(2) + text("12345678")),
        65, "k runs past the end"),
    "array of arrays": (build([entry("k", 9, u32(9) + u64(1))]), 37, "array of arrays"),
    "array of 99": (build([entry("k", 9, u32(99) + u64(1))]), 37, "unknown type 99"),
    "alignment 0": (build([entry("general.alignment", 4, u32(0))]), None, "power of two"),
    "alignment 48": (build([entry("general.alignment", 4, u32(48))]), None, "power of two"),
    "alignment true": (build([entry("general.alignment", 7, b"\1")]), None, "power of two"),
    "alignment text": (build([entry("general.alignment", 8, text("32"))]), None, "power of two"),
    "alignment 2 GiB": (
        build([entry("general.alignment", 4, u32(1 << 31))], [tensor("w", [8])]),
        None, "truncated"),
    "tensor name length": (build([], [text("x" * 64) + bytes(40)]), 24, "63 bytes"),
    "escape in a name": (build([], [tensor("\x1b]0;x\7", [8])]), 24, "unprintable"),
    "tensor twice": (build([], [tensor("w", [8]), tensor("w", [8], 0, 32)]), 57, "w occurs twice"),
    "5 axes": (build([], [tensor("w", [1] * 5)]), 33, "5 axes"),
    "2**32-1 axes": (build([], [text("w") + u32((1 << 32) - 1) + bytes(64)]), 33, "axes"),
    "no weights": (build([], [tensor("w", [8, 0])]), None, "impossible shape [0, 8]"),
    "overflow": (build([], [tensor("w", [1 << 32, 1 << 32])]), None, "impossible shape"),
    "negative axis": (build([], [tensor("w", [HUGE])]), None, "impossible shape"),
    "exabytes": (build([], [tensor("w", [1 << 60])]), 24, "truncated"),
    "type 4": (build([], [tensor("w", [8], 4)]), 45, "unknown ggml type 4"),
    "type 43": (build([], [tensor("w", [8], 43)]), 45, "unknown ggml type 43"),
    "half a block": (build([], [tensor("w", [48], 8)]), None, "rows of 48, not whole q8_0"),
    "misaligned": (build([], [tensor("w", [8], 0, 16)]), 24, "not aligned to 32"),
    "overlap": (build([], [tensor("w", [16]), tensor("x", [8], 0, 32)]), 57, "overlaps"),
    "outside": (build([], [tensor("w", [8], 0, 1 << 20)]), 24, "truncated"),
    "far outside": (build([], [tensor("w", [8], 0, HUGE - 31)]), 24, "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused_with_its_byte(tmp_path: Path, case: str) -> None:
    content, offset, problem = DAMAGED[case]
    (tmp_path / "model.gguf").write_bytes(content)
    error = refuse(tmp_path / "model.gguf")
    assert problem in str(error)
    assert str(error).isprintable()
    assert error.hint
    if offset is not None:
        assert error.offset == offset


def test_a_billion_empty_strings_are_refused_unwalked(tmp_path: Path) -> None:
    with (tmp_path / "model.gguf").open("wb") as stream:
        stream.write(b"GGUF" + u32(3) + u64(0, 1) + entry("k", 9, u32(8) + u64(1 << 30)))
        stream.truncate(1 << 34)  # a hole of zeros: each 8 are an empty string
    error = refuse(tmp_path / "model.gguf")
    assert "length of k is 1073741824, more than 16777216" in str(error)
    assert error.offset == 41


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("", "not a file"), ("pipe", "not a file"), ("gone", "No such file")):
        assert problem in str(refuse(tmp_path / name))


def test_a_vocabulary_that_is_not_utf_8_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    strings = u32(8) + u64(2) + text("ok") + text(b"\xff")
    (tmp_path / "model.gguf").write_bytes(build([entry("k", 9, strings)]))
    with open_gguf(tmp_path / "model.gguf") as file:
        assert file.metadata["k"][0] == "ok"
        with pytest.raises(GGUFError, match="not UTF-8") as caught:
            list(file.metadata["k"])
    assert caught.value.offset == 67


def test_every_truncation_is_refused_or_cuts_only_padding(path: Path) -> None:
    whole = path.read_bytes()
    with open_gguf(path) as file:
        last = max(tensor.offset + tensor.n_bytes for tensor in file.tensors.values())
        lengths = [*range(file.data_offset), *range(file.data_offset, last, 37), last - 1]
    for n_bytes in reversed(lengths):
        os.truncate(path, n_bytes)
        with pytest.raises(GGUFError):
            open_gguf(path)
    path.write_bytes(whole[:last])
    open_gguf(path).close()


def walk(path: Path) -> dict[str, tuple[int, int, int]]:
    """Touch everything in a file; its tensors' type, offset and bytes."""
    with open_gguf(path) as file:
        for value in file.metadata.values():
            with contextlib.suppress(GGUFError):  # text in arrays is checked when it is read
                assert not isinstance(value, GGUFArray) or len(list(value)) == len(value)
        for name, tensor in file.tensors.items():
            assert file.read(name).nbytes == tensor.n_bytes
            assert tensor.offset >= file.data_offset
        extents = sorted((t.offset, t.offset + t.n_bytes) for t in file.tensors.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(extents))
        return {t.name: (t.type_id, t.offset, t.n_bytes) for t in file.tensors.values()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A file to overwrite, its bytes, and how many of them come before the data."""
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    write_with_gguf(path, METADATA, TENSORS)
    with open_gguf(path) as file:
        return path, path.read_bytes(), file.data_offset


@given(data=st.data())
@settings(max_examples=N_DAMAGED_FILES, deadline=None)
def test_changed_bytes_read_as_llama_cpp_reads_them_or_are_refused(
    sound: tuple[Path, bytes, int], data: st.DataObject
) -> None:
    path, content, n_header = sound
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(4, n_header - 1))
        changed[position] = data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 8, 9, 255]))
    path.write_bytes(changed)
    with contextlib.suppress(GGUFError):
        tensors = walk(path)
        native = read_natively(path)
        # llama.cpp refuses more (holes between tensors); what it takes, it must take alike.
        assert native is None or native.tensors == tensors
