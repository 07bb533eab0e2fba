"""A request in the OpenAI format, as servers want it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from localcascade.prompt.events import ChatRequest, Sampling

EXTRAS = ("return_progress", "reasoning_control", "stream_options", "chat_template_kwargs")
"""Fields that some servers do not know; a turn can do without them."""


def compose_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """Write a request as servers want it; what is left open is the server's to choose.

    Args:
        request: Its session and a budget in seconds stay here: no server knows them.
        model: As the server calls it.
    """
    budget = request.thinking_budget
    body: dict[str, Any] = {
        "model": model,
        "messages": [_write_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "reasoning_control": True,
        "chat_template_kwargs": {"enable_thinking": request.thinking},
        **_write_sampling(request.sampling),
    }
    optional = {
        "tools": list(request.tools) or None,
        "n": request.n if request.n > 1 else None,
        "logprobs": None if request.logprobs is None else True,
        "top_logprobs": request.logprobs,
        "thinking_budget_tokens": budget and budget.tokens,
    }
    return body | {key: value for key, value in optional.items() if value is not None}


def _write_sampling(sampling: Sampling) -> dict[str, Any]:
    schema = sampling.json_schema
    form = {"name": "answer", "schema": schema, "strict": True}
    fields = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "max_tokens": sampling.max_tokens,
        "repeat_penalty": sampling.repeat_penalty,
        "repetition_penalty": sampling.repeat_penalty,  # vLLM's name for it
        "repeat_last_n": sampling.penalty_tokens,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "grammar": sampling.grammar,
        "response_format": schema and {"type": "json_schema", "json_schema": form},
        "stop": list(sampling.stop) or None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _write_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a message; the arguments of its tool calls travel as text."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function", {}))
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments") or {})
        calls.append({**call, "type": "function", "function": function})
    return {**message, "tool_calls": calls}


def drop_refused(body: Mapping[str, Any], problem: bytes) -> dict[str, Any] | None:
    """Take out of a request what a server does not know, if a turn can do without it.

    Args:
        body: What was sent.
        problem: What the server answered.

    Returns:
        The rest; None if the server names none of these fields.
    """
    refused = {name for name in EXTRAS if name in body and name.encode() in problem}
    return {key: value for key, value in body.items() if key not in refused} if refused else None
