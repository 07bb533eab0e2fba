"""Damaged and hostile checkpoints: each is refused by name, or read as its bytes say."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.errors import CheckpointError
from quantize.safetensors import open_checkpoint
from tests.quantize.checkpoints import (
    describe_tensors,
    pack_shard,
    widen_bf16,
    write_checkpoint,
    write_safetensors,
)
from tests.quantize.fuzz import N_DAMAGED_FILES

TENSORS = {
    "a.weight": ("F32", np.arange(6.0).reshape(2, 3)),
    "b.weight": ("BF16", np.arange(4.0)),
    "c": ("F16", np.array(7.0)),
}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refuse(folder: Path) -> CheckpointError:
    """Open the folder, which must fail, close everything it opened, and advise."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    assert str(folder) in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", {}, TENSORS, n_shards=2)
    return tmp_path / "checkpoint"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", {}, TENSORS)
    return tmp_path / "checkpoint"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the single shard anew with a changed header."""
    header, data = describe_tensors(TENSORS)
    change(header)
    (folder / "model.safetensors").write_bytes(pack_shard(header, data))


def reindex(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# --- files that are missing or no JSON


@pytest.mark.parametrize("name", ["config.json", FIRST])
def test_a_missing_file_is_named(sharded: Path, name: str) -> None:
    (sharded / name).unlink()
    error = refuse(sharded)
    assert error.path == sharded / name
    assert "not found" in str(error)
    assert error.hint


def test_a_folder_without_weights_is_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in str(refuse(sharded))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refuse(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not sound JSON"),
        (b"{", "not sound JSON"),
        (b"[]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b"\xff\xfe{\x00}\x00", "not sound JSON"),
        (b"{} {}", "not sound JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not sound JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "key 'c' occurs twice"),
        (b'{"\\ud800": 1, "\\ud800": 1}', "key '\\ud800' occurs twice"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' * 200_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", INDEX, "header"])
def test_json_that_is_not_sound_is_refused(
    sharded: Path, name: str, text: bytes, problem: str
) -> None:
    if name == "header":
        (sharded / FIRST).write_bytes(struct.pack("<Q", len(text)) + text)
    else:
        (sharded / name).write_bytes(text)
    error = refuse(sharded)
    assert error.path == sharded / (FIRST if name == "header" else name)
    assert problem in str(error)


def test_a_config_or_shard_that_is_a_folder_or_pipe_is_refused(sharded: Path) -> None:
    (sharded / FIRST).unlink()
    os.mkfifo(sharded / FIRST)
    assert "not a file" in str(refuse(sharded))
    (sharded / "config.json").unlink()
    (sharded / "config.json").mkdir()
    assert "not a file" in str(refuse(sharded))


def test_a_huge_config_is_refused_unread(sharded: Path) -> None:
    with (sharded / "config.json").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: no disk is used
    assert "1099511627776 bytes of JSON" in str(refuse(sharded))


# --- an index that contradicts the shards


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "c:x", "a\0b",
     "a\nb", "\x1b[2J", 7, None, ["x"], {"x": 1}, True],
)  # fmt: skip
def test_a_shard_name_never_leaves_the_folder(sharded: Path, shard: object) -> None:
    reindex(sharded, {"a.weight": shard})
    error = refuse(sharded)
    assert error.path == sharded / INDEX
    assert error.tensor == "a.weight"
    assert "not the name of a file in this folder" in str(error)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 3])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, weight_map: object) -> None:
    reindex(sharded, weight_map)
    assert "weight_map" in str(refuse(sharded))


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    reindex(sharded, {"a.weight": FIRST, "gone": FIRST, "b.weight": SECOND, "c": SECOND})
    error = refuse(sharded)
    assert (error.path, error.tensor) == (sharded / FIRST, "gone")
    assert "missing" in str(error)


def test_a_tensor_that_the_index_does_not_name_is_named(sharded: Path) -> None:
    reindex(sharded, {"a.weight": FIRST, "b.weight": SECOND})
    error = refuse(sharded)
    assert (error.path, error.tensor) == (sharded / SECOND, "c")
    assert "does not say so" in str(error)


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    write_safetensors(sharded / SECOND, TENSORS)
    error = refuse(sharded)
    assert (error.path, error.tensor) == (sharded / SECOND, "a.weight")
    assert f"also stored in {FIRST}" in str(error)


def test_a_tensor_named_twice_in_the_index_is_named(sharded: Path) -> None:
    text = f'{{"weight_map": {{"c": "{SECOND}", "c": "{SECOND}"}}}}'
    (sharded / INDEX).write_text(text)
    assert "'c' occurs twice" in str(refuse(sharded))


def test_a_single_file_beside_an_index_of_others_is_refused(sharded: Path) -> None:
    write_safetensors(sharded / "model.safetensors", TENSORS)
    error = refuse(sharded)
    assert "does not name model.safetensors" in str(error)
    assert "Delete" in error.hint
    reindex(sharded, dict.fromkeys(TENSORS, "model.safetensors"))
    open_checkpoint(sharded).close()


# --- headers that contradict the file

HEADERS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "overlap": (lambda h: h["b.weight"].update(data_offsets=[20, 28]), "b.weight", "overlaps"),
    "same place": (lambda h: h.update(z=h["b.weight"]), "z", "overlaps"),
    "hole": (lambda h: h.pop("b.weight"), "c", "follows a hole"),
    "hole at the start": (lambda h: h.pop("a.weight"), "b.weight", "follows a hole"),
    "data left over": (lambda h: h.pop("c"), "", "longer than its tensors"),
    "past the end": (
        lambda h: h.update(z={"dtype": "F32", "shape": [9], "data_offsets": [34, 70]}),
        "", "truncated",
    ),
    "petabytes": (
        lambda h: h.update(
            z={"dtype": "F32", "shape": [1 << 44], "data_offsets": [34, 34 + (1 << 46)]}
        ),
        "", "truncated",
    ),
    "negative offset": (lambda h: h["c"].update(data_offsets=[-2, 0]), "c", "data_offsets"),
    "reversed": (lambda h: h["c"].update(data_offsets=[34, 32]), "c", "data_offsets"),
    "huge offset": (lambda h: h["c"].update(data_offsets=[0, 1 << 70]), "c", "data_offsets"),
    "float offset": (lambda h: h["c"].update(data_offsets=[32.0, 34.0]), "c", "data_offsets"),
    "one offset": (lambda h: h["c"].update(data_offsets=[32]), "c", "data_offsets"),
    "three offsets": (lambda h: h["c"].update(data_offsets=[32, 34, 36]), "c", "data_offsets"),
    "offsets null": (lambda h: h["c"].update(data_offsets=None), "c", "data_offsets"),
    "negative dim": (lambda h: h["a.weight"].update(shape=[-2, -3]), "a.weight", "shape"),
    "huge dim": (lambda h: h["a.weight"].update(shape=[1 << 64]), "a.weight", "shape"),
    "overflow": (lambda h: h["a.weight"].update(shape=[1 << 40] * 4), "a.weight", "24 bytes"),
    "empty": (lambda h: h["a.weight"].update(shape=[0, 3]), "a.weight", "shape"),
    "float dim": (lambda h: h["a.weight"].update(shape=[2.0, 3]), "a.weight", "shape"),
    "bool dim": (lambda h: h["b.weight"].update(shape=[4, True]), "b.weight", "shape"),
    "many dims": (lambda h: h["c"].update(shape=[1] * 70), "c", "shape"),
    "shape of text": (lambda h: h["c"].update(shape="1"), "c", "shape"),
    "other shape": (lambda h: h["a.weight"].update(shape=[2, 4]), "a.weight", "24 bytes of data"),
    "other dtype": (lambda h: h["a.weight"].update(dtype="F16"), "a.weight", "are not F16"),
    "unreadable dtype": (lambda h: h["c"].update(dtype="F8_E4M3"), "c", "dtype 'F8_E4M3' cannot"),
    "unknown dtype": (lambda h: h["c"].update(dtype="Q2"), "c", "unknown dtype 'Q2'"),
    "dtype null": (lambda h: h["c"].update(dtype=None), "c", "dtype"),
    "no dtype": (lambda h: h["c"].pop("dtype"), "c", "dtype, shape and data_offsets"),
    "no object": (lambda h: h.update(c=[]), "c", "dtype, shape and data_offsets"),
    "escape in a name": (lambda h: h.update({"\x1b[2J": h.pop("c")}), "'\\x1b[2J'", "unprintable"),
    "surrogate": (lambda h: h.update({"\ud800": h.pop("c")}), "'\\ud800'", "unprintable"),
    "nameless": (lambda h: h.update({"": h.pop("c")}), "''", "empty"),
    "bad notes": (lambda h: h.update(__metadata__={"format": 1}), "", "__metadata__"),
    "notes a list": (lambda h: h.update(__metadata__=[]), "", "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_contradicts_the_file_is_refused(single: Path, case: str) -> None:
    change, tensor, problem = HEADERS[case]
    rewrite(single, change)
    error = refuse(single)
    assert error.path == single / "model.safetensors"
    assert error.tensor == tensor
    assert problem in str(error)
    assert error.hint


def test_a_tensor_named_twice_in_a_header_is_named(single: Path) -> None:
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = f'{{"w": {entry}, "w": {entry}}}'.encode()
    (single / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert "'w' occurs twice" in str(refuse(single))


@pytest.mark.parametrize("n_header_bytes", [1, 1 << 20, 100_000_001, 1 << 63, (1 << 64) - 1])
def test_a_header_length_that_is_not_there_is_refused(single: Path, n_header_bytes: int) -> None:
    shard = single / "model.safetensors"
    shard.write_bytes(struct.pack("<Q", n_header_bytes) + shard.read_bytes()[8:])
    refuse(single)


def test_a_header_over_the_limit_is_refused_unread(single: Path) -> None:
    with (single / "model.safetensors").open("r+b") as stream:
        stream.write(struct.pack("<Q", 1 << 35))
        stream.truncate(1 << 40)  # a hole: no disk is used
    assert "header of 34359738368 bytes" in str(refuse(single))


def test_every_truncation_is_refused(single: Path) -> None:
    shard = single / "model.safetensors"
    whole = shard.read_bytes()
    for n_bytes in range(len(whole)):
        shard.write_bytes(whole[:n_bytes])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            open_checkpoint(single)


# --- whatever else the bytes may be


def read_by_hand(content: bytes) -> dict[str, bytes]:
    """Every tensor's bytes, by another path than the code under test."""
    (n,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n])
    header.pop("__metadata__", None)
    return {
        name: content[8 + n + entry["data_offsets"][0] : 8 + n + entry["data_offsets"][1]]
        for name, entry in header.items()
    }


def check_shard(folder: Path, content: bytes) -> None:
    """Open a folder with this shard: all of it reads as its header says, or CheckpointError."""
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    with contextlib.suppress(CheckpointError), open_checkpoint(folder) as checkpoint:
        expected = read_by_hand(content)
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in checkpoint.tensors.items():
            weights = checkpoint.read_f32(name)
            assert weights.shape == tensor.shape
            assert checkpoint.read_raw(name).tobytes() == expected[name]
            stored = np.frombuffer(expected[name], np.uint8)
            if tensor.dtype == "BF16":
                wide = widen_bf16(stored.view(np.uint16))
            else:
                wide = stored.view("<f2" if tensor.dtype == "F16" else "<f4").astype(np.float32)
            np.testing.assert_array_equal(weights.reshape(-1), wide)


VALID = pack_shard(*describe_tensors(TENSORS))


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@settings(max_examples=N_DAMAGED_FILES, deadline=None)
def test_changed_bytes_read_right_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(VALID)
    for position, byte in edits:
        content[position] = byte
    check_shard(tmp_path_factory.getbasetemp(), bytes(content))


odd_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.integers(-1, 40)
    | st.floats() | st.text(max_size=3) | st.sampled_from(["F32", "BF16", "F16", "I64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)  # fmt: skip


@given(
    name=st.sampled_from([*TENSORS, "__metadata__", "new"]),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "other"]),
    value=odd_values,
    whole=st.booleans(),
)
@settings(max_examples=N_DAMAGED_FILES, deadline=None)
def test_changed_values_read_right_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, key: str, value: object, whole: bool
) -> None:
    header, data = describe_tensors(TENSORS)
    header[name] = value if whole else {**header.get(name, {}), key: value}
    check_shard(tmp_path_factory.getbasetemp(), pack_shard(header, data))


@given(content=st.binary(max_size=64))
@settings(max_examples=50, deadline=None)
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    check_shard(tmp_path_factory.getbasetemp(), struct.pack("<Q", len(content)) + content)
