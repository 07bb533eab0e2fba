"""The engine as everyone else sees it: messages in, channelled events out."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from localcascade.engine.header import check_header
from localcascade.engine.process import (
    STAGE_LIMITS_S,
    Answer,
    Deliver,
    WorkerProcess,
    choose_limit,
    cut_tail,
    open_answer,
)
from localcascade.engine.sampling import check_sampling
from localcascade.engine.wire import (
    Frame,
    LoadOptions,
    ModelInfo,
    decode_arrays,
    decode_event,
    encode_chat_request,
)
from localcascade.errors import CascadeError, EngineDied, TemplateError
from localcascade.prompt.events import ChatRequest, Done, Event, Failed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_DEATHS = 3
DEATH_WINDOW_S = 60.0


class Engine:
    """A model in a worker process of its own; a context manager.

    The worker starts at the first request. If it dies, the requests it was working on fail
    with EngineDied, and the next one starts another; after three deaths within a minute none
    is started until the minute is over. Any thread may send requests; they queue.

    Args:
        path: A GGUF file.
        n_ctx: Context in tokens; None is what the model was trained for, at most 8192.
        n_threads: CPU threads; None is the physical cores that this process may use.
        n_gpu_layers: Layers on the GPU, -1 for all; None is all if the build knows a GPU.
        collects: Make one that sums up the inputs of its matrices, see collect; it is slower.

    Raises:
        ValueError: A count makes no sense.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int | None = None,
        collects: bool = False,
    ) -> None:
        for name, value, least in (
            ("n_ctx", n_ctx, 1), ("n_threads", n_threads, 1), ("n_gpu_layers", n_gpu_layers, -1)
        ):  # fmt: skip
            if value is not None and not least <= value < 2**31:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        self._path = Path(path).absolute()
        self._options = LoadOptions(n_ctx, n_threads, n_gpu_layers, collects=collects)
        self._lock = threading.Lock()
        self._deaths: deque[tuple[float, EngineDied]] = deque(maxlen=MAX_DEATHS)
        self._worker: WorkerProcess | None = None
        self._info: ModelInfo | None = None

    def load(self, on_progress: Callable[[str, int, int], None] | None = None) -> ModelInfo:
        """Start the worker and load the model, unless that is done.

        Args:
            on_progress: Called with ("load", per cent done, 100).

        Returns:
            What is known of the model.

        Raises:
            ModelFileError: The file is damaged, or llama.cpp refuses it.
            NativeError: The context could not be created, most often for want of memory.
            EngineDied: The worker died, or did so three times within a minute.
        """
        return self._start(on_progress)[1]

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Generate one turn.

        Args:
            request: Messages, tools, sampling.

        Yields:
            PromptProgress, Delta and ToolCall as they come, at last Done or Failed. Closing
            the iterator stops the generation within a token, or a micro-batch of the prompt.

        Raises:
            ValueError: The request's sampling makes no sense; every other error is a Failed.
        """
        check_sampling(request.sampling)
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        try:
            turn = _Turn(self._start()[0], self._path, request, answers.put)
        except CascadeError as exc:
            yield Failed(exc)
            return
        try:
            while not turn.is_over:
                yield from turn.take(_wait(answers, turn.limit_s))
        finally:
            turn.end()

    async def achat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Generate one turn; the asynchronous twin of chat.

        Args:
            request: Messages, tools, sampling.

        Yields:
            As chat does. Close it with contextlib.aclosing if it may be left early.

        Raises:
            ValueError: As chat does.
        """
        check_sampling(request.sampling)
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        try:
            worker, _ = await asyncio.to_thread(self._start)
        except CascadeError as exc:
            yield Failed(exc)
            return

        def deliver(answer: Answer) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(answers.put_nowait, answer)

        turn = _Turn(worker, self._path, request, deliver)
        try:
            while not turn.is_over:
                for event in turn.take(await _wait_async(answers, turn.limit_s)):
                    yield event
        finally:
            turn.end()

    def render(self, request: ChatRequest, *, is_complete: bool = False) -> list[int]:
        """Render and tokenize the prompt that chat would read.

        Args:
            request: Messages and tools.
            is_complete: The last message is the answer: leave out the turn that would follow.

        Returns:
            Token ids.

        Raises:
            TemplateError: The model's chat template fails, or takes too long.
            CascadeError: As load does.
        """
        worker, _ = self._start()
        try:
            frame, _ = worker.ask(
                "render", request=encode_chat_request(request), is_complete=is_complete
            )
        except TimeoutError as exc:
            raise _describe_slow_template(self._path) from exc
        return list(frame["tokens"])

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Cut text into tokens, adding none at the ends.

        Args:
            text: Any text.
            parse_special: Let the text of a control token become that token.

        Returns:
            Token ids.

        Raises:
            CascadeError: As load does.
        """
        frame, _ = self._start()[0].ask("tokenize", text=text, parse_special=parse_special)
        return list(frame["tokens"])

    def logits(self, tokens: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """Run the model over tokens.

        Args:
            tokens: Token ids, at least one.
            first: Position of the first whose logits are wanted. Tokens before it are not read
                again if the last call ended there, so a long text can be read in parts.

        Returns:
            float32 [n_tokens - first, n_vocab]: what the model expects after each token.

        Raises:
            ContextFull: They do not fit the context.
            ValueError: There are none, one is not in the vocabulary, or `first` is no position.
            CascadeError: As load does.
        """
        import numpy as np

        frame, payload = self._start()[0].ask("logits", tokens=list(tokens), first=first)
        return np.frombuffer(payload, "<f4").reshape(frame["shape"])

    def collect(
        self, tokens: Sequence[int], on_progress: Callable[[int], None] = lambda _n: None
    ) -> None:
        """Run the model over tokens and add the inputs of its matrices to the worker's sums.

        Args:
            tokens: Token ids, at least one; read from an empty context.
            on_progress: Called with the number of tokens done.

        Raises:
            ContextFull: They do not fit the context.
            ValueError: There are none, one is not in the vocabulary, or the engine was not made
                to collect.
            ModelFileError: An input is NaN or infinite.
            CascadeError: As load does; the sums are gone with a worker that died.
        """

        def tell(frame: Frame) -> None:
            on_progress(frame["n_tokens"])

        self._start()[0].ask("collect", on_frame=tell, tokens=list(tokens))

    def read_inputs(self) -> dict[str, npt.NDArray[np.float32]]:
        """Read what collect has summed up since the model was loaded.

        Returns:
            By the names that they have in an importance matrix's file, see quantize/importance.py.

        Raises:
            ValueError: The engine was not made to collect.
            CascadeError: As load does.
        """
        return decode_arrays(*self._start()[0].ask("read_inputs"))

    def close(self) -> None:
        """End the worker. What it was working on fails; a later request starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(
        self, on_progress: Callable[[str, int, int], None] | None = None
    ) -> tuple[WorkerProcess, ModelInfo]:
        """Take the running worker, or start one and load the model."""
        with self._lock:
            if self._worker and self._worker.is_usable and self._info:
                return self._worker, self._info
            self._check_deaths()
            check_header(self._path)
            self._worker = WorkerProcess(on_death=self._count_death)
            try:
                self._info = _load(self._worker, self._path, self._options, on_progress)
            except BaseException:
                self._worker.stop()
                self._worker = None
                raise
            return self._worker, self._info

    def _count_death(self, error: EngineDied) -> None:
        self._deaths.append((time.monotonic(), error))

    def _check_deaths(self) -> None:
        now_s = time.monotonic()
        recent = [error for died_s, error in self._deaths if now_s - died_s < DEATH_WINDOW_S]
        if len(recent) >= MAX_DEATHS:
            raise EngineDied(
                f"the engine died {MAX_DEATHS} times within a minute, at last so: {recent[-1]}; "
                "it is not started again for now",
                log_tail=recent[-1].log_tail,
                hint="Try another quantization or a smaller --ctx, or wait a minute.",
            )


class _Turn:
    """A chat request in flight: answers in, events out.

    Args:
        worker: The worker, with the model loaded.
        path: The model file, for messages.
        request: What to generate.
        deliver: Takes the answers.
    """

    def __init__(
        self, worker: WorkerProcess, path: Path, request: ChatRequest, deliver: Deliver
    ) -> None:
        self._worker, self._path = worker, path
        self.is_over = False
        self.limit_s: float | None = None
        """How long to wait for the next answer."""
        self._number = worker.request(deliver, "chat", request=encode_chat_request(request))

    def take(self, answer: Answer | None) -> tuple[Event, ...]:
        """Turn an answer, or None for none within the limit, into the events it holds."""
        if answer is None:
            self._worker.kill()
            return self._fail(_describe_slow_template(self._path))
        try:
            frame, _ = open_answer(answer)
        except (CascadeError, ValueError) as exc:
            return self._fail(exc)
        self.limit_s = choose_limit(frame, self.limit_s)
        if frame["kind"] != "event":
            return ()
        event = decode_event(frame)
        self.is_over = isinstance(event, Done)
        return (event,)

    def end(self) -> None:
        """Stop what may still run."""
        if self.is_over:
            self._worker.forget(self._number)
        else:
            self._worker.cancel(self._number)

    def _fail(self, error: Exception) -> tuple[Event, ...]:
        self.is_over = True
        return (Failed(error),)


def _load(
    worker: WorkerProcess,
    path: Path,
    options: LoadOptions,
    on_progress: Callable[[str, int, int], None] | None,
) -> ModelInfo:
    def tell(frame: Frame) -> None:
        if on_progress is not None and frame["kind"] == "progress":
            on_progress("load", round(100 * frame["share"]), 100)

    try:
        frame, _ = worker.ask("load", on_frame=tell, path=path, options=asdict(options))
    except TimeoutError as exc:
        raise EngineDied(
            f"{path}: loading did not move: {exc}",
            log_tail=cut_tail(worker.read_log()),
            hint="The disk may be asleep or gone; try again.",
        ) from exc
    return ModelInfo(**{**frame["info"], "devices": tuple(frame["info"]["devices"])})


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


def _describe_slow_template(path: Path) -> TemplateError:
    return TemplateError(
        f"{path}: tokenizer.chat_template did not finish within {STAGE_LIMITS_S['template']:.0f} s",
        "The template loops or is made to do harm: get the file from another source.",
    )
