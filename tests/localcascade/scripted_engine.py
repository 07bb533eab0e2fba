"""An engine for the chat that says what it is told to, one step at a time if asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from localcascade.chat.conversation import Conversation, MemoryJournal, Message
from localcascade.engine.wire import ModelInfo
from localcascade.errors import CascadeError
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    FinishReason,
    PromptProgress,
    Timings,
    Usage,
)
from localcascade.tui.app import ChatApp
from localcascade.tui.opening import Opening, Preferences

Script = Sequence[Event | None]
"""Events of one turn; at None it waits until it is released, or told to answer now."""


def end(reason: FinishReason = "stop", n_prompt: int = 40, n_tokens: int = 20) -> Done:
    """The last event of a turn."""
    return Done(reason, Usage(n_prompt, 30, 8, n_tokens), Timings(0.1, 0.05, 0.4, 50.0))


def think_and_say(thinking: str, answer: str, n_prompt: int = 40) -> list[Event | None]:
    """A whole turn."""
    progress = PromptProgress(n_prompt, n_prompt, 30)
    pieces = [Delta(part, "thinking") for part in thinking.splitlines(keepends=True)]
    pieces += [Delta(part, "answer") for part in answer.splitlines(keepends=True)]
    return [progress, *pieces, end(n_prompt=n_prompt)]


@dataclass
class ScriptedEngine:
    """Plays its scripts, one for each turn, the last one again and again."""

    scripts: list[Script]
    n_ctx: int = 1000
    failure: CascadeError | None = None
    """What loading fails with."""
    requests: list[ChatRequest] = field(default_factory=list)
    chats: list[ScriptedChat] = field(default_factory=list)
    is_closed: bool = False
    counts: bool = True
    """Whether it can count tokens: a word is one."""

    def load(self, on_progress: Callable[[str, int, int], None] | None = None) -> ModelInfo:
        if self.failure is not None:
            raise self.failure
        if on_progress is not None:
            on_progress("load", 50, 100)
        return ModelInfo("scripted", self.n_ctx, self.n_ctx, 10, 0.1, ("CPU",))

    def achat(self, request: ChatRequest) -> ScriptedChat:
        self.requests.append(request)
        script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
        self.chats.append(ScriptedChat(script))
        return self.chats[-1]

    def count_tokens(self, text: str) -> int | None:
        return len(text.split()) if self.counts else None

    def close(self) -> None:
        self.is_closed = True


class ScriptedChat(AsyncIterator[Event]):
    """One turn of a scripted engine."""

    def __init__(self, script: Script) -> None:
        self._events = iter(script)
        self._gate = asyncio.Event()
        self.was_hurried = False
        self.is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        for event in self._events:
            if event is not None:
                return event
            await self._gate.wait()
            self._gate.clear()
        raise StopAsyncIteration

    def release(self) -> None:
        """Let it go on from the None where it waits."""
        self._gate.set()

    def answer_now(self) -> None:
        self.was_hurried = True
        self._gate.set()

    async def aclose(self) -> None:
        self.is_closed = True


@dataclass
class ScriptedSource:
    """Conversations with a scripted engine, kept nowhere."""

    engine: ScriptedEngine
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)

    def begin(self, model: str | None) -> Opening:
        self.asked.append((None, model))
        return Opening(Conversation(MemoryJournal()), model or "scripted", self.engine)

    def resume(self, session: str | None, model: str | None) -> Opening:
        self.asked.append((session, model))
        return self.begin(model)


def open_chat(
    engine: ScriptedEngine, messages: Sequence[Message] = (), theme: str = "cascade-dark"
) -> ChatApp:
    """A chat with a scripted engine, and a conversation that is kept nowhere.

    Steps are not marked: the thread that checks them ends when it ends.
    """
    opening = Opening(
        Conversation(MemoryJournal(), messages), "nemotron-cascade-2", engine, "Homework"
    )
    return ChatApp(ScriptedSource(engine), opening, Preferences(theme, checks=False))
