"""The words between an engine and those who use it: one request, a stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Channel = Literal["thinking", "answer", "tool_call"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; None leaves the model file's own default."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    """None draws one."""
    max_tokens: int | None = None
    """Thinking and answer together; None means up to the context's end."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn to be generated."""

    messages: tuple[Message, ...]
    """OpenAI form: role, content, reasoning_content, tool_calls."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """OpenAI form: {"type": "function", "function": {...}}."""
    thinking: bool = True
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How much of the prompt has been read; all in tokens."""

    done: int
    total: int
    reused: int
    """Tokens that were already in the state and cost nothing."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of text, always whole characters."""

    text: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """All in tokens."""

    prompt_tokens: int
    reused_tokens: int
    thinking_tokens: int
    completion_tokens: int
    """Thinking included."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, and completion tokens a second of generation."""

    load_s: float
    prompt_s: float
    generation_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """The turn is over."""

    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn could not be finished; `error` is typed and carries its hint."""

    error: Exception


Event = PromptProgress | Delta | ToolCall | Done | Failed
