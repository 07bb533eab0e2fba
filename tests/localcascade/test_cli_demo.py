"""`localcascade demo`, and the bundled model asked for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localcascade.cli.app import run_arguments
from localcascade.engine import client
from localcascade.store import bundled_model_path, find_model
from quantize.gguf import open_gguf
from tests.localcascade import fake_engine

QUESTION = "What is 347 + 586?"


def run_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command, as a person would."""
    return subprocess.run(
        [sys.executable, "-c", "from localcascade.cli.app import main; main()", *arguments],
        env={**os.environ, "LOCALCASCADE_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("347 + 586 = 933", "is right."), ("It is 943.", "is wrong: it should be 933")],
)
def test_the_demo_quantizes_asks_and_judges(
    home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, answer: str, verdict: str
) -> None:
    monkeypatch.setattr(client, "Engine", fake_engine.FakeEngine)
    pieces = ("?ones: ", "?7 + 6\n", answer)
    name = bundled_model_path("tiny").stem
    monkeypatch.setitem(fake_engine.SCRIPTS, name, lambda: fake_engine.say(*pieces))
    assert run_arguments(["demo"]) == 0
    captured = capsys.readouterr()
    told = captured.err
    assert captured.out == f"{answer}\n"
    assert verdict in told
    assert "ones: 7 + 6\n" in told
    assert QUESTION in told
    assert "6 a second" in told
    file_bytes = find_model("tiny").stat().st_size
    assert f"{file_bytes / 2**20:.2f} MiB" in told
    with open_gguf(find_model("tiny")) as file:
        assert file.metadata["general.name"] == "tiny"


def test_the_demo_and_then_a_question_of_ones_own(home: Path) -> None:
    """The real engine and the real model: the one test of the whole path."""
    demo = run_command(home, "demo")
    assert (demo.returncode, demo.stdout) == (0, "347 + 586 = 933\n")
    assert "The answer is right" in demo.stderr

    asked = run_command(home, "run", "tiny", QUESTION, "--temperature", "0", "--json")
    told = json.loads(asked.stdout)
    assert told["answer"] == "347 + 586 = 933"
    assert told["finish_reason"] == "stop"
    assert "7+6=13" in told["thinking"]
    assert told["thinking"] in demo.stderr
    assert 0 < told["usage"]["thinking_tokens"] < told["usage"]["completion_tokens"]

    instruct = run_command(home, "run", "tiny", "Hello!", "--no-think", "--json")
    told = json.loads(instruct.stdout)
    assert told["answer"]
    assert (told["thinking"], told["usage"]["thinking_tokens"]) == ("", 0)
