"""A server's answer in the OpenAI format: chunks in, events out. Pure but for a clock.

What llama-server, vLLM and others add (reasoning, prompt progress, timings) is used where it
comes; a server that leaves thinking or tool calls in the text has them found there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from localcascade.engine.remote.fields import check_kind, get_count, get_field, get_number
from localcascade.errors import RemoteError
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    FinishReason,
    PromptProgress,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from localcascade.prompt.parser import OutputParser

MAX_CALLS = 256
MAX_CALL_LETTERS = 4 << 20
END = "[DONE]"
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "cancelled",
}


@dataclass
class _PartialCall:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)
    n_letters: int = 0


class _Choice:
    """One answer as it comes."""

    def __init__(self, index: int, request: ChatRequest) -> None:
        self.index = index
        self.reason: FinishReason | None = None
        self.n_thinking = self.n_pieces = 0
        functions = [tool.get("function", {}) for tool in request.tools]
        schemas = {f["name"]: f.get("parameters", {}) for f in functions if "name" in f}
        self._parser = OutputParser(thinking=False, tools=bool(request.tools), schemas=schemas)
        self._is_split = False
        """The server tells thinking and calls apart, so tags in its answers are plain text."""
        self._calls: dict[int, _PartialCall] = {}
        self._n_calls = 0

    def take(self, choice: Mapping[str, Any]) -> list[Event]:
        delta = get_field(choice, "delta", dict, {})
        events = [*self._take_logprobs(get_field(choice, "logprobs", dict, {}))]
        thinking = get_field(delta, "reasoning_content", str, "") or get_field(
            delta, "reasoning", str, ""
        )
        content, calls = (
            get_field(delta, "content", str, ""),
            get_field(delta, "tool_calls", list, []),
        )
        self.n_pieces += bool(thinking or content or calls)
        if thinking:
            self.n_thinking += 1
            self._is_split = True
            events.append(Delta(thinking, "thinking", self.index))
        if content:
            events += self._take_content(content)
        for call in calls:
            events += self._take_call(check_kind(call, "tool_calls", dict))
        if reason := get_field(choice, "finish_reason", str, ""):
            events += self.finish(_REASONS.get(reason, "stop"))
        return events

    def finish(self, reason: FinishReason | None) -> list[Event]:
        """Hand out what was held back; None means that the answer was cut off."""
        if self.reason is not None:
            return []
        is_whole = reason in ("stop", "tool_calls")
        events = self._count(self._parser.finish(truncated=not is_whole))
        for call in self._calls.values():
            events += self._close_call(call, is_whole)
        self._calls = {}
        self.reason = "tool_calls" if reason == "stop" and self._n_calls else reason
        return events

    def _take_content(self, text: str) -> list[Event]:
        if self._is_split:
            rest = self._count(self._parser.finish())
            return [*rest, Delta(text, "answer", self.index)]
        events = self._count(self._parser.feed(text))
        self.n_thinking += self._parser.channel == "thinking"
        return events

    def _count(self, events: list[Delta | ToolCall]) -> list[Event]:
        """Give what the parser found the index of this answer."""
        counted: list[Event] = []
        for event in events:
            if isinstance(event, Delta):
                counted.append(Delta(event.text, event.channel, self.index))
            else:
                counted.append(self._make_call(event.id, event.name, event.arguments))
        return counted

    def _take_call(self, piece: Mapping[str, Any]) -> list[Event]:
        self._is_split = True
        function = get_field(piece, "function", dict, {})
        name, text = get_field(function, "name", str, ""), get_field(function, "arguments", str, "")
        number = get_field(piece, "index", int, 0)
        call = self._calls.get(number)
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                raise RemoteError(f"the server makes more than {MAX_CALLS} tool calls in one turn")
            call = self._calls[number] = _PartialCall("", "")
        call.id = call.id or get_field(piece, "id", str, "")
        call.name += name
        call.arguments.append(text)
        call.n_letters += len(text) + len(name)
        if call.n_letters > MAX_CALL_LETTERS:
            raise RemoteError(f"the server's tool call {call.name:.60} is over 4 MiB long")
        return [Delta(name + text, "tool_call", self.index)] if name + text else []

    def _close_call(self, call: _PartialCall, is_whole: bool) -> list[Event]:
        """Make a call, or show what it holds as an answer rather than lose it."""
        raw = "".join(call.arguments)
        try:
            arguments = json.loads(raw or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not is_whole or not call.name or not isinstance(arguments, dict):
            return [Delta(f"{call.name}{raw}", "answer", self.index)] if raw else []
        return [self._make_call(call.id, call.name, arguments)]

    def _make_call(self, id_: str, name: str, arguments: dict[str, Any]) -> ToolCall:
        self._n_calls += 1
        return ToolCall(id_ or f"call_{self._n_calls}", name, arguments, self.index)

    def _take_logprobs(self, logprobs: Mapping[str, Any]) -> list[Event]:
        tokens = []
        for one in get_field(logprobs, "content", list, []):
            told = check_kind(one, "logprobs.content", dict)
            top = get_field(told, "top_logprobs", list, [])
            pairs = [_read_logprob(check_kind(other, "top_logprobs", dict)) for other in top]
            tokens.append(TokenLogprob(*_read_logprob(told), tuple(pairs), self.index))
        return list(tokens)


class Reply:
    """What a server answers to one request: chunks in, events out.

    Args:
        request: What was asked.
        clock: Seconds; counts the time that the server does not tell.
    """

    def __init__(
        self, request: ChatRequest, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._choices = [_Choice(index, request) for index in range(request.n)]
        self._clock = clock
        self._begun_s = clock()
        self._first_s: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self.id = ""
        """The server's name for this answer."""
        self.is_over = False
        """The server has said that nothing follows."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first word; 0 before it."""
        return 0.0 if self._first_s is None else self._clock() - self._first_s

    def take(self, data: str) -> list[Event]:
        """Take the data of one server-sent event.

        Returns:
            What became certain with it.

        Raises:
            RemoteError: It is no chunk.
            ToldError: It tells of an error.
        """
        if data.strip() == END:
            self.is_over = True
            return []
        chunk = _parse_chunk(data)
        self.id = self.id or get_field(chunk, "id", str, "")
        self._usage = get_field(chunk, "usage", dict, {}) or self._usage
        self._timings = get_field(chunk, "timings", dict, {}) or self._timings
        events = _read_progress(get_field(chunk, "prompt_progress", dict, {}))
        for choice in get_field(chunk, "choices", list, []):
            events += self._find_choice(check_kind(choice, "choices", dict)).take(choice)
        if self._first_s is None and any(not isinstance(e, PromptProgress) for e in events):
            self._first_s = self._clock()
        return events

    def finish(self) -> list[Event]:
        """Say that nothing follows.

        Returns:
            What was held back, and for each answer that came to its end a Done. Whoever finds
            fewer of these than answers asked for knows that the reply was cut off.
        """
        events: list[Event] = []
        for choice in self._choices:
            events += choice.finish(None)
        return events + [self._sum_up(c, c.reason) for c in self._choices if c.reason]

    def _find_choice(self, choice: Mapping[str, Any]) -> _Choice:
        index = get_field(choice, "index", int, 0)
        if not 0 <= index < len(self._choices):
            raise RemoteError(f"the server sent answer {index}, which was not asked for")
        return self._choices[index]

    def _sum_up(self, choice: _Choice, reason: FinishReason) -> Done:
        usage, now_s = self._count_usage(choice), self._clock()
        first_s = now_s if self._first_s is None else self._first_s
        prompt_s = get_number(self._timings, "prompt_ms", 1e3 * (first_s - self._begun_s)) / 1e3
        spent_s = get_number(self._timings, "predicted_ms", 1e3 * (now_s - first_s)) / 1e3
        rate = usage.completion_tokens / spent_s if spent_s > 0 else 0.0
        rate = get_number(self._timings, "predicted_per_second", rate)
        return Done(reason, usage, Timings(0.0, prompt_s, spent_s, rate), choice.index)

    def _count_usage(self, choice: _Choice) -> Usage:
        """Take the server's counts; pieces stand for tokens where it tells none, as with n > 1."""
        told, timed = self._usage, self._timings
        details = get_field(told, "prompt_tokens_details", dict, {})
        reused = get_count(details, "cached_tokens", get_count(timed, "cache_n", 0))
        prompt = get_count(told, "prompt_tokens", reused + get_count(timed, "prompt_n", 0))
        if len(self._choices) > 1:
            return Usage(prompt, reused, choice.n_thinking, choice.n_pieces)
        total = get_count(timed, "predicted_n", choice.n_pieces)
        total = get_count(told, "completion_tokens", total)
        details = get_field(told, "completion_tokens_details", dict, {})
        thinking = get_count(details, "reasoning_tokens", 0) or choice.n_thinking
        return Usage(prompt, reused, min(thinking, total), total)


class ToldError(Exception):
    """The server tells of an error in the middle of its answer; `body` is all that it says."""

    def __init__(self, body: bytes, status: int) -> None:
        super().__init__()
        self.body = body
        self.status = status


def _parse_chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RemoteError(
            f"the server sent what is no JSON: {data[:80]!r}",
            "It is broken, or no OpenAI-compatible server: check the address.",
        ) from exc
    if isinstance(chunk, dict) and chunk.get("error"):
        told = chunk["error"] if isinstance(chunk["error"], dict) else {}
        raise ToldError(data.encode(), get_count(told, "code", 500))
    return check_kind(chunk, "a chunk", dict)


def _read_progress(progress: Mapping[str, Any]) -> list[Event]:
    if not progress:
        return []
    counts = (get_count(progress, key, 0) for key in ("processed", "total", "cache"))
    return [PromptProgress(*counts)]


def _read_logprob(told: Mapping[str, Any]) -> tuple[str, float]:
    return get_field(told, "token", str, ""), get_number(told, "logprob", 0.0)
