"""Between the engine and the screens: loads the model, runs a turn, and tells by messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Protocol

from textual.message import Message
from textual.message_pump import MessagePump

from localcascade.chat.turn import Turn
from localcascade.engine.wire import ModelInfo
from localcascade.errors import CascadeError
from localcascade.prompt.events import ChatRequest, Event, Failed

WRITES_PER_S = 6
MEMORY_PERIOD_S = 2.0


class Chat(Protocol):
    """The events of one turn."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Begin."""

    async def __anext__(self) -> Event:
        """Wait for the next one."""

    def answer_now(self) -> None:
        """End the thinking softly."""

    async def aclose(self) -> None:
        """Stop the generation."""


class ChatEngine(Protocol):
    """What the chat needs of an engine, local or remote."""

    def load(self, on_progress: Callable[[str, int, int], None] | None = None) -> ModelInfo:
        """Load the model, unless that is done."""

    def achat(self, request: ChatRequest) -> Chat:
        """Generate one turn."""

    def count_tokens(self, text: str) -> int | None:
        """Count the tokens of a text; None where the model's are not known."""

    def close(self) -> None:
        """End it."""


class ModelLoading(Message):
    """The model is being loaded."""

    def __init__(self, percent: int) -> None:
        super().__init__()
        self.percent = percent


class ModelLoaded(Message):
    """The model is ready."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__()
        self.info = info


class ModelFailed(Message):
    """The model cannot be loaded."""

    def __init__(self, error: CascadeError) -> None:
        super().__init__()
        self.error = error


class TurnMoved(Message):
    """More of an answer has come, or it is over."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.turn = turn


class MemoryMeasured(Message):
    """What the model takes of the memory."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.n_bytes = n_bytes


class Speaker:
    """Runs one turn at a time.

    Args:
        engine: What generates.
        listener: What the messages are posted to.
        read_clock: Seconds, rising.
    """

    def __init__(
        self,
        engine: ChatEngine,
        listener: MessagePump,
        read_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._listener, self._read_clock = engine, listener, read_clock
        self._chat: Chat | None = None
        self.turn: Turn | None = None
        """The last one, perhaps still running."""
        self._is_loaded = False

    async def load(self) -> None:
        """Load the model in a thread."""

        def tell(_stage: str, done: int, total: int) -> None:
            self._listener.post_message(ModelLoading(100 * done // max(total, 1)))

        try:
            info = await asyncio.to_thread(self._engine.load, tell)
        except CascadeError as error:
            self._listener.post_message(ModelFailed(error))
        else:
            self._is_loaded = True
            self._listener.post_message(ModelLoaded(info))

    def count_tokens(self, text: str) -> int | None:
        """Count the tokens of a text, which takes a moment; None while no model is loaded."""
        return self._engine.count_tokens(text) if self._is_loaded else None

    async def speak(self, request: ChatRequest) -> None:
        """Run a turn to its end, or until it is cancelled; told of a few times a second."""
        turn = self.turn = Turn(self._read_clock())
        try:
            self._chat = self._engine.achat(request)
            await self._listen(self._chat, turn)
        except ValueError as error:
            turn.take(Failed(error), self._read_clock())
        finally:
            if not turn.is_over:
                turn.stop()
            if self._chat is not None:
                await self._chat.aclose()
            self._chat = None
            self._listener.post_message(TurnMoved(turn))

    async def _listen(self, chat: Chat, turn: Turn) -> None:
        told_s = 0.0
        async for event in chat:
            now_s = self._read_clock()
            turn.take(event, now_s)
            if turn.is_over:
                return
            if now_s - told_s >= 1 / WRITES_PER_S:
                self._listener.post_message(TurnMoved(turn))
                told_s = now_s

    def answer_now(self) -> None:
        """Let the model end its thinking and answer."""
        if self._chat is not None:
            self._chat.answer_now()

    async def watch_memory(self) -> None:
        """Tell now and then how much memory the processes of the engine take."""
        while True:
            n_bytes = await asyncio.to_thread(measure_children)
            self._listener.post_message(MemoryMeasured(n_bytes))
            await asyncio.sleep(MEMORY_PERIOD_S)


def measure_children() -> int:
    """Resident memory in bytes of the processes that this one has started."""
    import psutil

    def measure(process: Any) -> int:
        with suppress(psutil.Error):
            return int(process.memory_info().rss)
        return 0

    return sum(measure(child) for child in psutil.Process().children(recursive=True))
