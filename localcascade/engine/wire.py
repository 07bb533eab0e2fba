"""What client and worker say to each other: frames of plain data over a socket.

A frame is a JSON header and, for arrays, bytes behind it. Nothing that runs code on reading
(no pickle) crosses, for the worker reads files that nobody vouches for.

client -> worker   {id, op: load | chat | render | tokenize | logits | measure | collect |
                    read_inputs | watch | read_outer | disturb | cancel | answer_now, ...}
worker -> client   {id, kind: progress | stage | event | result | error, ...}
A request ends with a result, an error, or the event Done.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcascade import errors
from localcascade.prompt import events
from localcascade.prompt.budget import ThinkingBudget

if TYPE_CHECKING:
    import numpy as np

Frame = dict[str, Any]
Payload = bytes | memoryview
"""Raw bytes; a memoryview is one of single bytes."""

MAX_PARALLEL = 64
CACHE_TYPES = ("f16", "q8_0", "q4_0")
"""Types that a KV cache may have."""

LOOKUP_MODES = ("auto", "on", "off")
"""Whether greedy answers are run ahead of: where it is faster, always, never."""

_MOST = {"n_parallel": MAX_PARALLEL, "checkpoint_bytes": 2**48}
_LENGTHS = struct.Struct("!IQ")  # bytes of the header, bytes of the payload
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)  # a dead peer is an error, never a signal
_EVENTS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (events.PromptProgress, events.Delta, events.ToolCall)
}
_ERRORS: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        errors.CascadeError,
        errors.ModelFileError,
        errors.TemplateError,
        errors.ContextFull,
        errors.OutOfBudget,
        errors.NativeError,
        ValueError,
    )
}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model; None leaves it to the worker."""

    n_ctx: int | None = None
    """Context in tokens; None is what fits, up to fit.DEFAULT_N_CTX."""
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    """-1 is all; None is as many as fit."""
    n_cpu_expert_layers: int | None = None
    """Layers whose experts stay in main memory; None is as many as must."""
    use_mmap: bool = True
    use_mlock: bool = False
    """Keep the weights from being swapped out."""
    n_parallel: int | None = None
    """Requests that are generated at once; they share the context."""
    n_batch: int | None = None
    """Tokens of a micro-batch."""
    n_outputs: int | None = None
    """Most tokens of a micro-batch whose logits are computed, all by default. A chat needs one a
    request; with 131072 tokens in the vocabulary, 512 take 256 MiB."""
    cache_type: str = "f16"
    """Of the KV cache: f16, q8_0 or q4_0."""
    flash_attention: bool | None = None
    """None uses it where the device can; a quantized cache needs it. On a CPU it adds up in half
    precision, so that the place of a token in the cache shows in the third digit of the logits."""
    checkpoint_bytes: int | None = None
    """RAM for states to come back to; None is 1 GiB, or less where there is no room for it."""
    session_folder: str | None = None
    """Where the states of named sessions are kept; None keeps none."""
    lookup: str = "auto"
    """Of LOOKUP_MODES: greedy answers that repeat what was said before are computed ahead."""
    collects: bool = False
    """Sum up what each matrix is multiplied with, whatever is decoded: chats and logits too."""


def check_options(options: LoadOptions) -> None:
    """Refuse values that mean nothing.

    Raises:
        ValueError: Names the value and what it may be.
    """
    for name, least in (
        ("n_ctx", 1), ("n_threads", 1), ("n_gpu_layers", -1), ("n_parallel", 1), ("n_batch", 1),
        ("checkpoint_bytes", 0), ("n_cpu_expert_layers", 0), ("n_outputs", 1),
    ):  # fmt: skip
        value, most = getattr(options, name), _MOST.get(name, 2**31 - 1)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} is {value}, but must be between {least} and {most}")
    if options.cache_type not in CACHE_TYPES:
        known = ", ".join(CACHE_TYPES)
        raise ValueError(f"cache_type is {options.cache_type!r}, but must be one of {known}")
    if options.lookup not in LOOKUP_MODES:
        known = ", ".join(LOOKUP_MODES)
        raise ValueError(f"lookup is {options.lookup!r}, but must be one of {known}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model once it is loaded."""

    name: str
    n_ctx: int
    """Context in tokens, as llama.cpp rounded it."""
    n_ctx_train: int
    n_vocab: int
    load_s: float
    devices: tuple[str, ...]
    """What the build can compute on, e.g. "CPU (AMD EPYC)"."""
    bos: int | None = None
    """Token that opens every text, if the file says that one does."""
    n_parallel: int = 1
    """Requests that are generated at once."""


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """One thing to measure."""

    n_prompt: int
    """Tokens to read in micro-batches; 0 for none."""
    n_gen: int
    """Tokens to compute after them, one by one; 0 for none."""
    depth: int = 0
    """Tokens in the context before."""
    n_repetitions: int = 5

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt + self.n_gen


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a test took."""

    elapsed_s: tuple[float, ...]
    """Of each repetition."""
    peak_bytes: int
    """Most main memory that the worker has held so far, mapped weights included."""


class Channel:
    """One end of the socket; any thread may send, one may receive.

    Args:
        end: A connected stream socket, which the channel then owns.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._stream = end.makefile("rb")
        self._lock = threading.Lock()

    def send(self, header: Mapping[str, Any], payload: Payload = b"") -> None:
        """Send one frame.

        Args:
            header: Plain data: what JSON knows, mappings, tuples and paths.
            payload: Raw bytes behind it.

        Raises:
            OSError: The other end is gone.
            TypeError: The header holds something that is not plain data.
            ValueError: It is nested too deeply, or a number has too many digits.
        """
        try:
            text = json.dumps(header, separators=(",", ":"), default=_make_plain).encode()
        except RecursionError as exc:
            raise ValueError("a request is nested too deeply") from exc
        with self._lock:
            self._socket.sendall(_LENGTHS.pack(len(text), len(payload)) + text, _SEND_FLAGS)
            if payload:
                self._socket.sendall(payload, _SEND_FLAGS)

    def reply(self, request: Frame, kind: str, payload: Payload = b"", **fields: object) -> None:
        """Answer a request with one frame; a client that is gone is the inbox's business."""
        with contextlib.suppress(OSError):
            self.send({"id": request["id"], "kind": kind, **fields}, payload)

    def receive(self) -> tuple[Frame, bytearray]:
        """Wait for one frame.

        Returns:
            Its header and its payload.

        Raises:
            EOFError: The other end is gone.
        """
        try:
            n_header, n_payload = _LENGTHS.unpack(self._read(_LENGTHS.size))
            header: Frame = json.loads(self._read(n_header))
            return header, self._read(n_payload)
        except (EOFError, OSError, ValueError) as exc:
            self._stream.close()  # which holds the socket open, however often that is closed
            raise EOFError("the other end is gone") from exc

    def close(self) -> None:
        """Hang up; wakes whoever receives, on both ends."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end hung up first
        finally:
            self._socket.close()

    def _read(self, n_bytes: int) -> bytearray:
        data = bytearray(n_bytes)
        if self._stream.readinto(data) != n_bytes:
            raise EOFError
        return data


def encode_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> tuple[Frame, bytes]:
    """Make a header's fields and a payload of named float32 arrays."""
    shapes = {name: array.shape for name, array in arrays.items()}
    return {"shapes": shapes}, b"".join(a.astype("<f4").tobytes() for a in arrays.values())


def decode_arrays(frame: Frame, payload: bytearray) -> dict[str, np.ndarray[Any, Any]]:
    """Undo encode_arrays."""
    import numpy as np

    values, start, arrays = np.frombuffer(payload, "<f4"), 0, {}
    for name, shape in frame["shapes"].items():
        end = start + math.prod(shape)
        arrays[name] = values[start:end].reshape(shape)
        start = end
    return arrays


def encode_event(event: events.Event) -> list[Any]:
    """Make plain data of an event.

    Args:
        event: Any but a Failed: what fails is told as an error.

    Returns:
        Its class's name and then its fields, in order; as short as can be, for there are many.
    """
    return [type(event).__name__, *(_flatten(getattr(event, name)) for name in event.__slots__)]


def decode_event(encoded: list[Any]) -> events.Event:
    """Undo encode_event."""
    name, *fields = encoded
    if name == "Done":
        reason, usage, timings, index = fields
        return events.Done(reason, events.Usage(*usage), events.Timings(*timings), index)
    if name == "TokenLogprob":
        text, logprob, top, index = fields
        return events.TokenLogprob(text, logprob, tuple(map(tuple, top)), index)
    if name == "ContextEnd":
        n_ctx, message_tokens, droppable, index = fields
        return events.ContextEnd(n_ctx, tuple(message_tokens), tuple(map(tuple, droppable)), index)
    event: events.Event = _EVENTS[name](*fields)
    return event


def _flatten(value: Any) -> Any:
    return list(asdict(value).values()) if is_dataclass(value) else value  # type: ignore[arg-type]


def encode_error(error: Exception) -> Frame:
    """Make plain data of an error: a CascadeError with all its fields, or a ValueError."""
    known = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)
    return {"type": known, "message": str(error), "fields": vars(error)}


def decode_error(frame: Frame) -> Exception:
    """Undo encode_error.

    The class's own constructor is passed by: it would compose the message a second time.
    """
    cls = _ERRORS[frame["type"]]
    error = cls.__new__(cls, frame["message"])
    error.__dict__.update(frame["fields"])
    return error


def encode_chat_request(request: events.ChatRequest) -> Frame:
    """Make plain data of a chat request.

    Raises:
        ValueError: Its JSON schema is nested too deeply.
    """
    budget = request.thinking_budget
    try:
        sampling = asdict(request.sampling)
    except RecursionError as exc:
        raise ValueError("JSON schema: it is nested too deeply") from exc
    return {
        "messages": list(request.messages),
        "tools": list(request.tools),
        "thinking": request.thinking,
        "sampling": sampling,
        "n": request.n,
        "logprobs": request.logprobs,
        "thinking_budget": None if budget is None else asdict(budget),
        "session": request.session,
    }


def decode_chat_request(fields: Frame) -> events.ChatRequest:
    """Undo encode_chat_request."""
    budget, sampling = fields["thinking_budget"], dict(fields["sampling"])
    # JSON has no keys but texts, and no tuples.
    bias = sampling["logit_bias"].items()
    sampling["logit_bias"] = {int(token): value for token, value in bias}
    sampling["stop"] = tuple(sampling["stop"])
    plain = {key: fields[key] for key in ("thinking", "n", "logprobs", "session")}
    return events.ChatRequest(
        messages=tuple(fields["messages"]),
        tools=tuple(fields["tools"]),
        sampling=events.Sampling(**sampling),
        thinking_budget=budget and ThinkingBudget(**budget),
        **plain,
    )


def _make_plain(value: object) -> object:
    """Turn what JSON does not know, yet is plain, into what it knows."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is not plain data, and cannot be sent to the engine")
