"""Calibration: texts are run through a model, and what its matrices get as inputs is summed up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from localcascade.engine.client import Engine
from localcascade.errors import ConfigError, EngineDied
from localcascade.prompt.events import ChatRequest
from quantize.importance import Importance, join_moments

DEFAULT_N_CTX = 2048
"""Tokens of a chunk: long enough for the state of a Mamba layer to fill."""
DEFAULT_NAME = "localcascade calibration text"

Document = str | ChatRequest
"""A plain text, or one chat."""
OnProgress = Callable[[str, int, int], None]
"""(stage, tokens done, tokens in all); the stage is "calibrate"."""


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
    documents = [read_documents(path) for path in texts or list_default_texts()]
    info = engine.load()
    tokens = [
        token
        for document in chain.from_iterable(documents)
        for token in tokenize_document(engine, document)
    ]
    if not tokens:
        raise ConfigError(texts[0], "", "holds no text", "Name a file with some.")
    started_s = time.monotonic()
    length = min(n_ctx, info.n_ctx, info.n_ctx_train)
    chunks = list(cut_chunks(tokens, length, info.bos))
    for i, chunk in enumerate(chunks):

        def tell(n_done: int, before: int = i * length) -> None:
            on_progress("calibrate", before + n_done, len(tokens))

        engine.collect(chunk, tell)
    matrices, mass = join_moments(engine.read_inputs())
    if max((moments.counts.max() for moments in matrices.values()), default=0) != len(tokens):
        raise EngineDied("the engine died and lost what it had collected", hint="Try again.")
    names = tuple(path.name for path in texts) or (DEFAULT_NAME,)
    importance = Importance(matrices, mass, names, len(chunks), length)
    return Calibration(importance, len(tokens), time.monotonic() - started_s)
