"""What a GGUF's header must say before llama.cpp may see the file.

llama.cpp aborts on some values instead of refusing them; those are refused here, by name.
What passes and kills it none the less costs a worker, no more.
Source: llama_model_base::load_hparams in llama.cpp's src/llama-model.cpp, llama_vocab::impl::load
in src/llama-vocab.cpp, gguf_init_from_reader in ggml/src/gguf.cpp, binary_op in
ggml/src/ggml-cpu/binary-ops.cpp.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from localcascade.errors import ModelFileError
from quantize.errors import GGUFError
from quantize.gguf import GGUFArray, GGUFFile, GGUFTensor, open_gguf
from quantize.gguf.blocks import pad_bytes

MAX_LAYERS = 512
MAX_EXPERTS = 512
MAX_WIDTH = 2**20
HINT = "The file is damaged or made to do harm: convert or download it again."

LIMITS: dict[str, tuple[int, int]] = {
    "block_count": (1, MAX_LAYERS),
    "context_length": (1, 2**31 - 1),
    "embedding_length": (1, MAX_WIDTH),
    "expert_count": (0, MAX_EXPERTS),
    "expert_used_count": (0, MAX_EXPERTS),
    "expert_group_count": (0, MAX_EXPERTS),
    "expert_group_used_count": (0, MAX_EXPERTS),
    "nextn_predict_layers": (0, MAX_LAYERS),
    "attention.head_count": (0, MAX_WIDTH),
    "attention.head_count_kv": (0, MAX_WIDTH),
    "attention.key_length": (1, MAX_WIDTH),
    "attention.value_length": (1, MAX_WIDTH),
    "feed_forward_length": (0, MAX_WIDTH),
    "rope.dimension_count": (0, MAX_WIDTH),
    "expert_feed_forward_length": (0, MAX_WIDTH),
    "expert_shared_feed_forward_length": (0, MAX_WIDTH),
    "expert_shared_count": (0, MAX_EXPERTS),
    "moe_latent_size": (0, MAX_WIDTH),
    "ssm.conv_kernel": (1, MAX_WIDTH),
    "ssm.inner_size": (1, MAX_WIDTH),
    "ssm.state_size": (1, MAX_WIDTH),
    "ssm.time_step_rank": (1, MAX_WIDTH),
    "ssm.group_count": (1, MAX_WIDTH),
}
"""Key behind the architecture -> least and most it may be; for arrays, each element."""

REAL_KEYS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
REQUIRED = ("block_count", "context_length", "embedding_length")
REQUIRED_STATES = ("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank",
                   "ssm.group_count")  # fmt: skip
"""Of the Nemotron-H architectures, all of which have state-space layers."""
LAYERED = ("attention.head_count", "attention.head_count_kv", "feed_forward_length",
           "expert_feed_forward_length", "expert_used_count")  # fmt: skip
"""Keys that may be arrays, with one element for each layer."""

TOKENIZERS = ("gpt2", "llama", "gemma4", "t5", "bert", "plamo2")
"""Kinds of vocabulary; a further one, rwkv, belongs to architectures of that name."""
MAX_TOKENS = 2**21
MAX_SQUARED_LETTERS = 2**27
"""Over all tokens; the largest vocabularies have 18 million. For each letter of a token that stands
for no byte, llama.cpp writes out the whole token: one of 300,000 letters takes a minute."""
TOKEN_TYPES = range(7)
BYTE_TYPE = 6
BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
MAX_TEMPLATE_LETTERS = 2**20

UNUSABLE_TYPES = frozenset(("i8", "i16", "i32", "i64", "f64", "q8_1", "q8_k"))
"""No matrix of weights is multiplied in these: ggml reads past its tables or aborts."""
TABLES = ("tid2eid",)
"""Parts of the names of tensors that are no weights."""
LAYER_TENSOR = re.compile(r"blk\.(\d{1,60})\.")
STATE_TENSORS = re.compile(r"blk\.\d+\.ssm_(a|d|norm|conv1d|dt)(\.weight|\.bias)?")
"""What the state-space kernels read; as F32, whatever the matrices are."""


def check_header(path: Path) -> None:
    """Refuse a model file that llama.cpp would not survive.

    Args:
        path: The GGUF.

    Raises:
        ModelFileError: Names the byte, key or tensor at fault.
    """
    try:
        with open_gguf(path) as file:
            architecture = _check_architecture(file)
            _check_numbers(file, architecture)
            _check_relations(file, architecture)
            _check_vocabulary(file, architecture)
            _check_tensors(file, architecture)
    except GGUFError as exc:
        problem = exc.message.removeprefix(f"{path}: ")
        raise ModelFileError(path, problem, hint=exc.hint or HINT) from exc


def _check_architecture(file: GGUFFile) -> str:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _refuse(file, "general.architecture", "is missing or no text")
    is_hybrid = architecture.startswith("nemotron_h")
    for suffix in (*REQUIRED, *(REQUIRED_STATES if is_hybrid else ())):
        if f"{architecture}.{suffix}" not in file.metadata:
            raise _refuse(file, f"{architecture}.{suffix}", "is missing")
    return architecture


def _check_numbers(file: GGUFFile, architecture: str) -> None:
    for suffix, (least, most) in LIMITS.items():
        key = f"{architecture}.{suffix}"
        for value in _list_values(file.metadata, key):
            if type(value) is not int or not least <= value <= most:
                raise _refuse(file, key, f"is {value!r}, not a whole number, {least} to {most}")
    n_layers = file.metadata[f"{architecture}.block_count"]
    for suffix in LAYERED:
        values = file.metadata.get(f"{architecture}.{suffix}")
        if isinstance(values, GGUFArray) and len(values) != n_layers:
            problem = f"has {len(values)} entries for {n_layers} layers"
            raise _refuse(file, f"{architecture}.{suffix}", problem)
    for suffix in REAL_KEYS:
        key = f"{architecture}.{suffix}"
        for value in _list_values(file.metadata, key):
            if type(value) is not float or not 0 <= value < 1:
                raise _refuse(file, key, f"is {value!r}, not a number from 0 to 1")


def _check_relations(file: GGUFFile, architecture: str) -> None:
    """Check what llama.cpp asserts of one number beside another."""

    def read(suffix: str) -> int:
        return max(_list_values(file.metadata, f"{architecture}.{suffix}"), default=0)

    n_experts, n_used = read("expert_count"), read("expert_used_count")
    n_groups, n_used_groups = read("expert_group_count"), read("expert_group_used_count")
    is_grouped = n_groups > 1
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    for suffix, is_sound in (
        ("expert_used_count", n_used <= n_experts and (n_used > 0) == (n_experts > 0)),
        ("expert_group_count", n_groups < n_experts or n_groups == 0),
        ("expert_group_count", not is_grouped or n_experts % n_groups == 0),
        ("expert_group_used_count", not is_grouped or 0 < n_used_groups < n_groups),
        ("nextn_predict_layers", read("nextn_predict_layers") < read("block_count")),
        ("rope.scaling.type", scaling in ROPE_SCALINGS),
        ("ssm.group_count", read("ssm.inner_size") % max(1, read("ssm.group_count")) == 0),
    ):
        if not is_sound:
            key = f"{architecture}.{suffix}"
            raise _refuse(file, key, f"is {file.metadata.get(key)!r}, which contradicts the rest")


def _check_vocabulary(file: GGUFFile, architecture: str) -> None:
    """Token ids index arrays beside the texts, so these must be as long as the texts are."""
    tokens = _read_tokens(file, architecture)
    for suffix, value_type in (("scores", "f32"), ("token_type", "i32")):
        key = f"tokenizer.ggml.{suffix}"
        beside = file.metadata.get(key)
        if beside is None:
            continue
        if not isinstance(beside, GGUFArray) or beside.value_type != value_type:
            raise _refuse(file, key, f"is no list of {value_type}")
        if len(beside) != len(tokens):
            raise _refuse(file, key, f"has {len(beside)} entries for {len(tokens)} tokens")
    _check_token_types(file, tokens)
    template = file.metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_LETTERS:
        problem = f"is no text of at most {MAX_TEMPLATE_LETTERS} letters"
        raise _refuse(file, "tokenizer.chat_template", problem)


def _read_tokens(file: GGUFFile, architecture: str) -> list[str]:
    kind, key = file.metadata.get("tokenizer.ggml.model"), "tokenizer.ggml.tokens"
    if kind not in TOKENIZERS and not (kind == "rwkv" and "rwkv" in architecture):
        raise _refuse(file, "tokenizer.ggml.model", f"is {kind!r:.80}, not {', '.join(TOKENIZERS)}")
    array = file.metadata.get(key)
    if not isinstance(array, GGUFArray) or array.value_type != "str" or not len(array):
        raise _refuse(file, key, "is missing or no list of texts")
    if len(array) > MAX_TOKENS:
        raise _refuse(file, key, f"has {len(array)} entries, more than {MAX_TOKENS}")
    tokens = list(array)
    if sum(len(token) ** 2 for token in tokens) > MAX_SQUARED_LETTERS:
        raise _refuse(
            file, key, f"has tokens too long to read, up to {max(map(len, tokens))} letters"
        )
    named = set(tokens) - {""}
    if len(named) + tokens.count("") != len(tokens):
        ((twice, _),) = Counter(filter(None, tokens)).most_common(1)
        raise _refuse(file, key, f"has the token {twice!r:.80} twice")
    if kind == "llama" and (lacking := _find_lacking_byte(named)):
        raise _refuse(file, key, f"lacks the token {lacking}")
    return tokens


def _find_lacking_byte(tokens: set[str]) -> str:
    """Find a byte that the vocabulary cannot write; llama.cpp looks it up unasked."""
    names = ((f"<0x{byte:02X}>", byte) for byte in range(256))
    return next((n for n, b in names if n not in tokens and (b > 127 or chr(b) not in tokens)), "")


def _check_token_types(file: GGUFFile, tokens: Sequence[str]) -> None:
    types = list(file.metadata.get("tokenizer.ggml.token_type", ()))
    if unknown := set(types) - set(TOKEN_TYPES):
        problem = f"holds {min(unknown)}, not {TOKEN_TYPES[0]} to {TOKEN_TYPES[-1]}"
        raise _refuse(file, "tokenizer.ggml.token_type", problem)
    for token in compress(tokens, (kind == BYTE_TYPE for kind in types)):
        if not BYTE_TOKEN.fullmatch(token):
            raise _refuse(file, "tokenizer.ggml.token_type", f"calls {token!r:.80} a byte")


def _check_tensors(file: GGUFFile, architecture: str) -> None:
    """Tensors must lie one behind the other, in types that ggml computes with."""
    expected, n_layers = file.data_offset, file.metadata[f"{architecture}.block_count"]
    for tensor in file.tensors.values():
        if (match := LAYER_TENSOR.match(tensor.name)) and int(match[1]) >= n_layers:
            raise _refuse_tensor(file, tensor, f"is of a layer beyond the {n_layers} there are")
        if tensor.offset != expected:
            raise _refuse_tensor(file, tensor, f"lies at byte {tensor.offset}, not at {expected}")
        expected = pad_bytes(tensor.offset + tensor.n_bytes, file.alignment)
        is_plain = tensor.type.name == "f32" or any(part in tensor.name for part in TABLES)
        is_vector = tensor.n_weights == tensor.shape[-1:][0] if tensor.shape else True
        if not is_plain and (is_vector or STATE_TENSORS.fullmatch(tensor.name)):
            raise _refuse_tensor(file, tensor, f"is {tensor.type.name}, but must be f32")
        if not is_plain and tensor.type.name in UNUSABLE_TYPES:
            raise _refuse_tensor(
                file, tensor, f"is {tensor.type.name}, which is no type of weights"
            )
    _check_embedding(file, architecture)


def _check_embedding(file: GGUFFile, architecture: str) -> None:
    embedding = file.tensors.get("token_embd.weight")
    n_tokens = len(file.metadata["tokenizer.ggml.tokens"])
    shape = (n_tokens, file.metadata[f"{architecture}.embedding_length"])
    if file.n_splits == 1 and (embedding is None or embedding.shape != shape):
        found = "missing" if embedding is None else f"of the shape {list(embedding.shape)}"
        problem = f"tensor token_embd.weight is {found}, not {list(shape)}"
        raise ModelFileError(file.path, problem, hint=HINT)


def _refuse_tensor(file: GGUFFile, tensor: GGUFTensor, problem: str) -> ModelFileError:
    return ModelFileError(file.path, problem, tensor=tensor.name, hint=HINT)


def _list_values(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """List the values under a key: none, one, or those of an array."""
    value = metadata.get(key)
    if value is None:
        return []
    return list(value) if isinstance(value, GGUFArray) else [value]


def _refuse(file: GGUFFile, key: str, problem: str) -> ModelFileError:
    return ModelFileError(file.path, f"{key} {problem}", hint=HINT)
