"""What a body asks of the engine: its fields in the engine's words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localcascade.prompt.budget import ThinkingBudget
from localcascade.prompt.events import ChatRequest, Sampling
from localcascade.server.body import Body, Call, Content, Message, ResponseFormat, Tool

EFFORT_TOKENS: Mapping[str, int] = {"minimal": 512, "low": 2048, "medium": 8192}
"""What `reasoning_effort` lets a model think; at `none` not at all, above `medium` freely."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """How requests are answered that do not say."""

    thinking: bool = True
    thinking_tokens: int | None = None
    """Most of them; None is no limit."""


def make_request(body: Body, defaults: Defaults) -> ChatRequest:
    """Say a body in the engine's words.

    Args:
        body: What a client sent.
        defaults: What holds where it says nothing.
    """
    tools = () if body.tool_choice == "none" else body.tools or ()
    return ChatRequest(
        messages=tuple(map(_write_message, body.messages)),
        tools=tuple(map(_write_tool, tools)),
        thinking=_wants_thinking(body, defaults),
        sampling=_choose_sampling(body),
        n=1 if body.n is None else body.n,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        thinking_budget=_choose_budget(body, defaults),
    )


def _wants_thinking(body: Body, defaults: Defaults) -> bool:
    """Find out whether to think: no, if any field says so; yes, if any asks for it."""
    options = body.chat_template_kwargs
    switch = None if options is None else options.enable_thinking
    effort, tokens = body.reasoning_effort, body.thinking_budget_tokens
    if switch is False or effort == "none" or tokens == 0:
        return False
    return defaults.thinking or any(said is not None for said in (switch, effort, tokens))


def _choose_budget(body: Body, defaults: Defaults) -> ThinkingBudget | None:
    tokens, effort = body.thinking_budget_tokens, body.reasoning_effort
    if tokens is None:
        tokens = defaults.thinking_tokens if effort is None else EFFORT_TOKENS.get(effort)
    if tokens in (0, -1):
        tokens = None  # there is no thinking, or no limit to it
    seconds = body.thinking_budget_seconds
    return None if tokens is seconds is None else ThinkingBudget(tokens, seconds)


def _choose_sampling(body: Body) -> Sampling:
    """Copy what was asked for; -1 means what it means to llama-server and vLLM."""
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    repeat = body.repetition_penalty if body.repeat_penalty is None else body.repeat_penalty
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=0 if body.top_k == -1 else body.top_k,
        min_p=body.min_p,
        seed=_drop_minus_one(body.seed),
        max_tokens=_drop_minus_one(most),
        repeat_penalty=repeat,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        penalty_tokens=_drop_minus_one(body.repeat_last_n),
        logit_bias=body.logit_bias or {},
        grammar=body.grammar,
        json_schema=_find_schema(body.response_format),
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
    )


def _drop_minus_one(value: int | None) -> int | None:
    return None if value == -1 else value


def _find_schema(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        return wanted.json_schema.schema
    return {"type": "object"} if wanted.schema is None else wanted.schema


def _write_message(message: Message) -> dict[str, Any]:
    """Write a message as templates know it; a developer speaks as the system does."""
    role = "system" if message.role == "developer" else message.role
    optional = {
        "reasoning_content": message.reasoning_content or message.reasoning,
        "tool_calls": [_write_call(call) for call in message.tool_calls or ()],
        "tool_call_id": message.tool_call_id,
    }
    kept = {key: value for key, value in optional.items() if value}
    return {"role": role, "content": _join(message.content), **kept}


def _join(content: Content) -> str:
    """Put the parts of a content together, a line each, as llama-server and vLLM do."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part.text or "" for part in content)


def _write_call(call: Call) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments or {}}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})


def _write_tool(tool: Tool) -> dict[str, Any]:
    told = tool.function
    optional = {"description": told.description, "parameters": told.parameters}
    kept = {key: value for key, value in optional.items() if value is not None}
    return {"type": "function", "function": {"name": told.name, **kept}}
