"""`localcascade inspect --experts`: the table of experts as people and programs see it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import pytest

from localcascade.cli.app import run_arguments
from quantize.expert_errors import describe_experts
from quantize.gguf import TensorSpec, plan_file
from quantize.heat_map import COLOURS, UNKNOWN_COLOUR
from quantize.quality import Quality, record_quality, reserve_quality

UP, DOWN = "blk.3.ffn_up_exps.weight", "blk.3.ffn_down_exps.weight"
N_EXPERTS = 128


@pytest.fixture
def file(home: Path) -> Path:
    """A model of one layer; the errors of `up` rise with the expert, one is unknown."""
    rising = [0.001 * (i + 1) for i in range(N_EXPERTS)]
    rising[7] = math.nan
    entries = describe_experts(
        {UP: N_EXPERTS, DOWN: N_EXPERTS},
        {UP: [100 + i for i in range(N_EXPERTS)], DOWN: [0] * N_EXPERTS},
        {UP: rising, DOWN: [0.064] * N_EXPERTS},
    )
    plan = plan_file(
        [("general.architecture", "nemotron_h_moe", "str"), *entries, *reserve_quality()],
        [TensorSpec(UP, (N_EXPERTS, 2, 64), 42), TensorSpec(DOWN, (N_EXPERTS, 2, 64), 8)],
    )
    path = home.parent / "work" / "model.gguf"
    path.write_bytes(plan.header.ljust(plan.file_bytes, b"\0"))
    return path


def test_json_lists_every_matrix_of_every_expert(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["inspect", str(file), "--experts", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    experts = described["experts"]
    assert len(experts) == 2 * N_EXPERTS
    assert experts[0] == {
        "layer": 3, "expert": 0, "projection": "down", "samples": 0, "type": "q8_0",
        "error": pytest.approx(0.064),
    }  # fmt: skip
    assert experts[N_EXPERTS + 9]["error"] == pytest.approx(0.010)
    assert (experts[N_EXPERTS + 9]["samples"], experts[N_EXPERTS + 9]["type"]) == (109, "q2_0")
    assert experts[N_EXPERTS + 7]["error"] is None
    assert described["quality"] is None
    assert described["architecture"] == "nemotron_h_moe"


def test_json_has_no_experts_unless_asked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["inspect", str(file), "--json"]) == 0
    assert "experts" not in json.loads(capsys.readouterr().out)


def test_a_pipe_gets_one_character_for_each_expert(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["inspect", str(file), "--experts"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    rows = [line.split() for line in output.splitlines() if line.split()[:1] == ["3"]]
    down, up = rows
    assert down[1] == "q8_0"
    assert up[1] == "q2_0"
    assert (len(down[2]), len(up[2])) == (N_EXPERTS, N_EXPERTS)
    assert len(set(down[2])) == 1
    assert up[2][7] == "?"
    order = ".,:;+=*%#@"
    steps = [order.index(sign) for sign in up[2].replace("?", "")]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 9)
    assert down[3:] == ["0.0640", "0"]
    # mean of 1 .. 128 thousandths without 8
    assert up[3:] == [f"{(128 * 129 / 2 - 8) / 127 / 1000:#.3g}", "100"]


def run_in_terminal(columns: int, *arguments: str, **variables: str) -> str:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", **variables}
    command = [sys.executable, "-m", "localcascade", "inspect", *arguments]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        output = b""
        while chunk := _read(master):
            output += chunk
        assert process.wait() == 0, output
    os.close(master)
    return output.decode()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_a_terminal_gets_two_experts_in_each_block(file: Path) -> None:
    output = run_in_terminal(120, str(file), "--experts")
    line = next(line for line in output.splitlines() if "q2_0" in line)
    assert line.count("▌") == N_EXPERTS // 2

    def escape(colour: str) -> str:
        return ";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))

    # experts 0 and 1 lie in the lowest tenth, 126 and 127 in the highest, 7 is unknown
    assert f"38;2;{escape(COLOURS[0])};48;2;{escape(COLOURS[0])}" in line
    assert f"38;2;{escape(COLOURS[9])};48;2;{escape(COLOURS[9])}" in line
    assert f"48;2;{escape(UNKNOWN_COLOUR)}" in line
    widths = [len(re.sub(r"\x1b\[[0-9;]*m", "", text)) for text in output.splitlines()]
    assert max(widths) <= 120


def test_a_narrow_terminal_without_colour_joins_neighbours(file: Path) -> None:
    output = run_in_terminal(80, str(file), "--experts", NO_COLOR="1")
    assert "\x1b" not in output
    assert "the worst of 4 neighbours" in " ".join(output.split())
    line = next(line.split() for line in output.splitlines() if "q2_0" in line)
    assert len(line[2]) == N_EXPERTS // 4
    assert "?" not in line[2]
    assert max(map(len, output.splitlines())) <= 80


def test_the_svg_is_written_and_parses(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = file.with_name("experts.svg")
    assert run_arguments(["inspect", str(file), "--svg", str(drawing)]) == 0
    root = ElementTree.fromstring(drawing.read_text())
    assert root.find("{http://www.w3.org/2000/svg}text").text == "model.gguf"  # type: ignore[union-attr]
    assert "experts 0 to 127" in capsys.readouterr().out


def test_a_file_without_table_says_what_to_do(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_file([], [TensorSpec(UP, (N_EXPERTS, 2, 64), 42)])
    file.write_bytes(plan.header.ljust(plan.file_bytes, b"\0"))
    assert run_arguments(["inspect", str(file), "--experts", "--svg", "no.svg"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "does not say what encoding cost its experts" in captured.err
    assert "hint: Convert the model with `localcascade quantize`" in captured.err
    assert not Path("no.svg").exists()


def test_measured_quality_is_shown_and_in_the_json(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_quality(file, Quality(0.015625, 0.25, 0.96875, 4096, "nc2.gguf", "wiki.txt"))
    assert run_arguments(["inspect", str(file)]) == 0
    output = capsys.readouterr().out
    assert "KL divergence 0.01562 on average, 0.25 at 99 %, same best token 96.9%" in output
    assert "4,096 tokens of wiki.txt against nc2.gguf" in output
    assert run_arguments(["inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"] == {
        "mean_kl": 0.015625, "p99_kl": 0.25, "same_top1": 0.96875, "n_tokens": 4096,
        "reference": "nc2.gguf", "text": "wiki.txt",
    }  # fmt: skip
