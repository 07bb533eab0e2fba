"""The HTTP answer to a chat request: events are followed as long as the client listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localcascade.engine.chat import AsyncChat
from localcascade.errors import EngineDied
from localcascade.prompt.events import Event, Failed
from localcascade.server.chunks import Chunk, ChunkWriter, merge
from localcascade.server.problems import STOPPING, Problem, describe

HEARTBEAT_S = 15.0
"""Longest silence of a stream: what stands between may hang up on one that seems dead."""
_HEARTBEAT = b": waiting\n\n"
_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the words back
}


async def follow(
    chat: AsyncChat, receive: Receive, silence_s: float = HEARTBEAT_S
) -> AsyncGenerator[Event | None, None]:
    """Follow a chat; when this ends, or is closed, the chat is closed too.

    Args:
        chat: The chat.
        receive: Tells when the client goes away; the body of its request has been read.
        silence_s: Longest time between two events.

    Yields:
        The events; None where there was none for so long.

    Raises:
        ClientDisconnect: The client went away.
    """
    gone = asyncio.ensure_future(_wait_until_gone(receive))
    coming = asyncio.ensure_future(_take(chat))
    try:
        while True:
            waited = asyncio.FIRST_COMPLETED
            await asyncio.wait((gone, coming), timeout=silence_s, return_when=waited)
            if gone.done():
                raise ClientDisconnect
            if not coming.done():
                yield None
                continue
            event = coming.result()
            if event is None:
                return
            coming = asyncio.ensure_future(_take(chat))
            yield event
    finally:
        gone.cancel()
        coming.cancel()
        await asyncio.gather(gone, coming, return_exceptions=True)
        await chat.aclose()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _take(chat: AsyncChat) -> Event | None:
    """Take the next event, None after the last."""
    return await anext(chat, None)


class Reply(Response):
    """A chat as one JSON body, sent when all answers have come to their ends.

    Args:
        chat: The chat, not begun.
        writer: Makes chunks of its events.
        report: Takes faults of ours.
        on_end: Called when all is over, whatever happened.
    """

    def __init__(
        self,
        chat: AsyncChat,
        writer: ChunkWriter,
        report: Callable[[Exception], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__()
        self._chat, self._writer = chat, writer
        self._report, self._on_end = report, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer; a client that hangs up ends the generation."""
        try:
            async with aclosing(follow(self._chat, receive)) as events:
                await self._answer(events, send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            await self._fail(STOPPING, send)
            raise
        except Exception as error:
            problem = describe(error)
            if problem.is_fault:
                self._report(error)
            await self._fail(problem, send)
        finally:
            self._on_end()

    async def _answer(self, events: AsyncIterator[Event | None], send: Send) -> None:
        chunks = [*self._writer.begin()]
        async for event in events:
            chunks += self._read(event)
        self._check_end()
        whole = JsonReply(merge(chunks, self._writer.write_usage()))
        await whole.send_all(send)

    async def _fail(self, problem: Problem, send: Send) -> None:
        await refuse(problem).send_all(send)

    def _read(self, event: Event | None) -> list[Chunk]:
        if isinstance(event, Failed):
            raise event.error
        return [] if event is None else [*self._writer.take(event)]

    def _check_end(self) -> None:
        if not self._writer.is_complete:
            raise EngineDied("the engine ended in the middle of an answer")


class StreamedReply(Reply):
    """A chat as server-sent events. The first event decides: what fails before it has a status."""

    _is_begun = False

    async def _answer(self, events: AsyncIterator[Event | None], send: Send) -> None:
        async for event in events:
            chunks = self._read(event)
            if not self._is_begun:
                await self._begin(send)
                chunks = [*self._writer.begin(), *chunks]
            data = _HEARTBEAT if event is None else b""
            if data := data + b"".join(map(write_event, chunks)):
                await _send_piece(data, send)
        self._check_end()
        last = b"".join(map(write_event, self._writer.end()))
        await _send_piece(last + b"data: [DONE]\n\n", send, is_last=True)

    async def _begin(self, send: Send) -> None:
        self._is_begun = True
        headers = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _fail(self, problem: Problem, send: Send) -> None:
        if self._is_begun:
            await _send_piece(write_event(problem.write()), send, is_last=True)
        else:
            await super()._fail(problem, send)


def write_event(value: Mapping[str, Any]) -> bytes:
    """Write one server-sent event."""
    return b"data: " + write_json(value) + b"\n\n"


def write_json(value: Mapping[str, Any]) -> bytes:
    """Write JSON; halves of characters, which a model may write in a call, become `?`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class JsonReply(Response):
    """One JSON object."""

    media_type = "application/json"

    def render(self, content: Mapping[str, Any]) -> bytes:
        """Write it."""
        return write_json(content)

    async def send_all(self, send: Send) -> None:
        """Send it, where nothing else was sent."""
        head = {"type": "http.response.start", "status": self.status_code}
        await send(head | {"headers": self.raw_headers})
        await _send_piece(bytes(self.body), send, is_last=True)


def refuse(problem: Problem) -> JsonReply:
    """Answer a request that is refused."""
    return JsonReply(problem.write(), problem.status, dict(problem.headers))


async def _send_piece(data: bytes, send: Send, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": not is_last})
