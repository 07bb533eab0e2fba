"""The worker process: reads requests, runs llama.cpp, writes events; dies with its client.

One thread computes. A second one listens, so that a cancel is heard while a token is being
computed, and so that the process ends at once when the client hangs up or is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from localcascade.engine import _llama
from localcascade.engine.collector import Collector
from localcascade.engine.model import Log, Model
from localcascade.engine.session import Session
from localcascade.engine.turn import Turn
from localcascade.engine.wire import (
    Channel,
    Frame,
    LoadOptions,
    Payload,
    decode_chat_request,
    encode_arrays,
    encode_error,
    encode_event,
)
from localcascade.errors import CascadeError, TemplateError
from localcascade.prompt.events import ChatRequest
from localcascade.prompt.marks import Segment
from localcascade.prompt.parser import OutputParser
from localcascade.prompt.template import Template

STACK_BYTES = 512 << 20
"""Of the computing thread; touched only as far as needed. llama.cpp splits text by recursion, and
26,000 letters in a row fill the usual 8 MiB."""
PARENT_CHECK_S = 1.0
"""A fork of the client may hold the socket open after the client is gone, so look for it too."""


class Inbox:
    """Requests in the order they came, and which of them were cancelled since.

    Args:
        channel: Listened to in a thread of its own, which ends the process at a hang-up.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            yield self._requests.get()

    def is_cancelled(self, request: int) -> bool:
        """Tell whether a request was cancelled."""
        return request in self._cancelled

    def _listen(self) -> NoReturn:
        while True:
            try:
                frame, _ = self._channel.receive()
            except EOFError:
                os._exit(0)
            if frame["op"] == "cancel":
                self._cancelled.add(frame["id"])
            else:
                self._requests.put(frame)


class Worker:
    """Answers requests, one after another.

    Args:
        channel: Where the answers go.
        inbox: Where the requests come from.
        model: The loaded model.
    """

    def __init__(self, channel: Channel, inbox: Inbox, model: Model) -> None:
        self._channel, self._inbox, self._model = channel, inbox, model
        self._session = Session(model)
        self._answers: dict[str, Callable[[Frame], None]] = {
            "chat": self._chat,
            "render": self._render,
            "tokenize": self._tokenize,
            "logits": self._read_logits,
            "collect": self._collect,
            "read_inputs": self._read_inputs,
        }

    def serve(self) -> None:
        """Answer for ever; the inbox ends the process. What is no error of ours is a crash."""
        for frame in self._inbox:
            try:
                self._answers[frame["op"]](frame)
            except (CascadeError, ValueError) as exc:
                send_reply(self._channel, frame, "error", error=encode_error(exc))

    @cached_property
    def _template(self) -> Template:
        source = self._model.metadata.get("tokenizer.chat_template")
        if not source:
            raise TemplateError(
                f"{self._model.info.name}: the file has no chat template",
                "Base models cannot chat; convert the checkpoint again if it is a chat model.",
            )
        return Template(source, self._model.vocabulary.special)

    def _render_prompt(self, frame: Frame, request: ChatRequest) -> tuple[list[Segment], list[int]]:
        """Render and tokenize, telling the client when a template is at work: it may hang."""
        vocabulary = self._model.vocabulary
        send_reply(self._channel, frame, "stage", stage="template")
        segments = self._template.render(request, vocabulary.bos_text, vocabulary.eos_text)
        send_reply(self._channel, frame, "stage", stage="tokenize")
        prompt = vocabulary.tokenize_segments(segments)
        if not prompt:
            raise TemplateError(f"{self._model.info.name}: the chat template wrote nothing")
        return segments, prompt

    def _chat(self, frame: Frame) -> None:
        request = decode_chat_request(frame["request"])
        segments, prompt = self._render_prompt(frame, request)
        thinking = opens_thinking(segments)
        turn = Turn(
            self._model,
            self._session,
            OutputParser(thinking, bool(request.tools), read_schemas(request.tools)),
            "thinking" if thinking else "answer",
            partial(self._inbox.is_cancelled, frame["id"]),
        )
        for event in turn.run(prompt, request.sampling):
            send_reply(self._channel, frame, "event", **encode_event(event))

    def _render(self, frame: Frame) -> None:
        _, prompt = self._render_prompt(frame, decode_chat_request(frame["request"]))
        if frame["is_complete"]:
            prompt = cut_opening(prompt, self._model.vocabulary.is_eog)
        send_reply(self._channel, frame, "result", tokens=prompt)

    def _tokenize(self, frame: Frame) -> None:
        tokens = self._model.vocabulary.tokenize(
            frame["text"], parse_special=frame["parse_special"]
        )
        send_reply(self._channel, frame, "result", tokens=tokens)

    def _read_logits(self, frame: Frame) -> None:
        logits = self._session.read_logits(frame["tokens"], frame["first"])
        payload = logits.astype("<f4", copy=False).data.cast("B")
        send_reply(self._channel, frame, "result", payload, shape=logits.shape)

    def _collect(self, frame: Frame) -> None:
        for n_done in self._collector.collect(self._session, frame["tokens"]):
            send_reply(self._channel, frame, "progress", n_tokens=n_done)
        send_reply(self._channel, frame, "result")

    def _read_inputs(self, frame: Frame) -> None:
        fields, payload = encode_arrays(self._collector.list_tensors())
        send_reply(self._channel, frame, "result", payload, **fields)

    @property
    def _collector(self) -> Collector:
        if self._model.collector is None:
            raise ValueError("the engine was not made to collect")
        return self._model.collector


def cut_opening(prompt: list[int], is_end: Callable[[int], bool]) -> list[int]:
    """Cut off the turn that a prompt opens at its end, if any turn before it was closed."""
    ends = [i for i, token in enumerate(prompt) if is_end(token)]
    return prompt[: ends[-1] + 1] if ends else prompt


def opens_thinking(segments: Sequence[Segment]) -> bool:
    """Tell whether a prompt ends inside an open <think>."""
    return "".join(segment.text for segment in segments[-4:]).rstrip().endswith("<think>")


def read_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Read tool name -> JSON schema of its parameters; what has not that form is left out."""
    functions = (tool.get("function", tool) for tool in tools)
    return {
        function["name"]: function["parameters"]
        for function in functions
        if isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("parameters"), dict)
    }


def load_model(channel: Channel, frame: Frame, log: Log) -> Model | None:
    """Answer the load request, telling the progress ten times a second at most.

    Args:
        channel: Where the answer goes.
        frame: The request.
        log: Where llama.cpp's messages go.

    Returns:
        The model, or None if it could not be loaded; the client has been told.
    """
    told_s = 0.0

    def tell(share: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > 0.1:
            told_s = time.monotonic()
            send_reply(channel, frame, "progress", share=share)

    try:
        model = Model(Path(frame["path"]), LoadOptions(**frame["options"]), log, tell)
    except CascadeError as exc:
        send_reply(channel, frame, "error", error=encode_error(exc))
        return None
    send_reply(channel, frame, "result", info=asdict(model.info))
    return model


def send_reply(
    channel: Channel, frame: Frame, kind: str, payload: Payload = b"", **fields: object
) -> None:
    """Answer a request with one frame; a client that is gone is the inbox's business."""
    with contextlib.suppress(OSError):
        channel.send({"id": frame["id"], "kind": kind, **fields}, payload)


def watch_parent(parent: int) -> None:
    """End the process once its parent is another one, which means that the first is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)


def main() -> None:
    """Run a worker; arguments are the socket's descriptor and the client's process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client to understand
    faulthandler.enable(all_threads=False)
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=watch_parent, args=(parent,), name="parent", daemon=True).start()
    channel = Channel(socket.socket(fileno=descriptor))
    inbox = Inbox(channel)
    threading.stack_size(STACK_BYTES)
    with ThreadPoolExecutor(1, thread_name_prefix="compute") as pool:
        pool.submit(load_and_serve, channel, inbox).result()


def load_and_serve(channel: Channel, inbox: Inbox) -> None:
    """Answer the first request, which is to load a model, and then all others."""
    log = Log()
    _llama.set_log(log.write)
    _llama.start_backend()
    model = load_model(channel, next(iter(inbox)), log)
    if model is not None:
        Worker(channel, inbox, model).serve()
