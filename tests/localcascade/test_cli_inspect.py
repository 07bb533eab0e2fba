"""`localcascade inspect`: a file written by the gguf package, as people and programs see it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localcascade.cli.app import run_arguments
from localcascade.cli.inspect import abbreviate_value

TEMPLATE = "{%- for message in messages %}\n" + "x" * 300
HOSTILE = "a\x1b]0;owned\x07\u202e[red]b"


@pytest.fixture
def file(home: Path) -> Path:
    path = home.parent / "work" / "model.gguf"
    writer = gguf.GGUFWriter(path, "nemotron_h_moe")
    writer.add_name(HOSTILE)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    writer.add_array("tokenizer.ggml.tokens", [f"token{i}" for i in range(5000)])
    writer.add_array("nemotron_h_moe.attention.head_count_kv", [0, 2, 0])
    writer.add_float32("nemotron_h_moe.attention.layer_norm_epsilon", 1e-5)
    writer.add_float32("test.nan", float("nan"))
    writer.add_bool("test.flag", True)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", np.zeros((10, 64), np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((4, 32, 68), np.uint8), raw_dtype=q8_0)
    writer.add_tensor("blk.0.ssm_a", np.zeros((8, 1), np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert run_arguments(["inspect", *arguments, "--json"]) == 0
    described: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    return described


def test_the_json_keeps_its_contract(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = read_json(capsys, str(file))
    # 640 f32, 8192 q8_0, 8 f32 and 64 f32 weights, counted by hand
    n_params, n_bytes = 640 + 8192 + 8 + 64, 2560 + 8704 + 32 + 256
    assert described["architecture"] == "nemotron_h_moe"
    assert described["file_bytes"] == file.stat().st_size
    assert described["n_params"] == n_params
    assert described["bits_per_weight"] == pytest.approx(8 * n_bytes / n_params)
    assert described["roles"]["experts"] == {
        "n_params": 8192, "bytes": 8704, "bits_per_weight": 8.5,
    }  # fmt: skip
    assert described["roles"]["mamba"]["bytes"] == 32
    assert described["roles"]["embeddings"]["bits_per_weight"] == 32
    assert sum(role["bytes"] for role in described["roles"].values()) == n_bytes
    assert described["types"] == {
        "q8_0": {"n_tensors": 1, "bytes": 8704},
        "f32": {"n_tensors": 3, "bytes": n_bytes - 8704},
    }
    assert "tensors" not in described


def test_the_json_holds_metadata_and_on_wish_tensors(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = read_json(capsys, str(file), "--tensors")
    metadata = described["metadata"]
    assert metadata["general.name"] == HOSTILE
    assert metadata["tokenizer.chat_template"] == TEMPLATE
    assert metadata["tokenizer.ggml.tokens"] == {"type": "str", "n": 5000}
    assert metadata["nemotron_h_moe.attention.head_count_kv"] == [0, 2, 0]
    assert metadata["test.nan"] == "nan"
    assert metadata["test.flag"] is True
    experts = described["tensors"][1]
    assert experts["name"] == "blk.0.ffn_up_exps.weight"
    assert (experts["type"], experts["shape"], experts["bytes"]) == ("q8_0", [4, 32, 64], 8704)
    assert file.read_bytes()[experts["offset"] :].count(0) >= 8704


def test_the_tables_say_the_same(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["inspect", "model.gguf"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["experts", "8.19K", "8.50", "KiB", "75.3%", "8.500"] in lines
    assert ["all", "8.90K", "11.3", "KiB", "100.0%", "10.379"] in lines
    assert ["q8_0", "1", "8.19K", "8.50", "KiB", "8.500"] in lines
    assert ["nemotron_h_moe.attention.head_count_kv", "3", "x", "i32:", "0,", "2,", "0"] in lines
    assert ["nemotron_h_moe.attention.layer_norm_epsilon", "1e-05"] in lines
    assert not any("ssm_a" in cell for line in lines for cell in line)


def test_tensors_are_listed_on_wish(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["inspect", "model.gguf", "--tensors"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["blk.0.ffn_up_exps.weight", "q8_0", "4", "x", "32", "x", "64", "8.50", "KiB"] in lines


def test_a_files_text_cannot_drive_the_terminal(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["inspect", "model.gguf"]) == 0
    text = capsys.readouterr().out
    assert "a\\x1b]0;owned\\x07\\u202e[red]b" in text
    assert "\x1b" not in text


def run_on_terminal(columns: int, *arguments: str, **variables: str) -> list[str]:
    """Run on a pseudo-terminal of that width; the lines it shows."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "localcascade", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", **variables}
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        shown = bytearray()
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            shown += piece
        process.wait()
    os.close(leader)
    return shown.decode().splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal_and_keeps_keys_whole(file: Path, columns: int) -> None:
    lines = run_on_terminal(columns, "inspect", "model.gguf", NO_COLOR="1")
    assert max(map(len, lines)) <= columns
    (line,) = [line for line in lines if line.startswith("nemotron_h_moe.attention.layer_norm")]
    assert line.split() == ["nemotron_h_moe.attention.layer_norm_epsilon", "1e-05"]
    (line,) = [line for line in lines if line.startswith("tokenizer.ggml.tokens")]
    assert line.endswith("…")


def test_colour_is_for_terminals_and_no_color_is_obeyed(file: Path) -> None:
    coloured = run_on_terminal(80, "inspect", "model.gguf")
    plain = run_on_terminal(80, "inspect", "model.gguf", NO_COLOR="1")
    assert any("\x1b[" in line for line in coloured)
    assert not any("\x1b" in line for line in plain)
    (error, hint) = run_on_terminal(80, "inspect", "missing.gguf")
    assert error.startswith("\x1b[1;31merror\x1b[0m: missing.gguf")
    assert hint.startswith("\x1b[1;36mhint\x1b[0m: ")


def test_a_truncated_file_is_refused_with_5(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:-4000])
    assert run_arguments(["inspect", "model.gguf", "--json"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "truncated" in captured.err
    assert captured.err.startswith("error: model.gguf: byte ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (7, "7"),
        (131072, "131072"),
        (float(np.float32(1e-5)), "1e-05"),
        (0.95, "0.95"),
        ("two\nlines", "two\\nlines"),
        ("x" * 120, "x" * 120),
        ("x" * 121, f"121 characters: {'x' * 120} …"),
    ],
)
def test_a_value_is_put_on_one_line(value: str | float, text: str) -> None:
    assert abbreviate_value(value) == text
