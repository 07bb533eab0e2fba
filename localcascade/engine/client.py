"""The engine as everyone else sees it: messages in, channelled events out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcascade.engine.chat import AsyncChat, Chat
from localcascade.engine.header import check_header
from localcascade.engine.process import WorkerProcess, cut_tail
from localcascade.engine.request import describe_slow_template, open_async_chat, open_chat
from localcascade.engine.sampling import check_request
from localcascade.engine.wire import (
    Frame,
    LoadOptions,
    Measurement,
    ModelInfo,
    SpeedTest,
    check_options,
    decode_arrays,
    encode_chat_request,
)
from localcascade.errors import EngineDied
from localcascade.prompt.events import ChatRequest
from quantize.closing import Closing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_DEATHS = 3
DEATH_WINDOW_S = 60.0
PATIENCE_S = 0.1
"""How long closing waits before it ends a worker that is still loading."""


class Engine(Closing):
    """A model in a worker process of its own; a context manager.

    The worker starts at the first request. If it dies, the requests it was working on fail
    with EngineDied, and the next one starts another; after three deaths within a minute none
    is started until the minute is over. Any thread may send requests; they queue.

    Args:
        path: A GGUF file.
        n_ctx: Context in tokens; None is what fits, up to 32768 and what the model was trained for.
        n_threads: CPU threads; None is the physical cores that this process may use.
        n_gpu_layers: Layers on the GPU, -1 for all; None is as many as fit.
        collects: Make one that sums up the inputs of its matrices, see collect; it is slower.
        **options: Any other field of LoadOptions.

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
        **options: Any,
    ) -> None:
        self._path = Path(path).absolute()
        self._options = LoadOptions(n_ctx, n_threads, n_gpu_layers, collects=collects, **options)
        check_options(self._options)
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
            OutOfBudget: It does not fit the memory; tells what would.
            ValueError: The options make no sense for this model.
            NativeError: The context could not be created, most often for want of memory.
            EngineDied: The worker died, or did so three times within a minute.
        """
        return self._start(on_progress)[1]

    def chat(self, request: ChatRequest) -> Chat:
        """Generate one turn.

        Args:
            request: Messages, tools, sampling.

        Returns:
            An iterator of PromptProgress, Delta and the other events as they come, at last as
            many Done as answers were asked for, or one Failed. Closing it stops the generation
            within a micro-batch; it can be told to answer now.

        Raises:
            ValueError: The request's numbers make no sense; every other error is a Failed.
        """
        check_request(request)
        return open_chat(lambda: self._start()[0], self._path, request)

    def achat(self, request: ChatRequest) -> AsyncChat:
        """Generate one turn; the asynchronous twin of chat.

        Args:
            request: Messages, tools, sampling.

        Returns:
            As chat does. Close it with contextlib.aclosing if it may be left early.

        Raises:
            ValueError: As chat does.
        """
        check_request(request)
        return open_async_chat(lambda: self._start()[0], self._path, request)

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
            raise describe_slow_template(self._path) from exc
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

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text; raises as tokenize does."""
        return len(self.tokenize(text))

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

    def measure(
        self, test: SpeedTest, on_progress: Callable[[int], None] = lambda _n: None
    ) -> Measurement:
        """Time llama.cpp's decoding, and nothing else.

        Args:
            test: What to time.
            on_progress: Called with the number of repetitions done.

        Returns:
            Seconds of each repetition, and the worker's peak of memory.

        Raises:
            ContextFull: It does not fit the context.
            ValueError: There is nothing to time.
            CascadeError: As load does.
        """

        def tell(frame: Frame) -> None:
            on_progress(frame["n_done"])

        frame, _ = self._start()[0].ask("measure", on_frame=tell, test=asdict(test))
        return Measurement(tuple(frame["elapsed_s"]), frame["peak_bytes"])

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

    def watch(self, matrices: Sequence[str]) -> None:
        """Let collect sum up outer products of the inputs of some matrices, and nothing else.

        Args:
            matrices: Names of matrices or stacks of experts; none goes back to sums of squares.
                What an earlier watch had summed up is forgotten.

        Raises:
            ValueError: The engine was not made to collect.
            CascadeError: As load does; a worker that is started anew watches nothing.
        """
        self._start()[0].ask("watch", matrices=list(matrices))

    def read_outer(self, matrix: str, index: int = 0) -> tuple[npt.NDArray[np.float32], int]:
        """Read a sum of x xT over the inputs x of a matrix that is watched.

        Args:
            matrix: Its name.
            index: The expert; 0 for a plain matrix, and where all experts read the same.

        Returns:
            float32 [width * (width + 1) / 2], the lower triangle row after row, and the number
            of inputs.

        Raises:
            ValueError: Nothing was collected for it, or the engine was not made to collect.
            CascadeError: As load does.
        """
        import numpy as np

        frame, payload = self._start()[0].ask("read_outer", matrix=matrix, index=index)
        return np.frombuffer(payload, "<f4"), frame["count"]

    def disturb(self, matrix: str, variances: Sequence[float], seed: int = 0) -> None:
        """Compute from now on as if the weights of a matrix had random errors; collect nothing.

        Args:
            matrix: Its name. To end it, call watch.
            variances: Of the independent errors of its weights, one an expert, or one.
            seed: The same one, and the same tokens, give the same errors.

        Raises:
            ValueError: The engine was not made to collect.
            CascadeError: As load does; a worker that is started anew disturbs nothing.
        """
        worker = self._start()[0]
        worker.ask("disturb", matrix=matrix, variances=list(variances), seed=seed)

    def close(self) -> None:
        """End the worker. What it was working on fails; a later request starts another."""
        while not self._lock.acquire(timeout=PATIENCE_S):  # somebody waits for it to load
            self._stop()
        try:
            self._stop()
            self._worker = None
        finally:
            self._lock.release()

    def _stop(self) -> None:
        if worker := self._worker:
            worker.stop()

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
