"""The worker process: reads requests, runs llama.cpp, writes events; dies with its client.

One thread computes. A second one listens, so that a cancel is heard while a token is being
computed, and so that the process ends at once when the client hangs up or is gone. A third one
makes the prompts, so that a slow template keeps nobody's tokens waiting.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from localcascade.engine import _llama
from localcascade.engine.archive import Archive, Ignored
from localcascade.engine.checkpoints import Checkpoint, Checkpoints
from localcascade.engine.collector import Collector
from localcascade.engine.composer import Composer, Prompt
from localcascade.engine.generation import Generation, Wishes
from localcascade.engine.measuring import measure_speed, read_peak_bytes
from localcascade.engine.model import Log, Model
from localcascade.engine.running import announce_engine
from localcascade.engine.sampling import check_tokens
from localcascade.engine.scheduler import Scheduler
from localcascade.engine.session import Session
from localcascade.engine.slots import Slots
from localcascade.engine.wire import (
    Channel,
    Frame,
    LoadOptions,
    Payload,
    SpeedTest,
    decode_chat_request,
    encode_arrays,
    encode_error,
    encode_event,
)
from localcascade.errors import CascadeError
from localcascade.prompt.events import Done, Event

STACK_BYTES = 512 << 20
"""Of the computing thread; touched only as far as needed. llama.cpp splits text by recursion, and
26,000 letters in a row fill the usual 8 MiB."""
FINISH_LIMIT_S = 2.0
"""How long the state of a session may still be written after the client hung up; it waits for 3."""
PARENT_CHECK_S = 1.0
"""A fork of the client may hold the socket open after the client is gone, so look for it too."""


class Inbox:
    """Listens to the client, in a thread of its own, which ends the process at a hang-up.

    Args:
        channel: The client.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._wishes: dict[int, Wishes] = {}
        self.finish: Callable[[], None] = lambda: None
        """Called at a hang-up: what must still be done, within FINISH_LIMIT_S."""
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            yield self._requests.get()

    def watch(self, request: int) -> Wishes:
        """Find out what else the client wants of a chat, from its arrival on."""
        return self._wishes[request]

    def forget(self, request: int) -> None:
        """Listen to no more wishes: the request has been answered."""
        self._wishes.pop(request, None)

    def _listen(self) -> NoReturn:
        while True:
            try:
                frame, _ = self._channel.receive()
            except EOFError:
                self._end()
            wishes = self._wishes.get(frame["id"], Wishes())
            if frame["op"] == "cancel":
                wishes.is_cancelled = True
            elif frame["op"] == "answer_now":
                wishes.wants_answer = True
            else:
                if frame["op"] == "chat":
                    self._wishes[frame["id"]] = wishes
                self._requests.put(frame)

    def _end(self) -> NoReturn:
        threading.Timer(FINISH_LIMIT_S, os._exit, (0,)).start()
        self.finish()
        os._exit(0)


class Worker:
    """Answers requests: prompts are made in one thread, all that computes is done in another.

    Args:
        channel: Where the answers go.
        inbox: Where the requests come from.
        model: The loaded model.
        options: How it was loaded.
        path: The model file.
    """

    def __init__(
        self, channel: Channel, inbox: Inbox, model: Model, options: LoadOptions, path: Path
    ) -> None:
        self._channel, self._inbox, self._model = channel, inbox, model
        self._composer = Composer(model)
        self._archive = open_archive(options, path)
        self._archived: set[str] = set()  # what is in memory already
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="archive")
        inbox.finish = self._writer.shutdown  # waits for what is being written
        self._outgoing: list[tuple[int, list[Any]]] = []
        slots = Slots(model, Checkpoints(model.checkpoint_bytes))
        # What is collected is what was said, not what was drafted.
        lookup = "off" if options.collects else options.lookup
        self._scheduler = Scheduler(
            model, slots, self._flush, self._save if self._archive else None, lookup
        )
        self._answers: dict[str, Callable[[Frame], None]] = {
            "chat": self._chat,
            "render": self._render,
            "tokenize": self._tokenize,
        }
        self._jobs: dict[str, Callable[[Frame, Session], None]] = {
            "logits": self._read_logits,
            "measure": self._measure,
            "collect": self._collect,
            "read_inputs": self._read_inputs,
            "watch": self._watch,
            "read_outer": self._read_outer,
            "disturb": self._disturb,
        }

    def serve(self) -> None:
        """Answer for ever; the inbox ends the process. What is no error of ours is a crash."""
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
        self._scheduler.serve()

    def _prepare(self) -> None:
        try:
            self._composer.warm_up()
            for frame in self._inbox:
                if frame["op"] in self._jobs:
                    self._scheduler.submit(partial(self._run_job, frame))
                else:
                    with self._telling_errors(frame):
                        self._answers[frame["op"]](frame)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _run_job(self, frame: Frame, session: Session) -> None:
        with self._telling_errors(frame):
            self._jobs[frame["op"]](frame, session)

    @contextlib.contextmanager
    def _telling_errors(self, frame: Frame) -> Iterator[None]:
        try:
            yield
        except (CascadeError, ValueError) as exc:
            self._fail(frame, exc)

    def _fail(self, frame: Frame, error: Exception) -> None:
        self._inbox.forget(frame["id"])
        send_reply(self._channel, frame, "error", error=encode_error(error))

    def _chat(self, frame: Frame) -> None:
        request = decode_chat_request(frame["request"])
        check_tokens(request.sampling, self._model.info.n_vocab)
        prompt = self._composer.compose(request, partial(self._tell_stage, frame))
        answers = self._make_answers(frame, prompt)
        answers[0].saved = self._load(request.session)
        for answer in answers:
            self._scheduler.submit(answer)

    def _make_answers(self, frame: Frame, prompt: Prompt) -> list[Generation]:
        n_left = itertools.count(prompt.request.n - 1, -1)

        def emit(event: Event) -> None:
            self._outgoing.append((frame["id"], encode_event(event)))
            if isinstance(event, Done) and next(n_left) == 0:
                self._inbox.forget(frame["id"])

        fail, wishes = partial(self._fail, frame), self._inbox.watch(frame["id"])
        answers = [
            Generation(self._model, prompt, emit, fail, wishes, index)
            for index in range(prompt.request.n)
        ]
        for answer in answers[1:]:
            answer.leader = answers[0]
        return answers

    def _flush(self) -> None:
        """Send what a step brought, in one frame."""
        if self._outgoing:
            with contextlib.suppress(OSError):  # a client that is gone is the inbox's business
                self._channel.send({"kind": "events", "events": self._outgoing})
            self._outgoing.clear()

    def _load(self, name: str | None) -> tuple[Checkpoint, ...]:
        if name is None or self._archive is None or name in self._archived:
            return ()
        self._archived.add(name)
        found = self._archive.load(name)
        if isinstance(found, Ignored):
            print(f"session {name!r} is read again: {found.detail}", file=sys.stderr, flush=True)
            return ()
        return found

    def _save(self, name: str, checkpoints: Sequence[Checkpoint]) -> None:
        self._writer.submit(self._write, name, checkpoints)

    def _write(self, name: str, checkpoints: Sequence[Checkpoint]) -> None:
        """Keep a session on disk; if that fails, the chat goes on without."""
        assert self._archive is not None
        try:
            self._archive.save(name, checkpoints)
        except CascadeError as exc:
            print(f"session {name!r} is not kept: {exc}", file=sys.stderr, flush=True)

    def _tell_stage(self, frame: Frame, stage: str) -> None:
        """Tell the client when a template is at work: it may hang."""
        send_reply(self._channel, frame, "stage", stage=stage)

    def _render(self, frame: Frame) -> None:
        tokens = self._composer.render(
            decode_chat_request(frame["request"]),
            partial(self._tell_stage, frame),
            is_complete=frame["is_complete"],
        )
        send_reply(self._channel, frame, "result", tokens=tokens)

    def _tokenize(self, frame: Frame) -> None:
        tokens = self._model.vocabulary.tokenize(
            frame["text"], parse_special=frame["parse_special"]
        )
        send_reply(self._channel, frame, "result", tokens=tokens)

    def _read_logits(self, frame: Frame, session: Session) -> None:
        logits = session.read_logits(frame["tokens"], frame["first"])
        payload = logits.astype("<f4", copy=False).data.cast("B")
        send_reply(self._channel, frame, "result", payload, shape=logits.shape)

    def _measure(self, frame: Frame, session: Session) -> None:
        session.clear()
        test, elapsed_s = SpeedTest(**frame["test"]), []
        for one_s in measure_speed(self._model, test):
            elapsed_s.append(one_s)
            send_reply(self._channel, frame, "progress", n_done=len(elapsed_s))
        send_reply(
            self._channel, frame, "result", elapsed_s=elapsed_s, peak_bytes=read_peak_bytes()
        )

    def _collect(self, frame: Frame, session: Session) -> None:
        for n_done in self._collector.collect(session, frame["tokens"]):
            send_reply(self._channel, frame, "progress", n_tokens=n_done)
        send_reply(self._channel, frame, "result")

    def _read_inputs(self, frame: Frame, _session: Session) -> None:
        fields, payload = encode_arrays(self._collector.list_tensors())
        send_reply(self._channel, frame, "result", payload, **fields)

    def _watch(self, frame: Frame, _session: Session) -> None:
        self._collector.watch(frame["matrices"])
        send_reply(self._channel, frame, "result")

    def _read_outer(self, frame: Frame, _session: Session) -> None:
        packed, count = self._collector.read_outer(frame["matrix"], frame["index"])
        payload = packed.astype("<f4", copy=False).data.cast("B")
        send_reply(self._channel, frame, "result", payload, count=count)

    def _disturb(self, frame: Frame, _session: Session) -> None:
        self._collector.disturb(frame["matrix"], frame["variances"], frame["seed"])
        send_reply(self._channel, frame, "result")

    @property
    def _collector(self) -> Collector:
        if self._model.collector is None:
            raise ValueError("the engine was not made to collect")
        return self._model.collector


def open_archive(options: LoadOptions, path: Path) -> Archive | None:
    """Open the folder of named sessions, if there is one.

    Returns:
        The archive; a state is good for the same file, build and type of KV cache.
    """
    if options.session_folder is None:
        return None
    file, build = path.stat(), version("llama-cpp-python")
    key = repr((str(path), file.st_size, file.st_mtime_ns, build, options.cache_type))
    return Archive(Path(options.session_folder), key)


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
    except (CascadeError, ValueError) as exc:
        send_reply(channel, frame, "error", error=encode_error(exc))
        return None
    announce_engine(Path(frame["path"]), model.info.n_ctx)
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
    frame = next(iter(inbox))
    model = load_model(channel, frame, log)
    if model is not None:
        options = LoadOptions(**frame["options"])
        Worker(channel, inbox, model, options, Path(frame["path"])).serve()
