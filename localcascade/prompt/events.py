"""The words between an engine and those who use it: one request, a stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localcascade.prompt.budget import ThinkingBudget

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
    """None draws one; answer i of a request draws with seed + i.

    The same request draws the same answers again from the same file on the same machine's CPU where
    the engine has one place, which is the default, whatever it has answered before. With more
    places (n_parallel) the draws are the same but not the last bits of what is drawn from: they
    depend on where in the context an answer lies and on who is computed beside it. So do those of a
    GPU on how much of the prompt was known. An answer may then leave its twin after some tokens,
    the sooner the higher the temperature."""
    max_tokens: int | None = None
    """Thinking and answer together; None means up to the context's end."""
    repeat_penalty: float | None = None
    """Divides the logits of tokens that were generated; 1 is off."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that it was generated."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that was generated."""
    penalty_tokens: int | None = None
    """How many of the last generated tokens the penalties look at; None is all of them."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit."""
    grammar: str | None = None
    """GBNF that the answer must follow; thinking is free."""
    json_schema: Mapping[str, Any] | None = None
    """JSON schema that the answer must follow, in place of a grammar."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, and are not part of it."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn to be generated."""

    messages: tuple[Message, ...]
    """OpenAI form: role, content, reasoning_content, tool_calls."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """OpenAI form: {"type": "function", "function": {...}}."""
    thinking: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    """Answers to the same prompt; all but PromptProgress carry the index of theirs."""
    logprobs: int | None = None
    """Tell of each token its log-probability, and those of so many of the likeliest."""
    thinking_budget: ThinkingBudget | None = None
    session: str | None = None
    """Name under which the state of this conversation is kept on disk."""


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
    index: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call."""

    id: str
    name: str
    arguments: dict[str, Any]
    index: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, before temperature and filters; comes before its text does."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The likeliest tokens and their log-probabilities, the likeliest first."""
    index: int = 0


@dataclass(frozen=True, slots=True)
class ContextEnd:
    """The context is full in the middle of an answer; Done follows, with the reason `length`."""

    n_ctx: int
    """Tokens that the context holds."""
    message_tokens: tuple[int, ...]
    """About how many tokens each message of the request takes."""
    droppable: tuple[tuple[int, ...], ...]
    """The turns that may be left out next time, as errors.ContextFull lists them."""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """All in tokens."""

    prompt_tokens: int
    reused_tokens: int
    thinking_tokens: int
    completion_tokens: int
    """Thinking included."""
    drafted_tokens: int = 0
    """Guessed from what came before, and computed ahead."""
    accepted_tokens: int = 0
    """Of those, the ones that were right."""


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
    index: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn could not be finished; `error` is typed and carries its hint."""

    error: Exception


Event = PromptProgress | Delta | ToolCall | TokenLogprob | ContextEnd | Done | Failed
