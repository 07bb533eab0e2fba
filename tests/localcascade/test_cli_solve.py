"""`localcascade solve`: chains vote, the rest is stopped, and what is told of it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from localcascade.cli.app import run_arguments
from localcascade.engine import client
from localcascade.engine.wire import ModelInfo
from localcascade.errors import EngineDied
from localcascade.prompt.events import ChatRequest, Delta, Done, Event, Failed, Timings, Usage


class VotingEngine:
    """Gives the answers that it is told, one chain after the other."""

    answers: ClassVar[list[str]] = []
    requests: ClassVar[list[ChatRequest]] = []
    options: ClassVar[dict[str, Any]] = {}
    n_generated: ClassVar[int] = 0

    def __init__(self, path: Path, **options: Any) -> None:
        VotingEngine.options = options

    def load(self, on_progress: Any) -> ModelInfo:
        return ModelInfo("voting", 64, 64, 10, 0.5, ("CPU",))

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        self.requests.append(request)
        for index in reversed(range(request.n)):
            VotingEngine.n_generated += 1
            yield Delta(r"perhaps \boxed{7}", "thinking", index)
            if self.answers[index] == "die":
                yield Failed(EngineDied("the engine died"))
                return
            yield Delta(self.answers[index], "answer", index)
            yield Done("stop", Usage(9, 0, 3, 5), Timings(0, 0, 0, 0), index)

    def close(self) -> None:
        pass

    def __enter__(self) -> VotingEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture(autouse=True)
def engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Engine", VotingEngine)
    VotingEngine.requests, VotingEngine.n_generated = [], 0
    Path("m.gguf").touch()
    stdin = io.TextIOWrapper(io.BytesIO(b""), "utf-8")
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)


def solve(answers: list[str], *arguments: str) -> int:
    VotingEngine.answers = answers
    return run_arguments(["solve", *arguments, "-m", "./m.gguf", "-k", str(len(answers))])


def test_the_majority_is_on_stdout_and_the_agreement_on_stderr(capsys: Any) -> None:
    assert solve(["= 0.5", r"\boxed{\frac{1}{2}}", r"\boxed{3}", "hm"], "How much?", "--all") == 0
    out, err = capsys.readouterr()
    assert out == "\\frac{1}{2}\n"
    assert err == "note: 2 of 4 chains agree; others: 3 (1)\n"


def test_chains_that_cannot_change_the_answer_are_stopped(capsys: Any) -> None:
    assert solve(["1", "1", "2", "2", "2", "2", "2"], "How much?", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["problems"]
    assert VotingEngine.n_generated == 4  # of seven, four agree
    assert (told["answer"], told["votes"], told["chains_ended"]) == ("2", 4, 4)
    assert told["stopped_early"]
    assert [chain["index"] for chain in told["chains"]] == [6, 5, 4, 3]


def test_a_tie_is_told(capsys: Any) -> None:
    assert solve(["1", "2"], "How much?") == 0
    assert capsys.readouterr().err == "note: a tie: 1 of 2 chains each; others: 1 (1)\n"


def test_the_majority_is_put_into_the_problem(capsys: Any) -> None:
    assert solve(["x = 2", "2", "5"], "Solve $2x + 3 = 7$.", "--all") == 0
    assert capsys.readouterr().err.endswith("; put into the problem, it is right\n")
    assert solve(["3", "3"], "Solve $2x + 3 = 7$.", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["problems"]
    assert (told["answer"], told["checked"]) == ("3", "wrong")
    assert solve(["3", "3"], "How much?", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["problems"]
    assert told["checked"] == "not checked"


def test_the_request_asks_for_all_chains_at_once() -> None:
    solve(["1"] * 6, "How much?", "--budget", "9000", "--seed", "3", "--temperature", "0.7")
    (request,) = VotingEngine.requests
    assert request.n == 6
    assert request.messages[0]["content"].startswith("How much?\n\n")
    assert request.thinking_budget is not None
    assert request.thinking_budget.tokens == 9000
    assert (request.sampling.seed, request.sampling.temperature) == (3, 0.7)
    assert VotingEngine.options["n_parallel"] == 4
    assert VotingEngine.options["n_ctx"] == 4 * (9000 + 2048)


def test_a_file_holds_several_problems(capsys: Any) -> None:
    Path("many.txt").write_text("One?\nIt is short.\n---\nTwo?\n\n---\n")
    assert solve(["4"], "many.txt") == 0
    asked = [request.messages[0]["content"] for request in VotingEngine.requests]
    assert [text.split("\n\n")[0] for text in asked] == ["One?\nIt is short.", "Two?"]
    assert capsys.readouterr().out == "4\n4\n"


def test_json_lines_may_know_the_answer(capsys: Any) -> None:
    lines = [{"id": 7, "question": "2+2?", "answer": 4}, {"problem": "3+3?", "answer": "6.0"}]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert solve(["Answer: 4.0"], "many.jsonl", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["problems"]
    assert (first["id"], first["correct"]) == ("7", True)
    assert (second["expected"], second["correct"]) == ("6.0", False)


def test_a_bad_line_is_named(capsys: Any) -> None:
    Path("bad.jsonl").write_text('{"problem": "2+2?"}\n{"task": 1}\n')
    assert solve(["4"], "bad.jsonl") == 2
    assert "bad.jsonl: line 2 has no problem" in capsys.readouterr().err
    assert solve(["4"], "none.txt") == 1
    assert "none.txt: No such file" in capsys.readouterr().err


def test_no_problem_is_a_usage_error(capsys: Any) -> None:
    assert solve(["4"]) == 2
    assert "no problem to solve" in capsys.readouterr().err


def test_an_engine_that_dies_is_an_error(capsys: Any) -> None:
    assert solve(["4", "die", "4"], "How much?", "--all") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the engine died" in err
