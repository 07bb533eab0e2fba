"""`localcascade run --remote`, against a server on 127.0.0.1 that says what a test wants."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcascade.cli.app import run_arguments
from localcascade.history import History
from tests.localcascade.openai_server import Stub, refuse, say, serve, stream

KEY = "sk-very-secret"


@pytest.fixture
def stub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    stdin = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    with serve() as stub:
        stub.answer = lambda body: stream(say("<think>", "hm", "</think>", "It is 4."))
        yield stub


def test_the_answer_of_a_server_is_shown_and_kept(stub: Stub, capsys: Any) -> None:
    code = run_arguments(["run", "-", "What is 2 + 2?", "--remote", stub.url])
    out, err = capsys.readouterr()
    assert (code, out) == (0, "It is 4.\n")
    assert "hm" in err
    assert stub.bodies[0]["model"] == "stub"
    assert "authorization" not in stub.headers[0]
    history = History.open()
    leaf = history.find_session(None).leaf
    kept = history.path_to(leaf) if leaf else []
    history.close()
    assert [message.text for message in kept] == ["What is 2 + 2?", "It is 4."]


def test_the_key_comes_from_the_environment(
    stub: Stub, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALCASCADE_REMOTE_KEY", KEY)
    assert run_arguments(["run", "stub", "hi", "--remote", stub.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["thinking"]) == ("It is 4.", "hm")
    assert stub.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_refusals_have_their_exit_codes(stub: Stub, capsys: Any) -> None:
    def run(*arguments: str) -> int:
        return run_arguments(["run", *arguments, "--remote-key", KEY])

    assert run("other", "hi", "--remote", stub.url) == 3
    assert run("stub", "hi", "--remote", "nonsense") == 2
    assert run("stub", "hi", "--remote", stub.url, "--ctx", "512") == 2
    stub.answer = lambda body: refuse(401, f"no such key: {KEY}")
    assert run("stub", "hi", "--remote", stub.url) == 1
    elsewhere = ["run", "m", "hi", "--remote", "http://192.0.2.7", "--remote-key", KEY]
    assert run_arguments(["--offline", *elsewhere]) == 6
    out, err = capsys.readouterr()
    assert out == "" and KEY not in err
    assert err.count("error: ") == 5 and err.count("hint: ") == 5
