"""One answer as text: tokens in, channelled events out."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from localcascade.engine.vocabulary import Vocabulary
from localcascade.prompt.events import Channel, ChatRequest, Delta, Event, ToolCall
from localcascade.prompt.parser import OutputParser
from localcascade.prompt.stops import StopFinder


class Turn:
    """Sorts what is generated into channels, counts it, and finds its end.

    Args:
        vocabulary: Of the tokens.
        request: The request.
        thinking: Whether the prompt ends in an open <think>.
        index: Which of the request's answers it is.
    """

    def __init__(
        self, vocabulary: Vocabulary, request: ChatRequest, thinking: bool, index: int = 0
    ) -> None:
        self._vocabulary, self._index = vocabulary, index
        self._parser = OutputParser(thinking, bool(request.tools), read_schemas(request.tools))
        self._stops = StopFinder(request.sampling.stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._channel: Channel = "thinking" if thinking else "answer"
        self.n_thinking = self.n_completion = self.n_calls = 0

    @property
    def is_thinking(self) -> bool:
        """Whether the next token belongs to the thinking."""
        return self._parser.channel == "thinking"

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text came."""
        return self._stops.is_met

    def take(self, token: int) -> list[Event]:
        """Take the next token, which is not one that ends a generation.

        Returns:
            What became certain with it.
        """
        text = self._decoder.decode(self._vocabulary.piece(token))
        events = list(self._tell(self._parser.feed(text))) if text else []
        self.n_completion += 1
        self.n_thinking += self._channel == "thinking"
        return events

    def drop_character(self) -> None:
        """Forget the first bytes of a character, for what comes next is not the rest of it."""
        self._decoder.reset()

    def finish(self, *, is_truncated: bool) -> list[Event]:
        """Say that no more tokens come.

        Args:
            is_truncated: Whether something else than the model ended it.

        Returns:
            What was held back.
        """
        events: list[Event] = []
        if rest := self._decoder.decode(b"", final=True):
            events += self._tell(self._parser.feed(rest))
        events += self._tell(self._parser.finish(truncated=is_truncated))
        return [*events, *self._release()]

    def _tell(self, found: Sequence[Delta | ToolCall]) -> Iterator[Event]:
        """Pass on what the parser found.

        A token counts as thinking until a piece of another channel has come out: tags and the
        white space after them belong to what they close.
        """
        for event in found:
            if self._stops.is_met:
                return
            if isinstance(event, ToolCall):
                self.n_calls += 1
                yield from self._release()
                yield replace(event, index=self._index)
                continue
            self._channel = event.channel
            if event.channel != "answer":
                yield from self._release()
                yield Delta(event.text, event.channel, self._index)
            elif text := self._stops.feed(event.text):
                yield Delta(text, "answer", self._index)

    def _release(self) -> Iterator[Event]:
        if text := self._stops.flush():
            yield Delta(text, "answer", self._index)


def read_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Read tool name -> JSON schema of its parameters; what has not that form is left out."""
    functions = (tool.get("function", tool) for tool in tools)
    return {
        function["name"]: function["parameters"]
        for function in functions
        if isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("parameters"), dict)
    }
