"""What a model generates, as it comes: thinking, answer and tool calls told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

from localcascade.prompt.calls import Schemas, is_closed, is_inside_value, parse_calls
from localcascade.prompt.events import Channel, Delta, ToolCall

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"


class OutputParser:
    """A streaming state machine over generated text, which may be cut anywhere.

    Tags never reach a channel, and newlines that touch a tag go with it. A <tool_call> ends
    thinking even when </think> is missing; <think> in an answer starts thinking again. A block that
    holds no call that can be understood goes to the answer, tags aside, rather than being lost.

    Args:
        thinking: Whether the prompt ended in an open <think>.
        tools: Whether tools were offered; without, <tool_call> is text like any other.
        schemas: Tool name -> JSON schema of its parameters, for the types of values.
    """

    def __init__(self, thinking: bool, tools: bool, schemas: Schemas | None = None) -> None:
        self._channel: Channel = "thinking" if thinking else "answer"
        self._schemas = schemas or {}
        self._tags = _Tags([THINK, END_THINK, *([CALL, END_CALL] if tools else [])])
        self._call_tags = _Tags([CALL, END_CALL])
        self._pending = ""
        self._after_tag = True
        self._raw: list[str] = []
        self._n_calls = 0

    @property
    def channel(self) -> Channel:
        """Where the next piece of text belongs, unless it begins with a tag."""
        return self._channel

    def feed(self, text: str) -> list[Delta | ToolCall]:
        """Take the next piece of text.

        Args:
            text: Whole characters, cut anywhere.

        Returns:
            What became certain with it; the start of what may be a tag is held back.
        """
        self._pending += text
        events: list[Delta | ToolCall] = []
        while match := self._active_tags.search(self._pending):
            before, self._pending = self._pending[: match.start()], self._pending[match.end() :]
            events += self._meet(match[0], before)
        held = self._active_tags.start_of_hold(self._pending)
        ready, self._pending = self._pending[:held], self._pending[held:]
        return [*events, *self._emit(ready)]

    def finish(self, truncated: bool = False) -> list[Delta | ToolCall]:
        """Say that the text is over.

        Args:
            truncated: Whether it was cut off, by a token limit for example: then a call that is
                still open is not made, since its last value may be half of what was meant.

        Returns:
            What was held back, and a call whose end tag is missing.
        """
        rest, self._pending = self._pending, ""
        events = self._emit(rest)
        if self._channel == "tool_call":
            events += self._close_call(complete=not truncated or is_closed("".join(self._raw)))
        return events

    @property
    def _active_tags(self) -> _Tags:
        return self._call_tags if self._channel == "tool_call" else self._tags

    def _meet(self, tag: str, before: str) -> list[Delta | ToolCall]:
        if tag == CALL and self._channel == "tool_call" and self._is_value(before):
            return self._emit(before + tag)
        events = self._emit(before.rstrip("\n"))
        if self._channel == "tool_call":
            events += self._close_call(complete=True)
        self._after_tag = True
        if tag == CALL:
            self._channel = "tool_call"
        elif tag == THINK:
            self._channel = "thinking"
        elif tag == END_THINK:
            self._channel = "answer"
        return events

    def _is_value(self, before: str) -> bool:
        return is_inside_value("".join([*self._raw, before]))

    def _emit(self, text: str) -> list[Delta | ToolCall]:
        if self._after_tag:
            text = text.lstrip("\n")
        if not text:
            return []
        self._after_tag = False
        if self._channel == "tool_call":
            self._raw.append(text)
        return [Delta(text, self._channel)]

    def _close_call(self, complete: bool) -> list[Delta | ToolCall]:
        raw = "".join(self._raw)
        self._raw = []
        self._channel = "answer"
        calls = parse_calls(raw, self._schemas) if complete else []
        if not calls:
            return [Delta(raw, "answer")] if raw else []
        first = self._n_calls + 1
        self._n_calls += len(calls)
        return [
            ToolCall(f"call_{number}", name, arguments)
            for number, (name, arguments) in enumerate(calls, first)
        ]


class _Tags:
    """Finds whole tags and what may be the start of one."""

    def __init__(self, tags: Sequence[str]) -> None:
        self._whole = re.compile("|".join(map(re.escape, tags)))
        starts = {tag[:length] for tag in tags for length in range(1, len(tag))}
        self._starts = sorted(starts, key=len, reverse=True)

    def search(self, text: str) -> re.Match[str] | None:
        return self._whole.search(text)

    def start_of_hold(self, text: str) -> int:
        """Where the newlines and the piece of a tag at the end of `text` begin."""
        piece = next((start for start in self._starts if text.endswith(start)), "")
        return len(text.removesuffix(piece).rstrip("\n"))
