"""Which models a server lists, and what it tells of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from localcascade.engine.remote.endpoint import Endpoint
from localcascade.engine.remote.fields import check_kind, get_count, get_field
from localcascade.engine.wire import ModelInfo
from localcascade.errors import ModelNotFound, RemoteError

MAX_SHOWN = 10


def choose_model(endpoint: Endpoint, body: bytes, wanted: str | None) -> ModelInfo:
    """Find a model in a server's list.

    Args:
        endpoint: The server.
        body: What it answers to GET /models; if a model is wanted, it may have no such list.
        wanted: A model's name; None takes the first.

    Returns:
        What the list tells of it; a count that it does not tell is 0.

    Raises:
        ModelNotFound: It is not there, or the list is empty.
        RemoteError: This is no list of models.
    """
    listed = _read_list(endpoint, body, may_be_none=wanted is not None)
    if wanted is not None and not listed:
        return _describe(endpoint, wanted, {})
    for name, told in listed.items():
        if wanted in (None, name):
            return _describe(endpoint, name, told)
    names = ", ".join([*listed][:MAX_SHOWN]) or "none"
    raise ModelNotFound(
        f"{endpoint.url} has no model {wanted or ''}".rstrip(), f"It lists: {names}."
    )


def _read_list(endpoint: Endpoint, body: bytes, *, may_be_none: bool) -> dict[str, dict[str, Any]]:
    try:
        parsed = check_kind(json.loads(body), "the list of models", dict)
    except (ValueError, RecursionError, RemoteError) as exc:
        if may_be_none:
            return {}
        raise RemoteError(
            f"{endpoint.url}/models is no list of models",
            "It is no OpenAI-compatible server: check the address; most end in /v1.",
        ) from exc
    rows = [check_kind(row, "a model", dict) for row in get_field(parsed, "data", list, [])]
    return {get_field(row, "id", str, ""): row for row in rows}


def _describe(endpoint: Endpoint, name: str, told: Mapping[str, Any]) -> ModelInfo:
    """Collect the counts as llama-server (in `meta`) and vLLM (`max_model_len`) tell them."""
    meta = get_field(told, "meta", dict, {})
    n_ctx_train = get_count(meta, "n_ctx_train", 0)
    return ModelInfo(
        name=name,
        n_ctx=get_count(meta, "n_ctx", get_count(told, "max_model_len", n_ctx_train)),
        n_ctx_train=n_ctx_train,
        n_vocab=get_count(meta, "n_vocab", 0),
        load_s=0.0,
        devices=(f"the server {endpoint.host}",),
    )
