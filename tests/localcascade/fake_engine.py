"""An engine without a model: what it says depends on the name of the file it is given.

Run as a script it is the `localcascade` command with this engine in place of the real one.
"""

from __future__ import annotations

import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from localcascade.engine.wire import ModelInfo
from localcascade.errors import ContextFull, EngineDied, TemplateError
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    Failed,
    FinishReason,
    PromptProgress,
    Timings,
    ToolCall,
    Usage,
)


class FakeEngine:
    """Has of Engine what the command line uses."""

    def __init__(self, path: Path, *, n_ctx: int | None = None, **options: Any) -> None:
        self.path, self.n_ctx, self.options = path, n_ctx, options

    def load(self, on_progress: Callable[[str, int, int], None] | None = None) -> ModelInfo:
        if on_progress:
            on_progress("load", 50, 100)
        return ModelInfo(self.path.stem, self.n_ctx or 64, 64, 10, 0.5, ("CPU",))

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        if self.path.stem == "echo":
            return iter([Delta(self._describe(request), "answer"), end(1)])
        if self.path.stem == "stall":
            return stall(self.path.parent / "stalled")
        return SCRIPTS[self.path.stem]()

    def close(self) -> None:
        (self.path.parent / "engine-closed").touch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _describe(self, request: ChatRequest) -> str:
        return json.dumps({**asdict(request), "n_ctx": self.n_ctx, **self.options})


def end(n_tokens: int, reason: FinishReason = "stop") -> Done:
    return Done(reason, Usage(10, 4, 2, n_tokens), Timings(0.5, 0.25, 1.0, float(n_tokens)))


def say(*pieces: str, reason: FinishReason = "stop", n_tokens: int = 6) -> Iterator[Event]:
    """Pieces that begin with `?` are thinking."""
    yield PromptProgress(4, 10, 4)
    yield PromptProgress(10, 10, 4)
    for piece in pieces:
        channel: Any = "thinking" if piece.startswith("?") else "answer"
        yield Delta(piece.removeprefix("?"), channel)
    yield end(n_tokens, reason)


def stall(mark: Path) -> Iterator[Event]:
    """Make a file when all that was said has been taken, and say no more."""
    yield Delta("hm\n", "thinking")
    yield Delta("partial\n\n", "answer")
    mark.touch()
    threading.Event().wait()


def repeat() -> Iterator[Event]:
    for number in itertools.count():
        yield Delta(f"line {number}\n", "answer")


SCRIPTS: dict[str, Callable[[], Iterator[Event]]] = {
    "plain": lambda: say("?Let me ", "?see.\n\n", "Forty", "-two\n", "\nand é\n\n", "\n"),
    "short": lambda: say("42"),
    "sums": lambda: say("?12 and 7", "$12 + 7 = 19$, and 19 + 2 = 22.\n\n", "**Answer:** 22\n"),
    "empty": lambda: say("?only thoughts", reason="length"),
    "cut": lambda: say("so far", reason="length"),
    "again": lambda: say("?a", "b\n", "?c\n", "d"),
    "rude": lambda: say("?\x1b[2Jt", "a\x1b]0;title\x07\rb"),
    "calls": lambda: iter([ToolCall("call_1", "f", {"a": 1}), end(3, "tool_calls")]),
    "full": lambda: iter([Failed(ContextFull(99, 64))]),
    "died": lambda: iter([Delta("half", "answer"), Failed(EngineDied("the engine died"))]),
    "template": lambda: iter([Failed(TemplateError("line 3: loops", "Try another."))]),
    "nothing": lambda: iter([]),
    "repeat": repeat,
}


def main() -> None:
    from localcascade.cli.app import main as run_command
    from localcascade.engine import client

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits none
    client.Engine = FakeEngine  # type: ignore[assignment,misc]
    run_command()


if __name__ == "__main__":
    main()
