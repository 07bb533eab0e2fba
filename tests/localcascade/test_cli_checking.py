"""`run --check` and `--tutor`, `chat --practice`: what reaches stdout, stderr and the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localcascade.chat.tutor import load_tutor
from localcascade.cli import console
from localcascade.cli.app import run_arguments
from localcascade.cli.chat import choose_topic
from localcascade.cli.loading import Source
from localcascade.cli.opening import Openings
from localcascade.engine import client
from tests.localcascade.fake_engine import FakeEngine

ANSWER = "$12 + 7 = 19$, and 19 + 2 = 22.\n\n**Answer:** 22\n"


@pytest.fixture
def models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Engine", FakeEngine)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for name in ("sums", "short", "echo"):
        Path(f"{name}.gguf").touch()


def run(capsys: Any, model: str, *arguments: str) -> tuple[int, str, str]:
    code = run_arguments(["run", f"./{model}.gguf", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("models")
def test_findings_follow_the_answer_on_stderr(capsys: Any) -> None:
    code, out, err = run(capsys, "sums", "What is 12 + 7 + 2?", "--check", "--hide-thinking")
    assert (code, out) == (0, ANSWER)
    assert err == "✓ 1 step right · ✗ 1 wrong · answer ✗ wrong\n  ✗ 19 + 2 = 22\n"


@pytest.mark.usefixtures("models")
def test_an_answer_without_steps_is_said_to_have_none(capsys: Any) -> None:
    _, out, err = run(capsys, "short", "Which?", "--check")
    assert (out, err) == ("42\n", "There is no step to check in this answer.\n")


@pytest.mark.usefixtures("models")
def test_findings_are_in_the_json(capsys: Any) -> None:
    _, out, err = run(capsys, "sums", "What is 12 + 7?", "--check", "--json")
    told = json.loads(out)
    assert (told["answer"], err) == (ANSWER, "")
    assert told["checked"] == {
        "right": 1,
        "wrong": 1,
        "not_checked": 0,
        "steps": [
            {"left": "12 + 7", "right": "19", "stop": 12, "verdict": "right"},
            {"left": "19 + 2", "right": "22", "stop": 30, "verdict": "wrong"},
        ],
        "answer": {"text": "22", "verdict": "wrong"},
    }
    assert "checked" not in json.loads(run(capsys, "sums", "What?", "--json")[1])


@pytest.mark.usefixtures("models")
def test_without_sympy_plain_arithmetic_is_checked_and_a_note_says_so(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localcascade.maths.algebra.find_spec", lambda name: None)
    _, _, err = run(capsys, "sums", "What is 12 + 7 + 2?", "--check", "--hide-thinking")
    assert "pip install 'localcascade[maths]'" in err
    assert "✓ 1 step right · ✗ 1 wrong" in err


@pytest.mark.usefixtures("models")
def test_the_tutor_is_a_system_message_and_thinks_unseen(capsys: Any) -> None:
    _, out, _ = run(capsys, "echo", "Solve it", "--tutor", "--system", "Be brief.", "--no-log")
    system, question = json.loads(out)["messages"]
    assert system["content"] == f"Be brief.\n\n{load_tutor().system}"
    assert question["content"] == "Solve it"
    _, out, err = run(capsys, "sums", "Solve it", "--tutor", "--no-log")
    assert (out, err) == (ANSWER, "")


@pytest.mark.usefixtures("models")
def test_a_tutor_is_not_called_into_a_session(capsys: Any) -> None:
    run(capsys, "sums", "Solve it")
    code, _, err = run(capsys, "sums", "And now?", "--tutor", "-c")
    assert code == 2 and "--tutor" in err


def test_topics_are_found_by_the_beginning_of_a_word() -> None:
    assert choose_topic("all") == ""
    assert choose_topic("Deriv") == "Deriv"
    with pytest.raises(console.UsageError) as refused:
        choose_topic("astrology")
    assert "astrology" in refused.value.message and "Derivatives" in refused.value.hint


def test_the_setting_reaches_the_chat(home: Path) -> None:
    from localcascade.settings import find_settings_path

    find_settings_path().parent.mkdir(parents=True, exist_ok=True)
    for line, checks in (("", None), ("check_steps = false", False), ("check_steps = true", True)):
        find_settings_path().write_text(line)
        with Openings.open(Source()) as openings:
            assert openings.preferences.checks is checks
