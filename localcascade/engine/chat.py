"""One turn as its caller sees it: an iterator of events that can be closed, or told to answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Self

from localcascade.prompt.events import Event


class Chat(Iterator[Event]):
    """The events of one turn, which is asked for when the first one is taken.

    Args:
        events: The turn as it runs; closing it stops the generation, unless that is over.
        answer_now: Ends the thinking softly, from any thread; the answer follows. Harmless
            otherwise.
    """

    def __init__(
        self, events: Generator[Event, None, None], answer_now: Callable[[], None]
    ) -> None:
        self._events, self._answer_now = events, answer_now

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def answer_now(self) -> None:
        """End the thinking softly, from any thread; the answer follows. Harmless otherwise."""
        self._answer_now()

    def close(self) -> None:
        """Stop the generation, unless it is over."""
        self._events.close()


class AsyncChat(AsyncIterator[Event]):
    """The asynchronous twin of Chat.

    Args:
        events: The turn as it runs.
        answer_now: As Chat's.
    """

    def __init__(self, events: AsyncGenerator[Event, None], answer_now: Callable[[], None]) -> None:
        self._events, self._answer_now = events, answer_now

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    def answer_now(self) -> None:
        """End the thinking softly, from any thread; the answer follows. Harmless otherwise."""
        self._answer_now()

    async def aclose(self) -> None:
        """Stop the generation, unless it is over."""
        await self._events.aclose()
