"""The server in a thread, and an engine that says what a test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from localcascade.engine.chat import AsyncChat
from localcascade.engine.wire import ModelInfo
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
from localcascade.server.app import Offer, make_app
from localcascade.server.gate import Guard
from localcascade.server.listener import Server, bind
from localcascade.server.request import Defaults

INFO = ModelInfo("scripted", 1000, 4000, 300, 0.1, ("CPU",), n_parallel=4)


def end(reason: FinishReason = "stop", index: int = 0, n_tokens: int = 20) -> Done:
    """The last event of an answer."""
    return Done(reason, Usage(40, 30, 8, n_tokens, 6, 5), Timings(0.1, 0.05, 0.4, 50.0), index)


def say(answer: str = "It is 4.", thinking: str = "") -> list[Event]:
    """A whole turn."""
    thought: list[Event] = [Delta(thinking, "thinking")] if thinking else []
    return [PromptProgress(40, 40, 30), *thought, Delta(answer, "answer"), end()]


@dataclass
class ScriptedEngine:
    """Plays a script for each request; at None it waits until it is told to answer."""

    script: Sequence[Event | None] | Callable[[ChatRequest], Sequence[Event | None]]
    requests: list[ChatRequest] = field(default_factory=list)
    n_running: int = 0
    n_cancelled: int = 0
    """Requests that were closed before their end."""
    hears: threading.Event = field(default_factory=threading.Event)
    """Something was begun or cancelled since a test cleared this."""

    def achat(self, request: ChatRequest) -> AsyncChat:
        self.requests.append(request)
        answer = asyncio.Event()
        script = self.script(request) if callable(self.script) else self.script
        return AsyncChat(self._play(script, answer), answer.set)

    async def _play(
        self, script: Sequence[Event | None], answer: asyncio.Event
    ) -> AsyncGenerator[Event, None]:
        self.n_running += 1
        self.hears.set()
        is_over = False
        try:
            for event in script:
                if event is None:
                    await answer.wait()
                else:
                    yield event
            is_over = True
        finally:
            self.n_running -= 1
            self.n_cancelled += not is_over
            self.hears.set()


@dataclass
class Served:
    """A server that runs."""

    url: str
    faults: list[Exception]
    server: Server

    def connect(self, key: str = "any", **options: Any) -> openai.OpenAI:
        """OpenAI's own client, which otherwise tries twice more."""
        return openai.OpenAI(base_url=self.url, api_key=key, **{"max_retries": 0, **options})


@contextmanager
def serve(
    engine: Any,
    name: str = "tiny",
    info: ModelInfo = INFO,
    guard: Guard | None = None,
    defaults: Defaults | None = None,
    log: Callable[[str], None] | None = None,
) -> Iterator[Served]:
    """Serve an engine on a port of its own."""
    listener = bind("127.0.0.1", 0)
    faults: list[Exception] = []
    offer = Offer(engine, name, info, defaults or Defaults())
    app = make_app(offer, guard or Guard(), faults.append, log)
    ready = threading.Event()
    server = Server(app, listener, ready.set)
    thread = threading.Thread(target=server.serve_all, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield Served(listener.url, faults, server)
    finally:
        server.should_exit = True
        thread.join()
