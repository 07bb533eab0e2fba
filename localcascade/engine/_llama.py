"""The runner's fence around llama.cpp: everything that touches ctypes is here.

Each wrapper allocates, calls, checks the code, raises a typed error and returns plain Python.
Handles are opaque. A worker has one model, one context and one batch, which end with it, so
only samplers are freed. Prototypes stand above the calls that llama_cpp does not bind itself.
Source: llama.h, ggml.h and ggml-backend.h of the pinned build.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from localcascade.errors import NativeError

ModelHandle = NewType("ModelHandle", int)
ContextHandle = NewType("ContextHandle", int)
VocabHandle = NewType("VocabHandle", int)
SamplerHandle = NewType("SamplerHandle", int)

LogSink = Callable[[int, str], None]
"""Receives one message of llama.cpp: its level (a `LEVEL_` number) and its text."""

LEVEL_DEBUG, LEVEL_INFO, LEVEL_WARNING, LEVEL_ERROR, LEVEL_CONTINUED = 1, 2, 3, 4, 5
DEVICE_KINDS = ("cpu", "gpu", "igpu", "accelerator", "meta")

_native: Any = lib._lib  # libllama; finds the symbols of the ggml libraries behind it too
_keep_alive: dict[str, Any] = {}  # callbacks that C still points to


def _bind(prototype: str, result: Any, *arguments: Any) -> Any:
    """Bind a function that llama_cpp does not, given its prototype in C and in ctypes."""
    name = prototype.partition("(")[0].split()[-1].lstrip("*")
    function = getattr(_native, name)
    function.restype, function.argtypes = result, arguments
    return function


_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_count_devices = _bind("size_t ggml_backend_dev_count(void)", ctypes.c_size_t)
_get_device = _bind("ggml_backend_dev_t ggml_backend_dev_get(size_t)", _POINTER, ctypes.c_size_t)
_name_device = _bind("const char * ggml_backend_dev_name(ggml_backend_dev_t)", _TEXT, _POINTER)
_describe_device = _bind(
    "const char * ggml_backend_dev_description(ggml_backend_dev_t)", _TEXT, _POINTER
)
_get_device_type = _bind(
    "enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t)", _INT, _POINTER
)
_get_registry = _bind(
    "ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t)", _POINTER, _POINTER
)
_get_registry_call = _bind(
    "void * ggml_backend_reg_get_proc_address(ggml_backend_reg_t, const char * name)",
    _POINTER, _POINTER, _TEXT,
)  # fmt: skip
_name_buffer = _bind(
    "const char * ggml_backend_buft_name(ggml_backend_buffer_type_t)", _TEXT, _POINTER
)
# ggml_backend_buffer_type_t * (*)(ggml_backend_dev_t device), ending with NULL
_ListExtraBuffers = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)


@dataclass(frozen=True, slots=True)
class Device:
    """One device that the build can compute on."""

    name: str
    description: str
    kind: str
    """One of DEVICE_KINDS."""


# ---- the library -----------------------------------------------------------------------------


def set_log(sink: LogSink) -> None:
    """Send every message of llama.cpp and ggml to `sink` from now on.

    Args:
        sink: Called in whichever thread logs; must not raise.
    """

    def receive(level: int, text: bytes | None, _user_data: object) -> None:
        sink(level, (text or b"").decode("utf-8", "replace"))

    callback = lib.llama_log_callback(receive)
    lib.llama_log_set(callback, None)
    _keep_alive["log"] = callback


def start_backend() -> None:
    """Make the backends known; to be called once, before anything else but set_log."""
    lib.llama_backend_init()


def list_devices() -> tuple[Device, ...]:
    """List the devices of this build, in ggml's order.

    Returns:
        Name, description and kind of each.
    """
    return tuple(
        Device(
            name=_name_device(device).decode("utf-8", "replace"),
            description=_describe_device(device).decode("utf-8", "replace"),
            kind=DEVICE_KINDS[_get_device_type(device)],
        )
        for device in _list_device_handles()
    )


def list_extra_buffers() -> tuple[str, ...]:
    """List the special memory layouts that this build would use for weights on this CPU.

    Returns:
        ggml's names of them, such as CPU_REPACK and AMX.
    """
    found: list[int] = []
    for device in _list_device_handles():
        address = _get_registry_call(_get_registry(device), b"ggml_backend_dev_get_extra_bufts")
        buffers = _ListExtraBuffers(address)(device) if address else ()
        found += itertools.takewhile(bool, buffers)
    return tuple(_name_buffer(buffer).decode() for buffer in found)


def _list_device_handles() -> list[int]:
    return [_get_device(i) for i in range(_count_devices())]


# ---- models ----------------------------------------------------------------------------------


def load_model(
    path: Path,
    *,
    n_gpu_layers: int,
    use_mmap: bool,
    use_extra_buffers: bool,
    on_progress: Callable[[float], bool],
) -> ModelHandle:
    """Load a GGUF.

    Args:
        path: The file.
        n_gpu_layers: Layers to put on the GPU; -1 is all.
        use_mmap: Map the file instead of reading it.
        use_extra_buffers: Lay weights out anew for this CPU, as list_extra_buffers tells.
        on_progress: Called with the share done, 0 to 1; False stops the load.

    Returns:
        Its handle.

    Raises:
        NativeError: llama.cpp refused the file; why is in its log.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if use_mmap else lib.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = use_extra_buffers
    params.progress_callback = lib.llama_progress_callback(lambda share, _: on_progress(share))
    model = lib.llama_model_load_from_file(bytes(path), params)
    if not model:
        raise NativeError("llama_model_load_from_file", 0)
    return ModelHandle(model)


def get_vocab(model: ModelHandle) -> VocabHandle:
    """Get a model's vocabulary, which lives as long as the model."""
    return VocabHandle(lib.llama_model_get_vocab(model))


def get_n_ctx_train(model: ModelHandle) -> int:
    """Get the context length that the model was trained for, in tokens."""
    return int(lib.llama_model_n_ctx_train(model))


def read_metadata(model: ModelHandle) -> dict[str, str]:
    """Read the model's scalar metadata as text.

    Returns:
        key -> value, as llama.cpp prints it. Arrays are not for reading here.
    """
    count = lib.llama_model_meta_count(model)
    keys = (_read_string(lib.llama_model_meta_key_by_index, model, i) for i in range(count))
    values = (_read_string(lib.llama_model_meta_val_str_by_index, model, i) for i in range(count))
    return dict(zip(keys, values, strict=True))


def _read_string(call: Any, *arguments: object) -> str:
    """Run a call that fills (char * buf, size_t size) and returns the whole length, or -1."""
    length = call(*arguments, None, 0)
    if length < 0:
        raise NativeError(call.__name__, length)
    buffer = ctypes.create_string_buffer(length + 1)
    call(*arguments, buffer, length + 1)
    return buffer.value.decode("utf-8", "replace")


# ---- vocabulary ------------------------------------------------------------------------------


def get_n_vocab(vocab: VocabHandle) -> int:
    """Count the tokens of a vocabulary."""
    return int(lib.llama_vocab_n_tokens(vocab))


def get_bos(vocab: VocabHandle) -> int:
    """Get the id of the beginning-of-sequence token, -1 if there is none."""
    return int(lib.llama_vocab_bos(vocab))


def get_eos(vocab: VocabHandle) -> int:
    """Get the id of the end-of-sequence token, -1 if there is none."""
    return int(lib.llama_vocab_eos(vocab))


def adds_bos(vocab: VocabHandle) -> bool:
    """Tell whether every text of this vocabulary opens with that token."""
    return bool(lib.llama_vocab_get_add_bos(vocab))


def is_eog(vocab: VocabHandle, token: int) -> bool:
    """Tell whether a token ends a generation."""
    return bool(lib.llama_vocab_is_eog(vocab, token))


def find_special_tokens(vocab: VocabHandle) -> tuple[list[int], list[int]]:
    """Find the tokens that are more than text.

    Returns:
        Ids of the CONTROL tokens, ids of the USER_DEFINED ones; both ascending.
    """
    attributes = [lib.llama_vocab_get_attr(vocab, token) for token in range(get_n_vocab(vocab))]
    control, user_defined = (
        [token for token, attribute in enumerate(attributes) if attribute & wanted]
        for wanted in (lib.LLAMA_TOKEN_ATTR_CONTROL, lib.LLAMA_TOKEN_ATTR_USER_DEFINED)
    )
    return control, user_defined


def read_piece(vocab: VocabHandle, token: int) -> bytes:
    """Read the bytes a token stands for; special tokens give their own text.

    Args:
        vocab: The vocabulary.
        token: Its id, checked by the caller to be in the vocabulary.

    Returns:
        Bytes, which may be a part of a UTF-8 character.

    Raises:
        NativeError: The call failed.
    """
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = lib.llama_token_to_piece(vocab, token, buffer, size, 0, True)
        if length >= 0:
            return buffer.raw[:length]
        if -length <= size:
            raise NativeError("llama_token_to_piece", length)
        size = -length


def tokenize(vocab: VocabHandle, text: bytes, *, parse_special: bool) -> list[int]:
    """Cut text into tokens, adding none at the ends.

    Args:
        vocab: The vocabulary.
        text: UTF-8.
        parse_special: Let the text of a control token become that token.

    Returns:
        Token ids.

    Raises:
        NativeError: The call failed.
    """
    room = len(text) + 16
    while True:
        tokens = (ctypes.c_int32 * room)()
        n_tokens = lib.llama_tokenize(vocab, text, len(text), tokens, room, False, parse_special)
        if n_tokens >= 0:
            return tokens[:n_tokens]
        if -n_tokens <= room or n_tokens == -(2**31):
            raise NativeError("llama_tokenize", n_tokens)
        room = -n_tokens


# ---- inputs of matrices ------------------------------------------------------------------------


class _Tensor(ctypes.Structure):
    """struct ggml_tensor, as far as it is read."""


_Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", _POINTER),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", _POINTER),
    ("view_offs", ctypes.c_size_t),
    ("data", _POINTER),
    ("name", ctypes.c_char * 64),
)

_name_operation = _bind("const char * ggml_op_desc(const struct ggml_tensor *)", _TEXT, _POINTER)
_count_bytes = _bind(
    "size_t ggml_nbytes(const struct ggml_tensor *)", ctypes.c_size_t, ctypes.POINTER(_Tensor)
)
_is_host = _bind("bool ggml_backend_buffer_is_host(ggml_backend_buffer_t)", ctypes.c_bool, _POINTER)
_copy_data = _bind(
    "void ggml_backend_tensor_get(const struct ggml_tensor *, void * data, size_t offset, size_t)",
    None, ctypes.POINTER(_Tensor), _POINTER, ctypes.c_size_t, ctypes.c_size_t,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """A weight matrix, or a stack of experts, and what it has just been multiplied with."""

    matrix: str
    n_experts: int
    """1 for a plain matrix."""
    inputs: npt.NDArray[np.float32]
    """[n_tokens, n_slots, width]; one slot if every expert of a token reads the same. Memory of
    llama.cpp's, good until the call that got it returns."""
    experts: npt.NDArray[np.int32] | None
    """Chosen experts [n_tokens, n_used]; None for a plain matrix."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The weights with which the outputs of a layer's experts have just been added."""

    layer: int
    weights: npt.NDArray[np.float32]
    """[n_tokens, n_used], in the order of Product.experts; memory of llama.cpp's."""


class Tap:
    """Shows what a context computes, while it does, to whoever collects it.

    Args:
        wants: Says of a matrix's name whether its products are wanted.
        take: Gets them, and the mixtures, in the order of computation.
    """

    def __init__(
        self, wants: Callable[[str], bool], take: Callable[[Product | Mixture], None]
    ) -> None:
        self._wants, self._take = wants, take
        self.callback = lib.ggml_backend_sched_eval_callback(self._receive)
        self.failure: Exception | None = None
        """What `take` raised: no exception crosses C."""

    def _receive(self, address: int, ask: bool, _user_data: object) -> bool:
        node = _Tensor.from_address(address)
        operation = _name_operation(address)
        if ask:
            return self._asks_for(node, operation)
        try:
            self._take(_read_mixture(node) if operation == b"MUL" else _read_product(node))
        except Exception as exc:
            self.failure = exc
        return self.failure is None

    def _asks_for(self, node: _Tensor, operation: bytes) -> bool:
        if operation == b"MUL":
            return bool(node.name.startswith(_MIXTURE))
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return False
        matrix, inputs = node.src[0].contents, node.src[1].contents
        is_plain = operation == b"MUL_MAT" and matrix.ne[2] > 1
        return inputs.type == _F32 and not is_plain and self._wants(_read_name(matrix))


_F32 = 0  # GGML_TYPE_F32
_MIXTURE = b"ffn_moe_weighted-"


def _read_product(node: _Tensor) -> Product:
    matrix, inputs = node.src[0].contents, _view(node.src[1], np.float32)
    if not node.src[2]:
        return Product(_read_name(matrix), 1, inputs.reshape(-1, 1, inputs.shape[-1]), None)
    return Product(_read_name(matrix), matrix.ne[2], inputs[0], _view(node.src[2], np.int32)[0, 0])


def _read_mixture(node: _Tensor) -> Mixture:
    layer = int(node.name.removeprefix(_MIXTURE))
    return Mixture(layer, _view(node.src[1], np.float32)[0, :, :, 0])


def _read_name(matrix: _Tensor) -> str:
    """Read a name as the file has it: copies on a device are called DEVICE#NAME#NUMBER."""
    name: str = matrix.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _view(tensor: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Look at a computed tensor, [ne3, ne2, ne1, ne0]; from a device it is copied."""
    fields, n_bytes = tensor.contents, _count_bytes(tensor)
    if _is_host(fields.buffer):
        data = (ctypes.c_char * n_bytes).from_address(fields.data)
    else:
        data = (ctypes.c_char * n_bytes)()
        _copy_data(tensor, data, 0, n_bytes)
    return np.ndarray(fields.ne[::-1], dtype, data, strides=fields.nb[::-1])


# ---- contexts --------------------------------------------------------------------------------


def create_context(
    model: ModelHandle, *, n_ctx: int, n_batch: int, n_threads: int, tap: Tap | None = None
) -> ContextHandle:
    """Create a context of one sequence.

    Args:
        model: The model.
        n_ctx: Length in tokens; llama.cpp rounds it up.
        n_batch: Most tokens of one decode call.
        n_threads: CPU threads, for prompts and generation alike.
        tap: Gets what is computed; must live as long as the context.

    Returns:
        Its handle.

    Raises:
        NativeError: It could not be created, most often for want of memory.
    """
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
    params.n_threads = params.n_threads_batch = n_threads
    params.n_seq_max = 1
    if tap is not None:
        params.cb_eval = tap.callback
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise NativeError(
            "llama_init_from_model", 0, "Most often memory: start with a smaller --ctx."
        )
    return ContextHandle(context)


def get_n_ctx(context: ContextHandle) -> int:
    """Get the length of a context in tokens, as llama.cpp rounded it."""
    return int(lib.llama_n_ctx(context))


def clear_memory(context: ContextHandle) -> None:
    """Forget every token; the buffers, which may be gigabytes, are left as they are."""
    lib.llama_memory_clear(lib.llama_get_memory(context), False)


def remove_tail(context: ContextHandle, position: int) -> bool:
    """Forget the tokens from a position on.

    Args:
        context: The context.
        position: First position to forget.

    Returns:
        False if this kind of memory cannot rewind; nothing was changed then.
    """
    return bool(lib.llama_memory_seq_rm(lib.llama_get_memory(context), 0, position, -1))


class Batch:
    """Room for the tokens of one decode call; all of sequence 0.

    Args:
        n_batch: Most tokens it holds.
    """

    def __init__(self, n_batch: int) -> None:
        self._batch: Any = lib.llama_batch_init(n_batch, 0, 1)
        self.token = np.ctypeslib.as_array(self._batch.token, (n_batch,))
        self.position = np.ctypeslib.as_array(self._batch.pos, (n_batch,))
        self.wants_logits = np.ctypeslib.as_array(self._batch.logits, (n_batch,))
        for i in range(n_batch):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = 0

    def decode(
        self, context: ContextHandle, tokens: Sequence[int], position: int, *, n_logits: int = 1
    ) -> None:
        """Run the model over tokens that follow what is in the context.

        Args:
            context: The context.
            tokens: At most n_batch ids.
            position: Of the first one.
            n_logits: Compute logits for this many of them, the last ones.

        Raises:
            NativeError: The call failed; what the context holds is unknown then.
        """
        n_tokens = len(tokens)
        self.token[:n_tokens] = tokens
        self.position[:n_tokens] = np.arange(position, position + n_tokens)
        self.wants_logits[:n_tokens] = False
        self.wants_logits[n_tokens - n_logits : n_tokens] = True
        self._batch.n_tokens = n_tokens
        code = lib.llama_decode(context, self._batch)
        if code != 0:
            raise NativeError("llama_decode", code)


def read_logits(context: ContextHandle, n_rows: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """Look at the logits of the last decode call, where llama.cpp keeps them.

    Args:
        context: The context.
        n_rows: How many tokens asked for logits.
        n_vocab: Size of the vocabulary.

    Returns:
        float32 [n_rows, n_vocab], overwritten by the next decode call.
    """
    return np.ctypeslib.as_array(lib.llama_get_logits(context), (n_rows, n_vocab))


# ---- samplers --------------------------------------------------------------------------------

_SAMPLERS: dict[str, Callable[..., Any]] = {
    "greedy": lib.llama_sampler_init_greedy,
    "top_k": lib.llama_sampler_init_top_k,
    "top_p": lambda p: lib.llama_sampler_init_top_p(p, 1),
    "min_p": lambda p: lib.llama_sampler_init_min_p(p, 1),
    "temperature": lib.llama_sampler_init_temp,
    "draw": lib.llama_sampler_init_dist,
}


def create_sampler(steps: Sequence[tuple[str, tuple[float, ...]]]) -> SamplerHandle:
    """Build a chain of C samplers.

    Args:
        steps: Names of `greedy, top_k, top_p, min_p, temperature, draw` with their arguments,
            in order; the last one must choose (greedy or draw).

    Returns:
        A handle for free_sampler.
    """
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for name, arguments in steps:
        lib.llama_sampler_chain_add(chain, _SAMPLERS[name](*arguments))
    return SamplerHandle(chain)


def free_sampler(sampler: SamplerHandle) -> None:
    """Free a chain and its samplers."""
    lib.llama_sampler_free(sampler)


def sample(sampler: SamplerHandle, context: ContextHandle) -> int:
    """Choose a token from the last row of logits, and tell the chain.

    Returns:
        The token's id.
    """
    return int(lib.llama_sampler_sample(sampler, context, -1))
