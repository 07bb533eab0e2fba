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
from typing import Any

from localcascade.engine import _llama
from localcascade.engine.archive import Archive, Ignored
from localcascade.engine.checkpoints import Checkpoint, Checkpoints
from localcascade.engine.composer import Composer, Prompt
from localcascade.engine.generation import Generation
from localcascade.engine.inbox import Inbox
from localcascade.engine.jobs import Jobs
from localcascade.engine.model import Log, Model
from localcascade.engine.patience import Patience
from localcascade.engine.running import announce_engine
from localcascade.engine.sampling import check_tokens
from localcascade.engine.scheduler import Scheduler
from localcascade.engine.session import Session
from localcascade.engine.slots import Slots
from localcascade.engine.wire import (
    Channel,
    Frame,
    LoadOptions,
    decode_chat_request,
    encode_error,
    encode_event,
)
from localcascade.errors import CascadeError
from localcascade.prompt.events import Done, Event

STACK_BYTES = 512 << 20
"""Of threads that compute and make prompts; touched only as far as needed. llama.cpp splits text
by recursion: vocabulary.PIECE_CHARS in a row take 5 MiB with one family's rules."""
PARENT_CHECK_S = 1.0
"""A fork of the client may hold the socket open after the client is gone, so look for it too."""


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
        self._jobs = Jobs(channel, model)

    def serve(self) -> None:
        """Answer for ever; the inbox ends the process. What is no error of ours is a crash."""
        self._model.patience.watch()
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
        self._scheduler.serve()

    def _prepare(self) -> None:
        patience = Patience("the chat template")  # a client counts from its request on
        patience.watch()
        try:
            with patience:
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
            self._jobs.run(frame, session)

    @contextlib.contextmanager
    def _telling_errors(self, frame: Frame) -> Iterator[None]:
        try:
            yield
        except (CascadeError, ValueError) as exc:
            self._fail(frame, exc)

    def _fail(self, frame: Frame, error: Exception) -> None:
        self._inbox.forget(frame["id"])
        self._channel.reply(frame, "error", error=encode_error(error))

    def _chat(self, frame: Frame) -> None:
        request = decode_chat_request(frame["request"])
        check_tokens(request.sampling, self._model.info.n_vocab)
        prompt = self._composer.compose(request, partial(self._tell_stage, frame))
        answers = self._make_answers(frame, prompt)
        answers[0].saved = self._load(request.session)
        self._scheduler.submit(*answers)

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
            if found.reason != "missing":  # as of a new one
                problem = f"session {name!r} is read again: {found.detail}"
                print(problem, file=sys.stderr, flush=True)
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
        self._channel.reply(frame, "stage", stage=stage)

    def _render(self, frame: Frame) -> None:
        tokens = self._composer.render(
            decode_chat_request(frame["request"]),
            partial(self._tell_stage, frame),
            is_complete=frame["is_complete"],
        )
        self._channel.reply(frame, "result", tokens=tokens)

    def _tokenize(self, frame: Frame) -> None:
        tokens = self._model.vocabulary.tokenize(
            frame["text"], parse_special=frame["parse_special"]
        )
        self._channel.reply(frame, "result", tokens=tokens)


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
            channel.reply(frame, "progress", share=share)

    try:
        model = Model(Path(frame["path"]), LoadOptions(**frame["options"]), log, tell)
    except (CascadeError, ValueError) as exc:
        channel.reply(frame, "error", error=encode_error(exc))
        return None
    announce_engine(Path(frame["path"]), model.info.n_ctx)
    channel.reply(frame, "result", info=asdict(model.info))
    return model


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
