"""The engine's events in the OpenAI format: chunks of a stream, or one whole completion. Pure."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from localcascade.prompt.events import (
    Delta,
    Done,
    Event,
    PromptProgress,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)

Chunk = dict[str, Any]

LEAST_LOGPROB = -9999.0
"""What OpenAI says of a token that cannot be; JSON knows no infinity."""

_REASONS = {"cancelled": "content_filter"}
"""Reasons to end that OpenAI calls otherwise; only another server tells of this one."""
_CHANNELS = {"thinking": "reasoning_content", "answer": "content"}
"""Where text goes; that of a tool call is told when the call is complete."""


@dataclass(frozen=True, slots=True)
class Label:
    """What every chunk of a completion says of it."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created_s: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What a client wants to be told."""

    n: int = 1
    usage: bool = False
    """Usage in a chunk of its own at the end of a stream."""
    progress: bool = False
    """How much of the prompt has been read, as llama-server tells it."""
    many_calls: bool = True
    """More than one tool call in an answer."""


@dataclass
class _Choice:
    """One answer as it comes."""

    n_calls: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Of tokens whose text has not come yet."""
    usage: Usage | None = None


class ChunkWriter:
    """Writes the chunks of one completion.

    Args:
        label: What it is called.
        wants: What the client wants to be told.
    """

    def __init__(self, label: Label, wants: Wants) -> None:
        self._label, self._wants = label, wants
        self._choices = [_Choice() for _ in range(wants.n)]

    @property
    def is_complete(self) -> bool:
        """Whether every answer has come to its end."""
        return all(choice.usage is not None for choice in self._choices)

    def begin(self) -> Iterator[Chunk]:
        """Write what comes before the first event: who speaks."""
        for index in range(self._wants.n):
            yield self._write(index, {"role": "assistant", "content": ""})

    def take(self, event: Event) -> Iterator[Chunk]:
        """Write what an event tells, if it tells a client anything.

        Args:
            event: Any but a Failed.
        """
        match event:
            case Delta() if event.channel in _CHANNELS:
                yield self._write(event.index, {_CHANNELS[event.channel]: event.text})
            case ToolCall():
                yield from self._write_call(event)
            case TokenLogprob():
                self._choices[event.index].logprobs.append(_write_logprob(event))
            case PromptProgress() if self._wants.progress:
                told = {"total": event.total, "cache": event.reused, "processed": event.done}
                yield self._head(choices=[], prompt_progress=told)
            case Done():
                self._choices[event.index].usage = event.usage
                reason = _REASONS.get(event.reason, event.reason)
                timings = write_timings(event.usage, event.timings)
                yield self._write(event.index, {}, reason) | {"timings": timings}

    def end(self) -> Iterator[Chunk]:
        """Write what comes after the last event: the usage, if that is wanted."""
        if self._wants.usage:
            yield self._head(choices=[], usage=self.write_usage())

    def write_usage(self) -> dict[str, Any]:
        """Sum up the tokens of a completion; its answers share one prompt."""
        told = [choice.usage for choice in self._choices if choice.usage is not None]
        n_prompt, n_reused = told[0].prompt_tokens, told[0].reused_tokens
        n_written = sum(usage.completion_tokens for usage in told)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_written,
            "total_tokens": n_prompt + n_written,
            "prompt_tokens_details": {"cached_tokens": n_reused},
            "completion_tokens_details": {
                "reasoning_tokens": sum(usage.thinking_tokens for usage in told)
            },
        }

    def _write_call(self, call: ToolCall) -> Iterator[Chunk]:
        """Write a call; its name must be one that no other call of a conversation has."""
        choice = self._choices[call.index]
        if choice.n_calls and not self._wants.many_calls:
            return
        name = f"call_{self._label.id[-12:]}_{call.index}_{choice.n_calls}"
        function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
        told = {"index": choice.n_calls, "id": name, "type": "function", "function": function}
        choice.n_calls += 1
        yield self._write(call.index, {"tool_calls": [told]})

    def _write(self, index: int, delta: Mapping[str, Any], reason: str | None = None) -> Chunk:
        """Write a chunk of one answer, with the probabilities of the tokens that it is made of."""
        choice = self._choices[index]
        told = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
        if choice.logprobs:
            told["logprobs"] = {"content": choice.logprobs, "refusal": None}
            choice.logprobs = []
        return self._head(choices=[told])

    def _head(self, **fields: Any) -> Chunk:
        label = self._label
        head = {"id": label.id, "object": "chat.completion.chunk", "created": label.created_s}
        usage = {"usage": None} if self._wants.usage else {}
        return head | {"model": label.model} | usage | fields


def merge(chunks: Iterable[Chunk], usage: Mapping[str, Any]) -> dict[str, Any]:
    """Put the chunks of a completion together, for a client that waits for the whole.

    Args:
        chunks: All of them.
        usage: Of the completion.

    Returns:
        The body of the answer.
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        whole = chunk | {"timings": chunk.get("timings", whole.get("timings"))}
        for piece in chunk["choices"]:
            _add(choices.setdefault(piece["index"], {}), piece)
    timings = {"timings": whole["timings"]} if len(choices) == 1 else {}
    head = {key: whole[key] for key in ("id", "created", "model")}
    made = [_close(index, choices[index]) for index in sorted(choices)]
    return head | {"object": "chat.completion", "choices": made, "usage": usage} | timings


def _add(choice: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a piece to an answer: texts and lists grow, the reason comes last."""
    for key, value in piece["delta"].items():
        choice[key] = choice[key] + value if key in choice else value
    logprobs = piece["logprobs"] or {"content": []}
    choice["logprobs"] = choice.get("logprobs", []) + logprobs["content"]
    choice["reason"] = piece["finish_reason"]


def _close(index: int, choice: Mapping[str, Any]) -> dict[str, Any]:
    texts = ("role", "content", "reasoning_content")
    message = {key: choice[key] for key in texts if key in choice}
    if calls := choice.get("tool_calls"):
        message["tool_calls"] = [
            {key: call[key] for key in ("id", "type", "function")} for call in calls
        ]
        message["content"] = message["content"] or None
    logprobs = choice["logprobs"]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": choice["reason"],
    }


def write_timings(usage: Usage, timings: Timings) -> dict[str, float]:
    """Write counts and times as llama-server names them.

    Args:
        usage: Tokens.
        timings: Seconds.
    """
    n_read = usage.prompt_tokens - usage.reused_tokens
    rate = n_read / timings.prompt_s if timings.prompt_s > 0 else 0.0
    return {
        "cache_n": usage.reused_tokens,
        "prompt_n": n_read,
        "prompt_ms": round(1e3 * timings.prompt_s, 3),
        "prompt_per_second": round(rate, 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(1e3 * timings.generation_s, 3),
        "predicted_per_second": round(timings.tokens_per_s, 3),
        "draft_n": usage.drafted_tokens,
        "draft_n_accepted": usage.accepted_tokens,
    }


def _write_logprob(told: TokenLogprob) -> dict[str, Any]:
    top = [_write_token(text, logprob) for text, logprob in told.top]
    return _write_token(told.text, told.logprob) | {"top_logprobs": top}


def _write_token(text: str, logprob: float) -> dict[str, Any]:
    """Write a token; one that is part of a character has no bytes that could be told."""
    told = None if "\ufffd" in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": told}
