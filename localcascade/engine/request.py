"""One chat request at the worker: sent, followed to its last event, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

from localcascade.engine.chat import AsyncChat, Chat
from localcascade.engine.process import (
    STAGE_LIMITS_S,
    Answer,
    Deliver,
    WorkerProcess,
    choose_limit,
    open_answer,
)
from localcascade.engine.wire import decode_event, encode_chat_request
from localcascade.errors import CascadeError, TemplateError
from localcascade.prompt.events import ChatRequest, Done, Event, Failed

Start = Callable[[], WorkerProcess]
"""Starts the worker and loads the model, unless that is done; raises what Engine.load does."""


def open_chat(start: Start, path: Path, request: ChatRequest) -> Chat:
    """Make a turn of the worker.

    Args:
        start: Starts the worker.
        path: The model file, for messages.
        request: What to generate.
    """
    turn = _Turn(path, request)
    return Chat(_run(start, turn), turn.answer_now)


def open_async_chat(start: Start, path: Path, request: ChatRequest) -> AsyncChat:
    """Make a turn of the worker; the asynchronous twin of open_chat."""
    turn = _Turn(path, request)
    return AsyncChat(_run_async(start, turn), turn.answer_now)


def _run(start: Start, turn: _Turn) -> Generator[Event, None, None]:
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    try:
        turn.begin(start(), answers.put)
    except (CascadeError, ValueError) as exc:
        yield Failed(exc)
        return
    try:
        while not turn.is_over:
            yield from turn.take(_wait(answers, turn.limit_s))
    finally:
        turn.end()


async def _run_async(start: Start, turn: _Turn) -> AsyncGenerator[Event, None]:
    loop = asyncio.get_running_loop()
    answers: asyncio.Queue[Answer] = asyncio.Queue()

    def deliver(answer: Answer) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(answers.put_nowait, answer)

    try:
        turn.begin(await asyncio.to_thread(start), deliver)
    except (CascadeError, ValueError) as exc:
        yield Failed(exc)
        return
    try:
        while not turn.is_over:
            for event in turn.take(await _wait_async(answers, turn.limit_s)):
                yield event
    finally:
        turn.end()


class _Turn:
    """A chat request in flight: answers in, events out.

    Args:
        path: The model file, for messages.
        request: What to generate.
    """

    def __init__(self, path: Path, request: ChatRequest) -> None:
        self._path, self._request = path, request
        self._worker: WorkerProcess | None = None
        self._number = 0
        self._n_left = request.n
        self._wants_answer = False
        self.is_over = False
        self.limit_s: float | None = None
        """How long to wait for the next answer."""

    def begin(self, worker: WorkerProcess, deliver: Deliver) -> None:
        """Send the request.

        Args:
            worker: The worker, with the model loaded.
            deliver: Takes the answers.
        """
        request = encode_chat_request(self._request)
        self._number = worker.request(deliver, "chat", request=request)
        self._worker = worker
        if self._wants_answer:
            self.answer_now()

    def answer_now(self) -> None:
        """Tell the worker, or remember it until there is one."""
        self._wants_answer = True
        if self._worker is not None and not self.is_over:
            self._worker.tell(self._number, "answer_now")

    def take(self, answer: Answer | None) -> tuple[Event, ...]:
        """Turn an answer, or None for none within the limit, into the events it holds."""
        if answer is None:
            self._get_worker().kill("its chat template did not finish for another request")
            return self._fail(describe_slow_template(self._path))
        try:
            frame, _ = open_answer(answer)
        except (CascadeError, ValueError) as exc:
            return self._fail(exc)
        self.limit_s = choose_limit(frame, self.limit_s)
        if frame["kind"] != "event":
            return ()
        event = decode_event(frame["event"])
        self._n_left -= isinstance(event, Done)
        self.is_over = self._n_left == 0
        return (event,)

    def end(self) -> None:
        """Stop what may still run."""
        if self.is_over:
            self._get_worker().forget(self._number)
        else:
            self._get_worker().cancel(self._number)

    def _get_worker(self) -> WorkerProcess:
        assert self._worker is not None
        return self._worker

    def _fail(self, error: Exception) -> tuple[Event, ...]:
        self.is_over = True
        return (Failed(error),)


def _wait(answers: queue.SimpleQueue[Answer], limit_s: float | None) -> Answer | None:
    try:
        return answers.get(timeout=limit_s)
    except queue.Empty:
        return None


async def _wait_async(answers: asyncio.Queue[Answer], limit_s: float | None) -> Answer | None:
    try:
        return await asyncio.wait_for(answers.get(), limit_s)
    except TimeoutError:
        return None


def describe_slow_template(path: Path) -> TemplateError:
    """Put in words that a template took longer than it may."""
    return TemplateError(
        f"{path}: tokenizer.chat_template did not finish within {STAGE_LIMITS_S['template']:.0f} s",
        "The template loops or is made to do harm: get the file from another source.",
    )
