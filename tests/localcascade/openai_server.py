"""A server of the OpenAI format, in a thread: it says what a test tells it to, faults included."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], Response]
"""Takes the body of a request."""


@dataclass
class Stub:
    """What the server is to answer, and what it was asked."""

    url: str = ""
    answer: Answer = field(default=lambda body: stream(say("hello")))
    models: Answer = field(default=lambda body: JSONResponse({"data": [{"id": "stub"}]}))
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)
    has_hung_up: threading.Event = field(default_factory=threading.Event)
    """The client went away in the middle of an endless answer."""


def chunk(delta: dict[str, Any] | None = None, index: int = 0, **more: Any) -> bytes:
    """One event of an answer; without a delta, it has no choices."""
    end = more.pop("end", None)
    logprobs = more.pop("logprobs", None)
    choice = {"index": index, "delta": delta, "finish_reason": end, "logprobs": logprobs}
    choices = [] if delta is None else [choice]
    told = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    return b"data: " + json.dumps(told | {"choices": choices} | more).encode() + b"\n\n"


def say(*texts: str, end: str = "stop", key: str = "content") -> list[bytes]:
    """An answer in pieces, with counts at its end."""
    usage = {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 7 + len(texts)}
    pieces = [chunk({"role": "assistant", "content": None})]
    pieces += [chunk({key: text}) for text in texts]
    return [*pieces, chunk({}, end=end), chunk(usage=usage), b"data: [DONE]\n\n"]


def stream(pieces: list[bytes], *, cut: bool = False, pause_s: float = 0.0) -> Response:
    """Send pieces; with a cut, hang up in the middle of the transfer after the last one."""

    async def send() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(pause_s)
        if cut:
            raise ConnectionResetError("cut")

    return StreamingResponse(send(), media_type="text/event-stream; charset=utf-8")


def refuse(status: int, message: str, code: str = "", **headers: str) -> Response:
    """An error in OpenAI's form; underscores of the headers' names are hyphens."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"message": message, "type": "invalid_request_error", "code": code}
    return JSONResponse({"error": error}, status, names)


def speak_endlessly(stub: Stub) -> Response:
    """Say something every few milliseconds until nobody listens."""

    async def send() -> AsyncIterator[bytes]:
        try:
            while True:
                yield chunk({"content": "on "})
                await asyncio.sleep(0.005)
        finally:
            stub.has_hung_up.set()

    return StreamingResponse(send(), media_type="text/event-stream")


@contextmanager
def serve() -> Iterator[Stub]:
    """Run the server on a port of its own."""
    stub = Stub()

    async def complete(request: Request) -> Response:
        stub.bodies.append(await request.json())
        stub.headers.append(dict(request.headers))
        return stub.answer(stub.bodies[-1])

    async def list_models(request: Request) -> Response:
        stub.headers.append(dict(request.headers))
        return stub.models({})

    async def control(request: Request) -> Response:
        stub.controls.append(await request.json())
        return JSONResponse({"success": True})

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions/control", control, methods=["POST"]),
        Route("/v1/models", list_models),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    stub.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield stub
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
