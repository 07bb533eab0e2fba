"""`localcascade session`, and what `run` leaves in the history."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localcascade.cli.app import run_arguments
from localcascade.engine import client
from localcascade.history import History, find_history_path
from tests.localcascade.fake_engine import SCRIPTS, FakeEngine

ROOT = Path(__file__).parents[2]


class Command:
    """Runs a command line in this process; stdin is a terminal unless bytes are given."""

    def __init__(self, capsys: Any, monkeypatch: Any) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.code, self.out, self.err = 0, "", ""

    def __call__(self, *arguments: str, piped: bytes | None = None, typed: bytes = b"") -> str:
        stdin = io.TextIOWrapper(io.BytesIO(typed if piped is None else piped))
        self._monkeypatch.setattr(stdin, "isatty", lambda: piped is None, raising=False)
        self._monkeypatch.setattr(sys, "stdin", stdin)
        self.code = run_arguments(arguments)
        self.out, self.err = self._capsys.readouterr()
        return self.out

    def told(self, *arguments: str, piped: bytes | None = None) -> Any:
        return json.loads(self(*arguments, "--json", piped=piped))


@pytest.fixture
def do(home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in (*SCRIPTS, "echo", "stall"):
        Path(f"{name}.gguf").touch()
    monkeypatch.setattr(client, "Engine", FakeEngine)
    return Command(capsys, monkeypatch)


def read_messages(told: Any) -> list[dict[str, str]]:
    """What the echoing engine was asked."""
    messages: list[dict[str, str]] = json.loads(told["answer"])["messages"]
    return messages


def test_a_turn_is_kept_whole(do: Command) -> None:
    id = do.told("run", "plain.gguf", "hi\nthere", "--temperature", "0", "--seed", "7")["session"]
    with History.open() as history:
        question, answer = history.export(id).messages
        assert history.find_session(None).title == "hi"
    assert (question.role, question.text) == ("user", "hi\nthere")
    assert (answer.thinking, answer.text) == ("Let me see.\n\n", "Forty-two\n\nand é\n\n\n")
    assert (answer.state, answer.parent) == ("complete", question.id)
    assert answer.sampling == {
        "temperature": 0.0, "seed": 7, "frequency_penalty": 0.0, "presence_penalty": 0.0
    }  # fmt: skip
    assert answer.timings["tokens_per_s"] == 6.0
    assert answer.timings["completion_tokens"] == 6
    assert (answer.model.name, answer.model.file) == ("plain", str(Path("plain.gguf").absolute()))


def test_tool_calls_are_kept(do: Command) -> None:
    id = do.told("run", "calls.gguf", "hi")["session"]
    with History.open() as history:
        answer = history.export(id).messages[-1]
    function = {"name": "f", "arguments": {"a": 1}}
    assert answer.tool_calls == ({"id": "call_1", "type": "function", "function": function},)


def test_what_a_tutor_thought_is_shown_only_where_it_is_asked_for(do: Command) -> None:
    with History.open() as history:
        id = history.create_session("lesson").id
        history.append(
            id, None, "assistant", "Try a substitution.", thinking="The answer is seventeen.",
            sampling={"sealed": True},
        )  # fmt: skip
    assert "seventeen" in do("session", "show", id, "--thinking")
    for command in (
        ("show", id),
        ("search", "seventeen"),
        ("export", id),
        ("export", id, "--format", "latex"),
    ):
        assert "seventeen" not in do("session", *command)
    assert "substitution" in do("session", "search", "substitution")
    assert "seventeen" in do("session", "export", id, "--format", "json")


def test_going_on_sends_what_was_said(do: Command) -> None:
    first = do.told("run", "short.gguf", "one", "--system", "Be short.")["session"]
    other = do.told("run", "short.gguf", "other")["session"]
    told = do.told("run", "echo.gguf", "--session", first[:10], piped=b"two")
    assert told["session"] == first != other
    assert read_messages(told) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "two"},
    ]
    again = do.told("run", "echo.gguf", "-c", "three")
    assert again["session"] == first
    assert [m["content"] for m in read_messages(again)][-1] == "three"
    assert len(read_messages(again)) == 6


def test_a_question_that_was_never_answered_is_not_asked_again(do: Command) -> None:
    do("run", "full.gguf", "unanswered")
    assert read_messages(do.told("run", "echo.gguf", "-c", "next")) == [
        {"role": "user", "content": "next"}
    ]
    (session,) = do.told("session", "ls")["sessions"]
    with History.open() as history:
        failed = history.read_tree(session["id"])[1]
    assert (failed.state, failed.note) == (
        "failed",
        "the prompt has 99 tokens, the context holds 64",
    )


def test_what_is_not_to_be_kept_is_not(do: Command) -> None:
    assert do.told("run", "short.gguf", "secret", "--no-log")["session"] is None
    assert not find_history_path().exists()
    do("run", "short.gguf", "one")
    told = do.told("run", "echo.gguf", "-c", "secret", "--no-log")
    assert len(read_messages(told)) == 3
    assert told["session"] is None
    assert do.told("session", "search", "secret")["matches"] == []


def test_what_an_interrupted_answer_had_said_is_kept(do: Command) -> None:
    command = [sys.executable, "-m", "tests.localcascade.fake_engine", "run"]
    process = subprocess.Popen(
        [*command, str(Path("stall.gguf").absolute()), "hi"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(7) == b"partial"
    while not Path("stalled").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    with History.open() as history:
        answer = history.export(history.find_session(None).id).messages[-1]
    assert (answer.thinking, answer.text) == ("hm\n", "partial\n\n")
    assert answer.state == "stopped"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-c"], 3),
        (["--session", "abc"], 3),
        (["--session", ""], 2),
        (["-c", "--session", "abc"], 2),
        (["-c", "--system", "x"], 2),
    ],
)
def test_sessions_that_cannot_be_gone_on_with(do: Command, arguments: list[str], code: int) -> None:
    do("run", "short.gguf", "hi", *arguments)
    assert (do.code, do.out) == (code, "")
    assert "hint: " in do.err


def test_an_answer_needs_no_history(do: Command) -> None:
    find_history_path().parent.mkdir(parents=True)
    find_history_path().write_bytes(b"no database" * 100)
    assert do("run", "short.gguf", "hi") == "42\n"
    assert do.code == 0
    assert "note: this is not kept in the history: " in do.err
    do("run", "short.gguf", "-c", "hi")
    assert (do.code, do.out) == (5, "")
    assert "damaged" in do.err


def test_listing_and_showing(do: Command) -> None:
    assert do.told("session", "ls") == {"sessions": []}
    id = do.told("run", "plain.gguf", "What is \x1b[2J it?")["session"]
    do("session", "ls")
    assert do.out.splitlines()[1].split()[0] == id[:8]
    assert "What is \\x1b[2J it?" in do.out
    assert "Let me see." not in do("session", "show", id[:6])
    assert "Forty-two" in do.out
    assert "> Let me see." in do("session", "show", id[:6], "--thinking")
    told = do.told("session", "show", id)
    assert [m["role"] for m in told["messages"]] == ["user", "assistant"]
    do("session", "show", "zzz")
    assert do.code == 3


def test_searching(do: Command) -> None:
    id = do.told("run", "plain.gguf", "hi")["session"]
    (match,) = do.told("session", "search", "forty")["matches"]
    assert (match["session"], match["in_thinking"]) == (id, False)
    assert match["snippet"][1] == "Forty"
    assert do("session", "search", "let me").splitlines() == [
        f"{id[:8]}  hi (assistant, thinking)", "    Let me see."
    ]  # fmt: skip
    assert do("session", "search", "nowhere") == ""
    assert (do.code, do.err) == (0, "Nothing was found.\n")


def test_exporting(do: Command) -> None:
    ids = [do.told("run", "plain.gguf", f"question {i}")["session"] for i in range(2)]
    for name, start in (("a.md", "# question 0"), ("a.tex", "% Compiles"), ("a.json", "{")):
        do("session", "export", ids[0], "-o", name)
        assert (do.code, do.out) == (0, "")
        assert Path(name).read_text("utf-8").startswith(start)
    do("session", "export", "--all", "-o", "all.json")
    told = json.loads(Path("all.json").read_text("utf-8"))["sessions"]
    assert [each["id"] for each in told] == ids[::-1]
    assert told[0]["messages"][1]["thinking"] == "Let me see.\n\n"
    for wrong in ([], [ids[0], "--all"], ["--all", "--format", "latex"]):
        do("session", "export", *wrong)
        assert do.code == 2
    before = Path("a.md").read_bytes()
    do("session", "export", "zzz", "-o", "a.md")
    assert (do.code, Path("a.md").read_bytes()) == (3, before)


def test_of_a_damaged_history_the_rest_is_exported(do: Command) -> None:
    with History.open() as history:
        session = history.create_session("kept").id
        for i in range(300):
            history.append(session, None, "user", f"{i} " + "word " * 100)
    path = find_history_path()
    data = bytearray(path.read_bytes())
    for page in range(20 * 4096, len(data) - 4096, 9 * 4096):
        data[page : page + 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    do("session", "export", "--all", "-o", "saved.json")
    assert do.code == 5
    (told,) = json.loads(Path("saved.json").read_text("utf-8"))["sessions"]
    assert 150 < len(told["messages"]) < 300
    assert f"1 sessions with {len(told['messages'])} messages were read" in do.err
    assert path.read_bytes() == data


def test_removing(do: Command) -> None:
    ids = [do.told("run", "short.gguf", "hi")["session"] for _ in range(3)]
    do("session", "rm", ids[0], piped=b"")
    assert (do.code, do.out) == (2, "")
    do("session", "rm", ids[0], typed=b"n\n")
    assert do.code == 1
    do("session", "rm", ids[0], "zzz", "--yes")
    assert do.code == 3
    assert len(do.told("session", "ls")["sessions"]) == 3
    do("session", "rm", ids[0], typed=b"y\n")
    assert (do.code, do.out) == (0, f"removed {ids[0][:8]}\n")
    assert do.told("session", "rm", ids[1], ids[1], "--yes") == {"removed": [ids[1]]}
    assert [each["id"] for each in do.told("session", "ls")["sessions"]] == [ids[2]]
