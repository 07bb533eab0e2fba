"""The HTTP API: paths, and what is behind each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from localcascade.engine.chat import AsyncChat
from localcascade.engine.wire import ModelInfo
from localcascade.prompt.events import ChatRequest
from localcascade.server.body import Body, read_body, read_wish
from localcascade.server.chunks import ChunkWriter, Label, Wants
from localcascade.server.gate import Gate, Guard
from localcascade.server.problems import OURS, THEIRS, Problem, Refusal, describe
from localcascade.server.reply import JsonReply, Reply, StreamedReply, refuse
from localcascade.server.request import Defaults, make_request

MAX_BODY_BYTES = 16 << 20
"""A context of a million tokens is about 4 MiB of text."""
MAX_WAITING = 128
"""Requests at once, those included that wait for their turn."""
BUSY_S = 2
PATHS = "/v1/chat/completions, /v1/models and /health"


class ChatEngine(Protocol):
    """What the server needs of an engine."""

    def achat(self, request: ChatRequest) -> AsyncChat:
        """Generate one turn."""


@dataclass(frozen=True)
class Offer:
    """What is served."""

    engine: ChatEngine
    """Loaded."""
    name: str
    """What clients call the model."""
    info: ModelInfo
    defaults: Defaults = field(default_factory=Defaults)
    since_s: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""

    def describe_model(self) -> dict[str, Any]:
        """Describe the model as OpenAI does; sizes stand where llama-server and vLLM tell them."""
        info = self.info
        meta = {"n_ctx": info.n_ctx, "n_ctx_train": info.n_ctx_train, "n_vocab": info.n_vocab}
        return {
            "id": self.name,
            "object": "model",
            "created": self.since_s,
            "owned_by": "localcascade",
            "max_model_len": info.n_ctx,
            "meta": meta,
        }


def make_app(
    offer: Offer,
    guard: Guard,
    report: Callable[[Exception], None],
    log: Callable[[str], None] | None = None,
) -> Starlette:
    """Make the application.

    Args:
        offer: What is served.
        guard: Says who may ask.
        report: Takes faults of ours, which clients are told little of.
        log: Takes a line for each request.

    Returns:
        For any ASGI server.
    """
    service = Service(offer, report)
    routes = [
        Route("/health", service.tell_health),
        Route("/v1/models", service.list_models),
        Route("/v1/models/{name:path}", service.show_model),
        Route("/v1/chat/completions", service.complete, methods=["POST"]),
        Route("/v1/chat/completions/control", service.control, methods=["POST"]),
    ]
    cors = Middleware(
        CORSMiddleware, allow_origins=guard.origins, allow_methods=["*"], allow_headers=["*"]
    )
    gate = Middleware(Gate, guard=guard, log=log)
    app = Starlette(
        routes=routes,
        middleware=[cors, gate] if guard.origins else [gate],
        exception_handlers={
            Refusal: lambda _request, error: refuse(describe(error)),
            HTTPException: _explain_http,
            ClientDisconnect: lambda _request, _error: Response(status_code=400),
            Exception: service.explain_fault,
        },
    )
    app.router.redirect_slashes = False
    return app


class Service:
    """Answers requests for one model.

    Args:
        offer: What is served.
        report: Takes faults of ours.
    """

    def __init__(self, offer: Offer, report: Callable[[Exception], None]) -> None:
        self._offer, self._report = offer, report
        self._chats: dict[str, AsyncChat] = {}

    async def tell_health(self, _request: Request) -> Response:
        """Say that the server is there; the model was loaded before it listened."""
        return JsonReply({"status": "ok"})

    async def list_models(self, _request: Request) -> Response:
        """List the one model."""
        return JsonReply({"object": "list", "data": [self._offer.describe_model()]})

    async def show_model(self, request: Request) -> Response:
        """Describe the model."""
        self._check_model(request.path_params["name"])
        return JsonReply(self._offer.describe_model())

    async def complete(self, request: Request) -> Response:
        """Generate a turn."""
        body = read_body(await read_bytes(request))
        self._check_model(body.model)
        self._check_room()
        try:
            chat = self._offer.engine.achat(make_request(body, self._offer.defaults))
        except ValueError as error:
            raise Refusal(describe(error)) from error
        label = Label(self._offer.name)
        self._chats[label.id] = chat
        kind = StreamedReply if body.stream else Reply
        writer = ChunkWriter(label, _read_wants(body))
        return kind(chat, writer, self._report, lambda: self._forget(label.id))

    async def control(self, request: Request) -> Response:
        """End the thinking of a turn, as llama-server does it."""
        wish = read_wish(await read_bytes(request))
        chat = self._chats.get(wish.id)
        if chat is None:
            message = "no such completion is under way"
            raise Refusal(Problem(404, message, THEIRS, "not_found", "id"))
        chat.answer_now()
        return JsonReply({"success": True})

    async def explain_fault(self, _request: Request, error: Exception) -> Response:
        """Answer what nobody foresaw."""
        self._report(error)
        return refuse(describe(error))

    def _check_model(self, name: str | None) -> None:
        """Refuse another model than the one there is; who names none means that one."""
        if name not in (None, self._offer.name):
            message = f"there is no model {name!a:.200}; this server has {self._offer.name}"
            raise Refusal(Problem(404, message, THEIRS, "model_not_found", "model"))

    def _check_room(self) -> None:
        if len(self._chats) >= MAX_WAITING:
            message = f"{MAX_WAITING} requests are waiting already; try again in a moment"
            headers = {"Retry-After": str(BUSY_S)}
            raise Refusal(Problem(503, message, OURS, "overloaded", headers=headers))

    def _forget(self, name: str) -> None:
        self._chats.pop(name, None)


def _read_wants(body: Body) -> Wants:
    options = body.stream_options
    return Wants(
        n=1 if body.n is None else body.n,
        usage=bool(body.stream and options and options.include_usage),
        progress=bool(body.return_progress and body.stream),
        many_calls=body.parallel_tool_calls is not False,
    )


async def read_bytes(request: Request) -> bytes:
    """Read the body of a request, if it is not too long.

    Raises:
        Refusal: It is; the rest is not read.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise Refusal(_TOO_LONG)
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise Refusal(_TOO_LONG)
    return bytes(data)


_TOO_LONG = Problem(
    413, f"the body is longer than {MAX_BODY_BYTES >> 20} MiB", THEIRS, "body_too_long"
)


async def _explain_http(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: a path or a method that is none."""
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, dict(error.headers or {})
    code, message = f"http_{status}", HTTPStatus(status).phrase
    if status == 404:
        code = "not_found"
        message = f"there is nothing at {request.url.path!a:.200}; there are {PATHS}"
    elif status == 405:
        code = "method_not_allowed"
        message = f"{request.url.path} does not take {request.method!a:.20}"
    return refuse(Problem(status, message, THEIRS, code, headers=headers))
