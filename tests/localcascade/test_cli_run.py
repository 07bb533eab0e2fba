"""`localcascade run`: what reaches stdout, stderr and the shell, with an engine of our making."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from localcascade.cli.app import run_arguments
from localcascade.engine import client
from localcascade.prompt.events import Sampling
from tests.localcascade.fake_engine import SCRIPTS, FakeEngine
from tests.localcascade.terminal import replay

ROOT = Path(__file__).parents[2]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Command:
    """Runs the command in this process; stdin is a person at a terminal unless bytes are given."""

    def __init__(self, capsys: Any, monkeypatch: Any) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, model: str, *arguments: str, piped: bytes | None = None) -> Result:
        stdin = io.TextIOWrapper(io.BytesIO(piped or b""), "ascii")
        self._monkeypatch.setattr(stdin, "isatty", lambda: piped is None, raising=False)
        self._monkeypatch.setattr(sys, "stdin", stdin)
        code = run_arguments(["run", f"./{model}.gguf", *arguments])
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture
def models(home: Path) -> Path:
    """The working folder, with a file for every script of the fake engine."""
    for name in (*SCRIPTS, "echo", "stall"):
        Path(f"{name}.gguf").touch()
    return Path.cwd()


@pytest.fixture
def run(models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(client, "Engine", FakeEngine)
    return Command(capsys, monkeypatch)


def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Run the command with the fake engine in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.localcascade.fake_engine", *arguments],
        cwd=ROOT,
        **{"stdin": subprocess.DEVNULL, **streams},
    )


def test_the_answer_is_on_stdout_and_thinking_on_stderr(run: Command) -> None:
    result = run("plain", "hi")
    assert result.code == 0
    assert result.out == "Forty-two\n\nand é\n"  # exactly one newline at the end
    assert result.err == "Let me see.\n"
    assert run("short", "hi").out == "42\n"


def test_thinking_again_keeps_the_answer_whole(run: Command) -> None:
    result = run("again", "hi")
    assert (result.out, result.err) == ("b\nd\n", "a\nc\n")


def test_thinking_can_be_hidden(run: Command) -> None:
    result = run("plain", "hi", "--hide-thinking")
    assert (result.out, result.err) == ("Forty-two\n\nand é\n", "")


def test_json_is_one_object_with_the_promised_keys(run: Command) -> None:
    result = run("plain", "hi", "--json")
    assert result.err == ""
    told = json.loads(result.out)
    assert re.fullmatch(r"[0-9a-f]{16}", told.pop("session"))
    assert told == {
        "model": "./plain.gguf",
        "answer": "Forty-two\n\nand é\n\n\n",
        "thinking": "Let me see.\n\n",
        "finish_reason": "stop",
        "tool_calls": [],
        "usage": {
            "prompt_tokens": 10,
            "reused_tokens": 4,
            "thinking_tokens": 2,
            "completion_tokens": 6,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        },
        "timings": {"load_s": 0.5, "prompt_s": 0.25, "generation_s": 1.0, "tokens_per_s": 6.0},
    }


def test_json_tells_tool_calls(run: Command) -> None:
    told = json.loads(run("calls", "hi", "--json").out)
    assert told["tool_calls"] == [{"id": "call_1", "name": "f", "arguments": {"a": 1}}]
    assert told["finish_reason"] == "tool_calls"


UNASKED = json.loads(json.dumps(asdict(Sampling())))


def test_options_reach_the_request(run: Command) -> None:
    options = (
        "--no-think --max-tokens 5 --temperature 0 --top-p 0.5 --seed 7 --system Short. --ctx 128"
    )
    told = json.loads(run("echo", "hi", *options.split()).out)
    assert told["messages"] == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "hi"},
    ]
    assert told["thinking"] is False
    assert told["n_ctx"] == 128
    given = {key: value for key, value in told["sampling"].items() if value != UNASKED[key]}
    assert given == {"temperature": 0, "top_p": 0.5, "seed": 7, "max_tokens": 5}


def test_without_options_the_model_decides(run: Command) -> None:
    told = json.loads(run("echo", "hi").out)
    assert told["thinking"] is True
    assert told["n_ctx"] is None
    assert told["sampling"] == UNASKED


@pytest.mark.parametrize(
    ("arguments", "piped", "content"),
    [
        (["ask"], "context é\n".encode(), "context é\n\nask"),
        ([], b"\n  a\n\n b\n", "  a\n\n b"),
        (["ask"], b" \n", "ask"),
        (["ask"], b"\xef\xbb\xbfbom", "bom\n\nask"),
    ],
)
def test_what_is_piped_in_comes_first(
    run: Command, arguments: list[str], piped: bytes, content: str
) -> None:
    told = json.loads(run("echo", *arguments, piped=piped).out)
    assert told["messages"] == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("arguments", "piped", "complaint"),
    [
        ([], None, "no prompt"),
        ([" "], b"\n", "no prompt"),
        (["ask"], b"ab\xff", "byte 2 is 0xff"),
        (["ask", "--temperature", "-1"], None, "--temperature"),
        (["ask", "--top-p", "2"], None, "--top-p"),
        (["ask", "--max-tokens", "0"], None, "--max-tokens"),
        (["ask", "--ctx", "many"], None, "--ctx"),
    ],
)
def test_misuse_is_told_with_exit_code_2(
    run: Command, arguments: list[str], piped: bytes | None, complaint: str
) -> None:
    result = run("short", *arguments, piped=piped)
    assert (result.code, result.out) == (2, "")
    assert complaint in result.err
    assert "hint: " in result.err


@pytest.mark.parametrize(
    ("model", "arguments", "note"),
    [
        ("cut", ["--max-tokens", "6"], "note: stopped after 6 tokens; raise --max-tokens"),
        ("cut", ["--max-tokens", "7"], "note: the context is full after 16 tokens; raise --ctx"),
        ("cut", [], "raise --ctx"),
        ("empty", [], "still thinking"),
    ],
)
def test_a_limit_is_told_with_the_option_to_change(
    run: Command, model: str, arguments: list[str], note: str
) -> None:
    result = run(model, "hi", *arguments)
    assert result.code == 0
    assert note in result.err
    assert result.out == ("" if model == "empty" else "so far\n")


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("full", 1, "the prompt has 99 tokens, the context holds 64\nhint: "),
        ("died", 1, "the engine died"),
        ("template", 5, "line 3: loops\nhint: Try another."),
        ("nothing", 1, "in the middle of a turn"),
        ("absent", 3, "absent.gguf"),
    ],
)
def test_failures_are_told_by_code_and_in_words(
    run: Command, model: str, code: int, message: str
) -> None:
    result = run(model, "hi")
    assert result.code == code
    assert f"error: {message}" in result.err or message in result.err
    assert "Traceback" not in result.err
    assert result.out == ("half\n" if model == "died" else "")  # what was written stays
    assert run(model, "hi", "--json").out == ""


def read_terminal(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and all that a terminal would have received, stdout and stderr alike."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **variables}
    process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    received = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        received += piece
    os.close(ours)
    return process.wait(), received.decode()


def test_a_terminal_sees_dimmed_thinking_and_a_waiting_line(models: Path) -> None:
    code, screen = read_terminal("run", f"{models}/plain.gguf", "hi")
    assert code == 0
    assert "\rLoading: 50 %" in screen
    assert "Reading the prompt: 10/10 tokens" in screen
    after = screen[screen.index("\x1b[2m") :]
    assert after.startswith("\x1b[2mLet me \x1b[0m\x1b[2msee.\x1b[0m\r\n\r\n")
    assert replay(after) == ["Let me see.", "", "Forty-two", "", "and é", ""]


def test_no_color_leaves_no_escape_codes(models: Path) -> None:
    _, screen = read_terminal("run", f"{models}/plain.gguf", "hi", NO_COLOR="1")
    assert "\x1b" not in screen
    assert "Let me see.\r\n\r\nForty-two" in screen


def test_control_characters_do_not_reach_a_terminal(models: Path) -> None:
    _, screen = read_terminal("run", f"{models}/rude.gguf", "hi", NO_COLOR="1")
    assert "\\x1b[2Jt" in screen
    assert "a\\x1b]0;title\\x07\\x0db" in screen
    assert "\x1b" not in screen


def test_a_pipe_gets_the_models_bytes_as_they_are(run: Command) -> None:
    assert run("rude", "hi").out == "a\x1b]0;title\x07\rb\n"


def test_interrupting_keeps_what_was_written(models: Path) -> None:
    process = start(
        "run", f"{models}/stall.gguf", "hi", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(7) == b"partial"
    while not (models / "stalled").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert (process.returncode, rest, errors) == (130, b"\n", b"hm\n")
    assert (models / "engine-closed").exists()


def test_a_reader_that_leaves_is_no_failure(models: Path) -> None:
    process = start(
        "run", f"{models}/repeat.gguf", "hi", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(120) == 0
    assert (models / "engine-closed").exists()


def test_characters_that_a_terminal_does_not_know_become_question_marks(models: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start(
        "run", f"{models}/plain.gguf", "hi",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, b"Forty-two\n\nand ?\n")


def test_loading_and_thinking_options_reach_the_engine(run: Command) -> None:
    loading = ["--kv", "q8_0", "--threads", "3", "--gpu-layers", "-1", "--cpu-experts", "2"]
    thinking = ["--think-tokens", "70", "--think-seconds", "1.5", "--stop", "END", "--stop", "."]
    heard = json.loads(run("echo", "hi", *loading, "--mlock", "--no-mmap", *thinking).out)
    assert (heard["cache_type"], heard["n_threads"]) == ("q8_0", 3)
    assert (heard["n_gpu_layers"], heard["n_cpu_expert_layers"]) == (-1, 2)
    assert (heard["use_mlock"], heard["use_mmap"]) == (True, False)
    assert heard["thinking_budget"]["tokens"] == 70
    assert heard["thinking_budget"]["seconds"] == 1.5
    assert heard["sampling"]["stop"] == ["END", "."]


def test_without_options_nothing_is_pinned(run: Command) -> None:
    heard = json.loads(run("echo", "hi").out)
    assert heard["thinking_budget"] is None
    assert not {"cache_type", "n_threads", "use_mmap"} & set(heard)
