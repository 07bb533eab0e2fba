"""The body of a chat request, read strictly: what we cannot do is refused by its name.

A field of type Any has no effect here and does no harm; one of type None stands for something
that we cannot do. A message may hold more than is read: templates do not look at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from localcascade.server.problems import Problem, Refusal

if TYPE_CHECKING:
    from pydantic import ConfigDict
    from pydantic_core import ErrorDetails

_STRICT: ConfigDict = {"extra": "forbid", "strict": True}
_OPEN: ConfigDict = {"extra": "ignore", "strict": True}


@dataclass(frozen=True)
class Part:
    """A piece of a message's content."""

    __pydantic_config__: ClassVar[ConfigDict] = _OPEN
    type: str
    text: str | None = None

    def __post_init__(self) -> None:
        if self.type != "text" or self.text is None:
            problem = f"a part of type {self.type!a:.40} is not supported"
            raise ValueError(f"{problem}: models here read text, no images and no sound")


Content = str | tuple[Part, ...] | None


@dataclass(frozen=True)
class CalledFunction:
    """What a tool call calls."""

    __pydantic_config__: ClassVar[ConfigDict] = _OPEN
    name: str
    arguments: str | dict[str, Any] = ""
    """An object, or the JSON of one."""

    def __post_init__(self) -> None:
        if isinstance(self.arguments, str) and not _is_object(self.arguments or "{}"):
            raise ValueError("arguments are not the JSON of an object")


@dataclass(frozen=True)
class Call:
    """A tool call that the model made earlier."""

    __pydantic_config__: ClassVar[ConfigDict] = _OPEN
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


@dataclass(frozen=True)
class Message:
    """One message of the conversation."""

    __pydantic_config__: ClassVar[ConfigDict] = _OPEN
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Another name for it."""
    tool_calls: tuple[Call, ...] | None = None
    tool_call_id: str | None = None
    audio: None = None
    function_call: None = None

    def __post_init__(self) -> None:
        if self.content is None and not (self.tool_calls or self.role == "assistant"):
            raise ValueError("content is missing")


@dataclass(frozen=True)
class Function:
    """What a tool does."""

    __pydantic_config__: ClassVar[ConfigDict] = _OPEN
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Tool:
    """A tool that the model may call."""

    __pydantic_config__: ClassVar[ConfigDict] = _OPEN
    type: Literal["function"]
    function: Function


@dataclass(frozen=True)
class NamedSchema:
    """A JSON schema with a name, which has no effect; nor has `strict`: it always is."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    schema: dict[str, Any]
    name: Any = None
    description: Any = None
    strict: Any = None


@dataclass(frozen=True)
class ResponseFormat:
    """What the answer must look like."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | None = None
    """llama-server's way to put it, with json_object."""

    def __post_init__(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")


@dataclass(frozen=True)
class StreamOptions:
    """What else a stream tells."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    include_usage: bool | None = None
    include_obfuscation: Any = None


@dataclass(frozen=True)
class TemplateOptions:
    """What the chat template is told."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    enable_thinking: bool | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True)
class Body:
    """A chat request; null is as if a field were left out."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    messages: tuple[Message, ...]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    """vLLM's name for it."""
    repeat_last_n: int | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None
    thinking_budget_tokens: int | None = None
    thinking_budget_seconds: float | None = None
    return_progress: bool | None = None

    cache_prompt: Any = None
    metadata: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning_control: Any = None
    reasoning_format: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None

    audio: None = None
    function_call: None = None
    functions: None = None
    modalities: tuple[Literal["text"], ...] | None = None
    prediction: None = None
    verbosity: None = None
    web_search_options: None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("messages is empty")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        for one, other in _SAME:
            values = {getattr(self, one), getattr(self, other)} - {None}
            if len(values) > 1:
                raise ValueError(f"{one} and {other} name the same thing, with two values")


@dataclass(frozen=True)
class Wish:
    """What is wished of a completion that is under way."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    id: str
    action: Literal["reasoning_end"]
    """End the thinking, so that the answer comes."""
    model: Any = None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_SAME = (("max_tokens", "max_completion_tokens"), ("repeat_penalty", "repetition_penalty"))
_KNOWN: Mapping[str, str] = {
    "tool_choice": "choose 'auto' or 'none': a model here cannot be made to call a tool",
}
"""What to say of a field instead of what pydantic says."""
_BODY, _WISH = TypeAdapter(Body), TypeAdapter(Wish)
T = TypeVar("T")


def read_body(data: bytes) -> Body:
    """Read the body of a chat request.

    Args:
        data: JSON.

    Raises:
        Refusal: It is no JSON, or a field is unknown, missing, of the wrong kind, or not supported;
            names the field.
    """
    return _read(_BODY, data)


def read_wish(data: bytes) -> Wish:
    """Read what else is wished of a completion; raises as read_body does."""
    return _read(_WISH, data)


def _read(kind: TypeAdapter[T], data: bytes) -> T:
    try:
        return kind.validate_json(data)
    except ValidationError as error:
        # Where content may be a text or parts, the deepest complaint is about what was meant.
        details = error.errors(include_url=False, include_input=False)
        raise Refusal(_explain(max(details, key=lambda one: len(one["loc"])))) from None


def _explain(details: ErrorDetails) -> Problem:
    kind, loc = details["type"], details["loc"]
    if kind == "json_invalid":
        return Problem(400, f"the body is no JSON: {details['msg'].removeprefix('Invalid JSON: ')}")
    place = _write_place(loc)
    problem = details["msg"].removeprefix("Value error, ")
    if kind == "unexpected_keyword_argument":
        problem = f"unknown field{_suggest(loc)}"
    elif kind == "none_required":
        problem = "not supported"
    message = f"{place}: {_KNOWN.get(place, problem)}" if place else problem
    return Problem(400, message, param=place or _find_first(problem), code="invalid_value")


def _write_place(loc: tuple[int | str, ...]) -> str:
    """Write a place as messages[0].content; the kinds of a union, which pydantic names, go."""
    place = ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "dict"):
            place += f".{part}" if place else part
    return place


def _suggest(loc: tuple[int | str, ...]) -> str:
    known = [field.name for field in fields(Body)]
    near = get_close_matches(str(loc[-1]), known, n=1) if len(loc) == 1 else []
    return f"; did you mean {near[0]}?" if near else ""


def _find_first(problem: str) -> str | None:
    """Find the field that one of our own complaints about the whole body begins with."""
    name = problem.partition(" ")[0]
    return name if any(field.name == name for field in fields(Body)) else None
