"""What a client is told when something is wrong: an error as OpenAI puts it, and a status. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localcascade import errors

OURS, THEIRS = "server_error", "invalid_request_error"
"""OpenAI's types of errors: whose fault one is."""

_FIELDS = {
    "JSON": "response_format", "logprobs": "top_logprobs", "penalty_tokens": "repeat_last_n",
}  # fmt: skip
"""What the engine's messages begin with -> the field that is meant, where it has another name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error, as it goes over HTTP."""

    status: int
    message: str
    type: str = THEIRS
    code: str | None = None
    """What programs go by."""
    param: str | None = None
    """Field of the body that is wrong."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that belong to it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_fault: bool = False
    """It is a fault of ours, which whoever runs the server should hear of."""

    def write(self) -> dict[str, Any]:
        """Write the body of the answer."""
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told | dict(self.more)}


class Refusal(Exception):
    """A request that is not passed on to the engine."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


STOPPING = Problem(503, "the server is stopping", OURS, "stopping")


def describe(error: Exception) -> Problem:
    """Put an error into OpenAI's terms.

    Args:
        error: What the engine raised, or told in a Failed.

    Returns:
        The problem; of an error that nobody foresaw it says nothing, for it may hold anything.
    """
    match error:
        case Refusal():
            return error.problem
        case errors.ContextFull():
            more = {"n_prompt_tokens": error.need_tokens, "n_ctx": error.have_tokens}
            code = "context_length_exceeded"
            return Problem(400, _say(error), THEIRS, code, "messages", more)
        case errors.TemplateError():
            return Problem(400, _say(error), THEIRS, "template_error", "messages")
        case errors.ModelNotFound():
            return Problem(404, _say(error), THEIRS, "model_not_found", "model")
        case errors.RemoteError():
            return _describe_remote(error)
        case errors.OfflineError():
            return Problem(502, _say(error), OURS, "offline")
        case errors.EngineDied():
            return Problem(503, _say(error), OURS, "engine_died")
        case errors.OutOfBudget() | errors.NativeError():
            return Problem(503, _say(error), OURS, "out_of_memory")
        case errors.CascadeError():
            return Problem(500, _say(error), OURS)
        case ValueError():
            return Problem(400, str(error), param=_find_field(str(error)))
    return Problem(500, "a fault of this server, not yours", OURS, "internal_error", is_fault=True)


def _describe_remote(error: errors.RemoteError) -> Problem:
    """Pass on what the other server thinks of the request; its own trouble is a bad gateway."""
    if error.status in (400, 413, 422):
        return Problem(error.status, error.message)
    busy = error.status in (429, 503)
    wait_s = error.retry_after_s
    headers = {"Retry-After": f"{wait_s:.0f}"} if wait_s is not None else {}
    status = error.status if busy and error.status else 502
    return Problem(status, _say(error), OURS, "remote_error", headers=headers)


def _say(error: errors.CascadeError) -> str:
    return f"{error.message}. {error.hint}" if error.hint else error.message


def _find_field(message: str) -> str | None:
    """Find the field that a message of the engine begins with."""
    if message.startswith("the thinking budget"):
        return f"thinking_budget_{'seconds' if ' seconds' in message else 'tokens'}"
    found = re.match(r"(\w+)( is |:| schema)", message)
    return _FIELDS.get(found[1], found[1]) if found else None
