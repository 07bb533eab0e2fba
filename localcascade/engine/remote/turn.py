"""One turn at a server, the same for a client that waits and one that does not."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import httpx2

from localcascade.engine.remote.endpoint import Endpoint
from localcascade.engine.remote.reply import Reply, ToldError
from localcascade.engine.remote.request import compose_body, drop_refused
from localcascade.engine.remote.sse import EventStream
from localcascade.errors import CascadeError, RemoteError
from localcascade.prompt.events import ChatRequest, Delta, Done, Event, Failed

CONTROL_S = 10.0
PASSED_ON = (CascadeError, ToldError, httpx2.HTTPError, httpx2.StreamError, OSError)
"""What ends a turn with a Failed."""


class RemoteTurn:
    """A request at a server: bytes in, events out.

    Args:
        endpoint: The server.
        request: What to generate.
    """

    def __init__(self, endpoint: Endpoint, request: ChatRequest) -> None:
        self.endpoint, self._request = endpoint, request
        self.target = ("POST", f"{self.endpoint.url}/chat/completions")
        self.body: dict[str, Any] = {}
        self.is_over = False
        self._reply = Reply(request)
        self._stream = EventStream()
        self._is_begun = self._is_summed_up = False
        self._wants_answer = False
        budget = request.thinking_budget
        self._most_s = math.inf if budget is None or budget.seconds is None else budget.seconds

    def begin(self, model: str) -> None:
        """Write the request, for a model as the server calls it."""
        self.body = compose_body(self._request, model)
        self._reply = Reply(self._request)

    def is_accepted(self, answer: httpx2.Response) -> bool:
        """Whether a stream of events follows; if not, see judge."""
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = answer.headers.get("content-encoding", "identity").lower()
        is_stream = kind == "text/event-stream" and coding == "identity"
        self._is_begun = answer.status_code == 200 and is_stream
        return self._is_begun

    def judge(self, answer: httpx2.Response, body: bytes) -> None:
        """Take back what a server does not know and a turn can do without; otherwise raise."""
        status, headers = answer.status_code, answer.headers
        if status in (400, 422) and (body_without := drop_refused(self.body, body)):
            self.body = body_without
            return
        if status == 200:
            kind = headers.get("content-type", "nothing")[:80]
            raise RemoteError(
                f"{self.endpoint.url} answers with {kind}, not with a stream of events",
                "It is no OpenAI-compatible server: check the address.",
                status=status,
            )
        raise self.endpoint.explain_status(status, headers, body, self.body["model"])

    def take(self, piece: bytes) -> Iterator[Event]:
        """Turn bytes into the events they hold."""
        for data in self._stream.feed(piece):
            for event in self._reply.take(data):
                self._watch_clock(event)
                yield event
            if self._wants_answer and self._reply.id:
                self._wants_answer = False
                self._send_answer_now()
        self.is_over = self._reply.is_over

    def finish(self) -> Iterator[Event]:
        """Sum up; a reply that is not whole is a failure, with what came kept."""
        self.is_over = self._is_summed_up = True
        events = self._reply.finish()
        yield from events
        if sum(isinstance(event, Done) for event in events) < self._request.n:
            yield Failed(
                RemoteError(
                    f"{self.endpoint.url} broke off the answer",
                    "Try again; what came until then is kept.",
                )
            )

    def fail(self, error: Exception) -> list[Event]:
        """Turn what was raised into the last events."""
        if self._is_summed_up:
            return []  # the answer is whole; only the connection was not closed as it should be
        self.is_over = True
        kept = [event for event in self._reply.finish() if not isinstance(event, Done)]
        if isinstance(error, ToldError):
            error = self.endpoint.explain_status(error.status, {}, error.body)
        elif not isinstance(error, CascadeError):
            error = self.endpoint.explain_exception(error, is_begun=self._is_begun)
        return [*kept, Failed(error)]

    def answer_now(self) -> None:
        """Tell the server, or remember it until the answer has a name."""
        if not self._reply.id:
            self._wants_answer = True
        elif not self.is_over:
            self._send_answer_now()

    def _watch_clock(self, event: Event) -> None:
        """End thinking that takes too long, which is ours to do: servers count no seconds."""
        is_thinking = isinstance(event, Delta) and event.channel == "thinking"
        if is_thinking and self._reply.elapsed_s >= self._most_s:
            self._wants_answer, self._most_s = True, math.inf

    def _send_answer_now(self) -> None:
        threading.Thread(target=self._post_answer_now, name="answer now", daemon=True).start()

    def _post_answer_now(self) -> None:
        wish = {"id": self._reply.id, "action": "reasoning_end", "model": self.body["model"]}
        # A server that does not know this answers so, and thinks on.
        with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, OSError):
            httpx2.post(
                f"{self.target[1]}/control",
                json=wish,
                **self.endpoint.make_options() | {"timeout": CONTROL_S},
            )
