"""The file under construction: what stays for the next run, and what does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quantize.errors import OutputError, QuantizeError
from quantize.part import open_part

WORK = "the work"


def leave_part(folder: Path, pieces: dict[str, int], identity: str = WORK) -> Path:
    """Begin a file of 8 bytes, record pieces of it, and stop as if the source had gone away."""
    output = folder / "out"
    with pytest.raises(LookupError), open_part(output, 8, identity) as part:
        os.pwrite(part.descriptor, b"halfdone", 0)
        part.record(pieces)
        raise LookupError("the source is gone")
    return output


def read_finished(output: Path, identity: str = WORK) -> dict[str, int]:
    with open_part(output, 8, identity) as part:
        return dict(part.finished)


def test_pieces_are_known_by_name_in_whatever_order(tmp_path: Path) -> None:
    pieces = {"7": 0xFFFFFFFF, "3": 0, "verified model 1.safetensors": 18}
    output = leave_part(tmp_path, pieces)
    assert not output.exists()
    assert read_finished(output) == pieces
    assert output.read_bytes() == b"halfdone"
    assert list(tmp_path.iterdir()) == [output]


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take fewer bytes than it is given."""
    whole = os.pwrite

    def write_three(descriptor: int, data: memoryview, offset: int) -> int:
        return whole(descriptor, data[:3], offset)

    monkeypatch.setattr(os, "pwrite", write_three)
    with open_part(tmp_path / "out", 16, WORK) as part:
        part.write(b"abcdefgh", 8)
        part.write(np.arange(2, dtype="<i4").data, 0)
    assert (tmp_path / "out").read_bytes() == bytes([0, 0, 0, 0, 1, 0, 0, 0]) + b"abcdefgh"


def test_more_pieces_are_added_run_by_run(tmp_path: Path) -> None:
    leave_part(tmp_path, {"1": 1})
    assert read_finished(leave_part(tmp_path, {"2": 2})) == {"1": 1, "2": 2}


def test_a_line_cut_off_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    output = leave_part(tmp_path, {"1": 1})
    with (tmp_path / "out.journal").open("ab") as journal:
        journal.write(b"000000")
    leave_part(tmp_path, {"3": 3})
    assert read_finished(output) == {"1": 1, "3": 3}


@pytest.mark.parametrize("damage", [b"no checksum\n", b"0000000g 1\n", b"\xff\xfe\n", b"\n"])
def test_a_damaged_journal_counts_for_nothing(damage: bytes, tmp_path: Path) -> None:
    output = leave_part(tmp_path, {"1": 1})
    with (tmp_path / "out.journal").open("ab") as journal:
        journal.write(damage)
    assert read_finished(output) == {}
    assert output.read_bytes() == bytes(8)


def test_other_work_begins_anew(tmp_path: Path) -> None:
    output = leave_part(tmp_path, {"1": 1})
    assert read_finished(output, "other work") == {}


@pytest.mark.parametrize("refusal", [QuantizeError("no"), OSError(28, "disk full")])
def test_a_refusal_leaves_nothing(refusal: Exception, tmp_path: Path) -> None:
    output = leave_part(tmp_path, {"1": 1})
    with pytest.raises(QuantizeError), open_part(output, 8, WORK):
        raise refusal
    assert not list(tmp_path.iterdir())


def test_a_run_that_comes_as_another_ends_does_not_touch_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.part"
    real = os.open

    def end_the_other_run_after(name: Path, *arguments: int) -> int:
        descriptor = real(name, *arguments)
        if name == path:
            path.rename(tmp_path / "out")
        return descriptor

    path.write_bytes(b"finished")
    monkeypatch.setattr(os, "open", end_the_other_run_after)
    with pytest.raises(OutputError, match="another run"), open_part(tmp_path / "out", 4, WORK):
        pass
    assert (tmp_path / "out").read_bytes() == b"finished"
