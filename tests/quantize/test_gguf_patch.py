"""Changing metadata in place: the gguf package reads the new values, and no other byte changes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Value

from quantize.errors import GGUFError, OutputError
from quantize.gguf import open_gguf, patch_metadata
from tests.quantize.ggufs import encode_at_random, write_with_gguf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_with_gguf(
        path,
        [
            # A text that looks like the entry to be changed: a search for its bytes would err.
            ("decoy", "\x05\0\0\0\0\0\0\0score\x06\0\0\0" + "\0" * 4, Value.STRING, None),
            ("score", 0.0, Value.FLOAT32, None),
            ("errors", [0.0, float("nan"), 2.0], Value.ARRAY, Value.FLOAT32),
            ("name", "unknown", Value.STRING, None),
            ("words", ["a", "bcd"], Value.ARRAY, Value.STRING),
            ("n", 7, Value.UINT32, None),
        ],
        {"w": (encode_at_random((3, 64), 32, 34, 0), gguf.GGMLQuantizationType.Q8_0)},
    )
    return path


def read_with_gguf(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}


def test_new_values_are_read_by_the_gguf_package(path: Path) -> None:
    before = read_with_gguf(path)
    new = {"score": 0.5, "errors": [0.25, 0.125, 3.0], "name": "known!!", "words": ["bcd", "a"]}
    patch_metadata(path, new)
    after = read_with_gguf(path)
    assert {key: after[key] for key in new} == new
    assert {key: after[key] for key in after if key not in new} == {
        key: before[key] for key in before if key not in new
    }


def test_only_the_bytes_of_the_value_change(path: Path) -> None:
    before = np.frombuffer(path.read_bytes(), np.uint8)
    patch_metadata(path, {"score": np.float32(1.0)})
    after = np.frombuffer(path.read_bytes(), np.uint8)
    # 1.0 is 00 00 80 3f, zero is 00 00 00 00.
    (changed,) = np.nonzero(before != after)
    assert len(changed) == 2
    assert changed[1] == changed[0] + 1
    assert before.size == after.size
    entry = re.search(rb"\x05\0{7}score\x06\0{3}\0\0\x80\x3f", path.read_bytes())
    assert entry is not None
    assert entry.end() == changed[1] + 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"score": "high"}, "score: not a value of type f32"),
        ({"n": -1}, "n: not a value of type u32"),
        ({"n": [7]}, "n: not a value of type u32"),
        ({"errors": [0.0, 1.0]}, r"errors: the new value takes 24 bytes, the old 28"),
        ({"name": "longer than it was"}, "name: the new value takes 30 bytes, the old 19"),
        ({"score": 1.0, "words": ["a"]}, "words: the new value takes"),
    ],
)
def test_values_that_do_not_fit_change_nothing(
    path: Path, values: dict[str, Any], said: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        patch_metadata(path, values)
    assert path.read_bytes() == before


def test_a_key_without_room_is_refused_by_name(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(GGUFError, match=r"model\.gguf: its metadata has no quality") as raised:
        patch_metadata(path, {"score": 1.0, "quality": 1.0})
    assert "again" in raised.value.hint
    assert path.read_bytes() == before


def test_a_truncated_file_is_not_touched(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])
    before = path.read_bytes()
    with pytest.raises(GGUFError, match="truncated"):
        patch_metadata(path, {"score": 1.0})
    assert path.read_bytes() == before


def test_a_write_that_does_not_stick_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda _descriptor, data, _offset: len(data))
    with pytest.raises(OutputError, match=r"byte \d+: does not read back"):
        patch_metadata(path, {"score": 1.0})


def test_a_full_disk_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        patch_metadata(path, {"score": 1.0})


def test_spans_cover_type_and_value(path: Path) -> None:
    with open_gguf(path) as file:
        start, end = file.value_spans["name"]
    # type number, length, seven letters
    assert path.read_bytes()[start:end] == b"\x08\0\0\0" + b"\x07" + b"\0" * 7 + b"unknown"
