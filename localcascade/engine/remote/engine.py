"""The engine of a server that speaks the OpenAI format, as if it were one of ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator

import httpx2

from localcascade.engine.chat import AsyncChat, Chat
from localcascade.engine.remote.endpoint import MAX_PROBLEM_BYTES, Endpoint, find_endpoint
from localcascade.engine.remote.models import choose_model
from localcascade.engine.remote.turn import PASSED_ON, RemoteTurn
from localcascade.engine.sampling import check_request
from localcascade.engine.wire import ModelInfo
from localcascade.prompt.events import ChatRequest, Event
from quantize.closing import Closing

SILENCE_S = 600.0
MAX_LIST_BYTES = 8 << 20


class RemoteEngine(Closing):
    """A model on a server; a context manager with the interface of engine.client.Engine.

    Any thread may send requests. Nothing is sent before the first one. A session's name stays
    here. So does a thinking budget in seconds, which no server knows: at its end the server is told
    to answer, as by answer_now.

    Args:
        url: Of the server, e.g. "http://localhost:8080" or "https://host/v1".
        key: Sent as a bearer token; None sends none. It appears in no message.
        model: As the server calls it; None takes the first that it lists.
        silence_s: Longest silence in the middle of an answer.

    Raises:
        ValueError: The address or the key is none.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        model: str | None = None,
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._endpoint = find_endpoint(url, key, silence_s)
        self._model = model
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._info: ModelInfo | None = None

    def load(self, on_progress: Callable[[str, int, int], None] | None = None) -> ModelInfo:  # noqa: ARG002
        """Ask the server for its models, unless that is done; loading them is its own affair.

        Args:
            on_progress: Never called; there for the interface's sake.

        Returns:
            What the server tells of the model; a count that it does not tell is 0.

        Raises:
            ModelNotFound: It has no such model, or none at all.
            RemoteError: It cannot be reached, or refuses.
            OfflineError: It is on another machine, and the network must not be used.
        """
        with self._lock:
            if self._info is None:
                self._info = self._ask_models()
            return self._info

    def chat(self, request: ChatRequest) -> Chat:
        """Generate one turn; see engine.client.Engine.chat.

        Raises:
            ValueError: The request's numbers make no sense; every other error is a Failed.
        """
        check_request(request)
        turn = RemoteTurn(self._endpoint, request)
        return Chat(_run(self, turn), turn.answer_now)

    def achat(self, request: ChatRequest) -> AsyncChat:
        """Generate one turn; the asynchronous twin of chat.

        Raises:
            ValueError: As chat does.
        """
        check_request(request)
        turn = RemoteTurn(self._endpoint, request)
        return AsyncChat(_run_async(self, turn), turn.answer_now)

    def count_tokens(self, text: str) -> int | None:  # noqa: ARG002
        """Say that the tokens of a text are not known: these servers have no common way to ask."""
        return None

    def close(self) -> None:
        """Close the connections; a later request opens others."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    @property
    def endpoint(self) -> Endpoint:
        """The server."""
        return self._endpoint

    def open_client(self) -> httpx2.Client:
        """Take the client that all threads share, or make it."""
        with self._lock:
            return self._open()

    def find_model(self) -> str:
        """The model's name at the server, which is asked for it if the user gave none."""
        return self._model or self.load().name

    def _open(self) -> httpx2.Client:
        self._endpoint.check_allowed()
        if self._client is None:
            self._client = httpx2.Client(**self._endpoint.make_options())
        return self._client

    def _ask_models(self) -> ModelInfo:
        try:
            with self._open().stream("GET", f"{self._endpoint.url}/models") as answer:
                body = b"".join(_limit(answer.iter_raw(), MAX_LIST_BYTES))
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as exc:
            raise self._endpoint.explain_exception(exc) from exc
        if answer.status_code != 200 and not (answer.status_code == 404 and self._model):
            raise self._endpoint.explain_status(answer.status_code, answer.headers, body)
        return choose_model(self._endpoint, body, self._model)


def _run(engine: RemoteEngine, turn: RemoteTurn) -> Generator[Event, None, None]:
    try:
        client = _begin(engine, turn)
        while not turn.is_over:
            with client.stream(*turn.target, json=turn.body) as answer:
                pieces = answer.iter_raw()
                if not turn.is_accepted(answer):
                    turn.judge(answer, b"".join(_limit(pieces, MAX_PROBLEM_BYTES)))
                    continue
                for piece in pieces:
                    yield from turn.take(piece)
                    if turn.is_over:
                        break
                yield from turn.finish()
    except PASSED_ON as exc:
        yield from turn.fail(exc)


async def _run_async(engine: RemoteEngine, turn: RemoteTurn) -> AsyncGenerator[Event, None]:
    try:
        await asyncio.to_thread(_begin, engine, turn)
        async with httpx2.AsyncClient(**turn.endpoint.make_options()) as client:
            while not turn.is_over:
                async with client.stream(*turn.target, json=turn.body) as answer:
                    pieces = answer.aiter_raw()
                    if not turn.is_accepted(answer):
                        turn.judge(answer, await _read_limited(pieces, MAX_PROBLEM_BYTES))
                        continue
                    async for piece in pieces:
                        for event in turn.take(piece):
                            yield event
                        if turn.is_over:
                            break
                    for event in turn.finish():
                        yield event
    except PASSED_ON as exc:
        for event in turn.fail(exc):
            yield event


def _begin(engine: RemoteEngine, turn: RemoteTurn) -> httpx2.Client:
    client = engine.open_client()
    turn.begin(engine.find_model())
    return client


def _limit(pieces: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """Pass pieces on until there are enough."""
    n_bytes = 0
    for piece in pieces:
        yield piece
        n_bytes += len(piece)
        if n_bytes >= most_bytes:
            return


async def _read_limited(pieces: AsyncIterator[bytes], most_bytes: int) -> bytes:
    body = b""
    async for piece in pieces:
        body += piece
        if len(body) >= most_bytes:
            break
    return body
