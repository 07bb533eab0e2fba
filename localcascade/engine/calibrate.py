"""Calibration: texts are run through a model, and what its matrices get as inputs is summed up."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from localcascade.engine.client import Engine
from localcascade.errors import ConfigError, EngineDied, OutOfBudget
from localcascade.prompt.events import ChatRequest
from quantize.gguf import open_gguf
from quantize.importance import Importance, join_moments
from quantize.moments import Stack, write_moments

F32Array = npt.NDArray[np.float32]

DEFAULT_N_CTX = 2048
"""Tokens of a chunk: long enough for the state of a Mamba layer to fill."""
DEFAULT_NAME = "localcascade calibration text"

_MATRICES = re.compile(
    r"blk\.(\d+)\.(ssm_in|ssm_out|attn_q|attn_k|attn_v|attn_output|ffn_latent_(?:up|down)"
    r"|ffn_(?:up|down)(?:_exps|_shexp)?)\.weight|output\.weight"
)
"""Those that are quantized, by their place in llama.cpp's files; the first group is the layer."""
_ROUTED = ("ffn_down_exps",)
"""Matrices whose experts each read inputs of their own."""
_LOST = "the engine died and lost what it had collected"

Document = str | ChatRequest
"""A plain text, or one chat."""
OnProgress = Callable[[str, int, int], None]
"""(stage, tokens done, tokens in all); the stages are "calibrate" and "moments"."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration learnt."""

    importance: Importance
    n_tokens: int
    elapsed_s: float
    """Loading the model excluded."""


def list_default_texts() -> tuple[Path, ...]:
    """List the files of the calibration text that ships with the package."""
    return tuple(sorted((Path(__file__).parents[1] / "data" / "calibration").glob("*.*")))


def read_documents(path: Path) -> list[Document]:
    """Read one file of calibration text.

    Args:
        path: UTF-8. A `.jsonl` holds a chat a line, {"messages": [...], "tools": [...]} in the
            OpenAI form, thinking under "reasoning_content"; anything else is one plain text.

    Raises:
        ConfigError: It is not UTF-8, or a line is no chat; names file and line.
        OSError: It cannot be read.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            path, f"byte {error.start}", "is not UTF-8 text", "Convert it with iconv -t UTF-8."
        ) from error
    if path.suffix != ".jsonl":
        return [text]
    lines = enumerate(text.split("\n"), 1)
    return [_parse_chat(path, number, line) for number, line in lines if line.strip()]


def _parse_chat(path: Path, number: int, line: str) -> ChatRequest:
    try:
        chat = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, f"line {number}", f"is not JSON: {error}") from error
    if not isinstance(chat, dict) or not _is_list_of_objects(chat.get("messages")):
        raise ConfigError(
            path, f"line {number}", 'holds no "messages"', 'Write {"messages": [...]} a line.'
        )
    if not _is_list_of_objects(chat.get("tools", [])):
        raise ConfigError(path, f"line {number}", '"tools" is no list of objects')
    return ChatRequest(messages=tuple(chat["messages"]), tools=tuple(chat.get("tools", [])))


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def tokenize_document(engine: Engine, document: Document) -> list[int]:
    """Cut a document into tokens: a text plainly, a chat as the model's template writes it.

    Args:
        engine: Of the model.
        document: The text or chat.

    Raises:
        TemplateError: The template refuses the chat, or the file has none.
        CascadeError: As Engine.load does.
    """
    if isinstance(document, str):
        return engine.tokenize(document)
    return engine.render(document, is_complete=True)


def cut_chunks(tokens: Sequence[int], n_ctx: int, bos: int | None) -> Iterator[list[int]]:
    """Cut a row of tokens into chunks, as llama-imatrix does, but for the last, shorter one.

    Args:
        tokens: All documents, one behind the other.
        n_ctx: Most tokens of a chunk.
        bos: Takes the place of each chunk's first token, if the model opens texts with it.

    Yields:
        Chunks of n_ctx tokens, but for the last.
    """
    for start in range(0, len(tokens), n_ctx):
        chunk = list(tokens[start : start + n_ctx])
        if bos is not None:
            chunk[0] = bos
        yield chunk


def calibrate(
    engine: Engine,
    texts: Sequence[Path],
    *,
    n_ctx: int = DEFAULT_N_CTX,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Calibration:
    """Run texts through a model and collect its importance matrix.

    Args:
        engine: Made to collect, with a context of at least n_ctx.
        texts: Files for read_documents; none takes the text that ships with the package.
        n_ctx: Tokens of a chunk, each read from an empty context; no more than the model was
            trained for.
        on_progress: Called with ("calibrate", tokens done, tokens in all).

    Raises:
        ConfigError: A text cannot be used, or there is none in the files.
        EngineDied: The worker died, and what it had summed up with it.
        CascadeError: As Engine.collect does.
    """
    reading = _prepare_reading(engine, texts, n_ctx)
    started_s = time.monotonic()
    engine.watch(())
    reading.run(engine, lambda done, total: on_progress("calibrate", done, total))
    matrices, mass = join_moments(engine.read_inputs())
    n_counted = max((moments.counts.max() for moments in matrices.values()), default=0)
    if n_counted != reading.n_tokens:
        raise EngineDied(_LOST, hint="Try again.")
    importance = Importance(matrices, mass, reading.names, len(reading.chunks), reading.length)
    return Calibration(importance, reading.n_tokens, time.monotonic() - started_s)


def read_tokens(engine: Engine, texts: Sequence[Path]) -> list[int]:
    """Read calibration texts and cut them into tokens, one behind the other.

    Args:
        engine: Of the model.
        texts: Files for read_documents; none takes the text that ships with the package.

    Raises:
        ConfigError: A text cannot be used, or there is none in the files.
        CascadeError: As tokenize_document does.
    """
    documents = [read_documents(path) for path in texts or list_default_texts()]
    tokens = [
        token
        for document in chain.from_iterable(documents)
        for token in tokenize_document(engine, document)
    ]
    if not tokens:
        raise ConfigError(texts[0], "", "holds no text", "Name a file with some.")
    return tokens


@dataclass(frozen=True, slots=True)
class _Reading:
    """A text, cut for a model to read."""

    chunks: tuple[list[int], ...]
    length: int
    """Tokens of a chunk, but for the last."""
    names: tuple[str, ...]

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.chunks))

    def run(self, engine: Engine, on_progress: Callable[[int, int], None]) -> None:
        """Let a model collect what the text makes of its matrices' inputs."""
        total = self.n_tokens
        for i, chunk in enumerate(self.chunks):

            def tell(n_done: int, before: int = i * self.length) -> None:
                on_progress(before + n_done, total)

            engine.collect(chunk, tell)


def _prepare_reading(engine: Engine, texts: Sequence[Path], n_ctx: int) -> _Reading:
    info = engine.load()
    length = min(n_ctx, info.n_ctx, info.n_ctx_train)
    chunks = cut_chunks(read_tokens(engine, texts), length, info.bos)
    names = tuple(path.name for path in texts) or (DEFAULT_NAME,)
    return _Reading(tuple(chunks), length, names)


# ---- second moments ----------------------------------------------------------------------------


def list_stacks(
    model: Path, layers: Container[int] | None = None, *, has_routed: bool = True
) -> list[Stack]:
    """List the second moments that can be collected: those of every quantized matrix's inputs.

    Args:
        model: A GGUF file.
        layers: Of which layers; None is all, and what follows them.
        has_routed: Those of what each expert reads alone, too: seven eighths of the bytes.

    Returns:
        In the file's order. The experts of a layer share one matrix for `up`, for each token has
        one input for all of them.

    Raises:
        ConfigError: There are no such layers.
        GGUFError: The file is damaged.
    """
    with open_gguf(model) as file:
        stacks = [
            Stack(name, prod(tensor.shape[:-2]) if match[2] in _ROUTED else 1, tensor.shape[-1])
            for name, tensor in file.tensors.items()
            if (match := _MATRICES.fullmatch(name))
            and (has_routed or match[2] not in _ROUTED)
            and (layers is None or (match[1] and int(match[1]) in layers))
        ]
        found = [
            int(match[1]) for match in map(_MATRICES.match, file.tensors) if match and match[1]
        ]
    if not stacks:
        where = f"its layers are {min(found)} to {max(found)}" if found else "it has none"
        raise ConfigError(model, "", f"no matrices in the layers asked for; {where}")
    return stacks


def plan_passes(stacks: Sequence[Stack], memory_bytes: int) -> list[list[Stack]]:
    """Plan which second moments are summed up together, in as few passes as memory allows.

    Args:
        stacks: In the order of the file, which they keep.
        memory_bytes: What the sums may take in the worker.

    Returns:
        The stacks of each pass over the text.

    Raises:
        OutOfBudget: One alone takes more.
    """
    passes: list[list[Stack]] = []
    left_bytes = 0
    for stack in stacks:
        if stack.square_bytes > memory_bytes:
            raise OutOfBudget(
                f"the second moments of {stack.name} take {stack.square_bytes / 2**30:.1f} GiB "
                f"while they are collected, {memory_bytes / 2**30:.1f} GiB may be used",
                need_bytes=stack.square_bytes,
                have_bytes=memory_bytes,
                hint="Free some memory: close other programs.",
            )
        if stack.square_bytes > left_bytes:
            passes.append([])
            left_bytes = memory_bytes
        passes[-1].append(stack)
        left_bytes -= stack.square_bytes
    return passes


def collect_moments(
    engine: Engine,
    output: Path,
    passes: Sequence[Sequence[Stack]],
    texts: Sequence[Path] = (),
    *,
    identity: str,
    n_ctx: int = DEFAULT_N_CTX,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> int:
    """Run texts through a model and write the second moments of its experts' inputs.

    A run that was killed goes on with the first pass it had not finished.

    Args:
        engine: Made to collect, with a context of at least n_ctx.
        output: The file to make; replaced only by a complete one that has been read back.
        passes: What is collected in each pass, as plan_passes has it.
        texts: Files for read_documents; none takes the text that ships with the package.
        identity: Of the model, one line.
        n_ctx: Tokens of a chunk, each read from an empty context.
        on_progress: Called with ("moments", tokens done in all passes, tokens in all of them).

    Returns:
        Tokens of the text.

    Raises:
        OutputError: The file cannot be written, or the disk is too small for it.
        ConfigError, EngineDied, CascadeError: As calibrate does.
    """
    reading = _prepare_reading(engine, texts, n_ctx)
    stacks = [stack for group in passes for stack in group]
    work = f"moments {identity} {_sum_up(reading)} {stacks!r}"
    total = reading.n_tokens * len(passes)
    with write_moments(output, stacks, reading.names, work) as part:
        for i, group in enumerate(passes):
            missing = [stack for stack in group if not part.is_finished(stack)]
            if missing:
                engine.watch([stack.name for stack in missing])
                tell = partial(_tell_pass, on_progress, i * reading.n_tokens, total)
                reading.run(engine, tell)
            for stack in missing:
                part.write(stack, _read_sums(engine, stack))
    engine.watch(())
    return reading.n_tokens


def _tell_pass(on_progress: OnProgress, before: int, total: int, done: int, _of: int) -> None:
    """Tell how far one of several passes is."""
    on_progress("moments", before + done, total)


def _read_sums(engine: Engine, stack: Stack) -> Iterator[tuple[F32Array, int]]:
    try:
        for index in range(stack.n_matrices):
            yield engine.read_outer(stack.name, index)
    except ValueError as error:  # it watches nothing: it was started anew
        raise EngineDied(_LOST, hint="Try again; what was finished is kept.") from error


def _sum_up(reading: _Reading) -> str:
    """A hash of what is read, and how it is cut."""
    return hashlib.sha256(json.dumps(reading.chunks).encode()).hexdigest()
