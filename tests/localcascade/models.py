"""Tiny GGUF models for tests: a byte vocabulary, and weights that are random or a script.

A random model says readable ASCII and never stops by itself.

A scripted model says a fixed row of tokens: its blocks add nothing, each embedding is one axis,
and the output matrix leads from each token's axis to the token after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np

N_EMBD = 320
N_HEAD = 4
N_KV_HEAD = 2
N_FF = 64
HEAD_DIM = N_EMBD // N_HEAD

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
USER_DEFINED = ("</think>", "<tool_call>", "</tool_call>")
CALL_TEXT = '{"name":"now","arguments":{"zone":"UTC"}}'
WORDS = ("th", "the", CALL_TEXT)
FIRST_SPECIAL = 256 + len(WORDS)
IM_START, IM_END, THINK, END_THINK, TOOL_CALL, END_TOOL_CALL = range(
    FIRST_SPECIAL, FIRST_SPECIAL + len(SPECIAL)
)
CALL = 256 + WORDS.index(CALL_TEXT)
N_VOCAB = FIRST_SPECIAL + len(SPECIAL)
NEVER_SPECIAL = dict.fromkeys(range(FIRST_SPECIAL, N_VOCAB), -1000.0)
"""A bias by which a model says nothing special, so that its thinking has no end of its own."""

TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{{- '<|im_start|>assistant\\n' ~ ('<think>\\n' if enable_thinking else '') -}}"
)


def map_bytes() -> list[str]:
    """The printable character that byte-level BPE writes for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(spare)) for byte in range(256)]


def write_model(
    path: Path,
    *,
    script: Sequence[int] = (),
    hybrid: bool = False,
    seed: int = 0,
    n_ctx_train: int = 512,
    template: str = TEMPLATE,
    n_token_types: int = N_VOCAB,
    quantized: bool = False,
    metadata: dict[str, float | int | str] | None = None,
) -> Path:
    """Write a model.

    Args:
        path: Where to.
        script: Tokens that each lead to the next; empty makes random weights.
        hybrid: The nemotron_h architecture (Mamba-2, attention, MLP) instead of llama.
        seed: Of random weights.
        n_ctx_train: Context length to claim.
        template: Chat template, left out if empty.
        n_token_types: Token types to write; fewer than tokens makes a hostile file.
        quantized: Store the matrices as Q8_0 instead of F32.
        metadata: More keys, or other values for those below.
    """
    arch = "nemotron_h" if hybrid else "llama"
    writer = gguf.GGUFWriter(path, arch)
    keys: dict[str, float | int | str] = {
        "general.name": "test model",
        f"{arch}.context_length": n_ctx_train,
        f"{arch}.embedding_length": N_EMBD,
        f"{arch}.block_count": 3 if hybrid else 1,
        f"{arch}.attention.head_count": N_HEAD,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys |= {"tokenizer.chat_template": template} if template else {}
    keys |= _hybrid_keys() if hybrid else _llama_keys()
    for key, value in (keys | (metadata or {})).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    if hybrid:
        writer.add_array("nemotron_h.attention.head_count_kv", [0, N_KV_HEAD, 0])
        writer.add_array("nemotron_h.feed_forward_length", [0, 0, N_FF])
    _add_vocabulary(writer, n_token_types)
    shapes = _hybrid_shapes() if hybrid else _llama_shapes()
    for name, values in _make_weights(shapes, script, seed).items():
        if quantized and values.ndim == 2 and "ssm_" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _llama_keys() -> dict[str, float | int | str]:
    return {
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count_kv": N_KV_HEAD,
        "llama.rope.dimension_count": HEAD_DIM,
    }


def _hybrid_keys() -> dict[str, float | int | str]:
    return {
        "nemotron_h.attention.layer_norm_epsilon": 1e-5,
        "nemotron_h.attention.key_length": HEAD_DIM,
        "nemotron_h.attention.value_length": HEAD_DIM,
        "nemotron_h.ssm.conv_kernel": 4,
        "nemotron_h.ssm.inner_size": 64,
        "nemotron_h.ssm.state_size": 16,
        "nemotron_h.ssm.time_step_rank": 4,
        "nemotron_h.ssm.group_count": 2,
    }


def _add_vocabulary(writer: gguf.GGUFWriter, n_token_types: int) -> None:
    normal = [*map_bytes(), *WORDS]
    kinds = [gguf.TokenType.NORMAL] * len(normal)
    kinds += [
        gguf.TokenType.USER_DEFINED if text in USER_DEFINED else gguf.TokenType.CONTROL
        for text in SPECIAL
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("tekken")
    writer.add_token_list([*normal, *SPECIAL])
    writer.add_token_types([int(kind) for kind in kinds[:n_token_types]])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(IM_END)
    writer.add_bos_token_id(IM_START)
    writer.add_add_bos_token(False)


def _llama_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "blk.0.attn_norm.weight": (N_EMBD,),
        "blk.0.attn_q.weight": (N_EMBD, N_EMBD),
        "blk.0.attn_k.weight": (N_KV_HEAD * HEAD_DIM, N_EMBD),
        "blk.0.attn_v.weight": (N_KV_HEAD * HEAD_DIM, N_EMBD),
        "blk.0.attn_output.weight": (N_EMBD, N_EMBD),
        "blk.0.ffn_norm.weight": (N_EMBD,),
        "blk.0.ffn_gate.weight": (N_FF, N_EMBD),
        "blk.0.ffn_up.weight": (N_FF, N_EMBD),
        "blk.0.ffn_down.weight": (N_EMBD, N_FF),
    }


def _hybrid_shapes() -> dict[str, tuple[int, ...]]:
    n_inner, n_state, n_groups, n_heads = 64, 16, 2, 4
    n_conv = n_inner + 2 * n_groups * n_state
    return {
        "blk.0.attn_norm.weight": (N_EMBD,),
        "blk.0.ssm_in.weight": (n_inner + n_conv + n_heads, N_EMBD),
        "blk.0.ssm_conv1d.weight": (n_conv, 4),
        "blk.0.ssm_conv1d.bias": (n_conv,),
        "blk.0.ssm_dt.bias": (n_heads,),
        "blk.0.ssm_a": (n_heads, 1),
        "blk.0.ssm_d": (n_heads, 1),
        "blk.0.ssm_norm.weight": (n_groups, n_inner // n_groups),
        "blk.0.ssm_out.weight": (N_EMBD, n_inner),
        "blk.1.attn_norm.weight": (N_EMBD,),
        "blk.1.attn_q.weight": (N_EMBD, N_EMBD),
        "blk.1.attn_k.weight": (N_KV_HEAD * HEAD_DIM, N_EMBD),
        "blk.1.attn_v.weight": (N_KV_HEAD * HEAD_DIM, N_EMBD),
        "blk.1.attn_output.weight": (N_EMBD, N_EMBD),
        "blk.2.attn_norm.weight": (N_EMBD,),
        "blk.2.ffn_up.weight": (N_FF, N_EMBD),
        "blk.2.ffn_down.weight": (N_EMBD, N_FF),
    }


def _make_weights(
    shapes: dict[str, tuple[int, ...]], script: Sequence[int], seed: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ends = {"token_embd.weight": (N_VOCAB, N_EMBD), "output.weight": (N_VOCAB, N_EMBD)}
    scale = 0.0 if script else 0.2
    weights = {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in (shapes | ends).items()
    }
    for name, values in weights.items():
        if "norm" in name:
            values[...] = 1
        if name.endswith("ssm_a"):
            values[...] = -np.abs(values) - 0.1
    weights["output.weight"][[*range(32), *range(127, N_VOCAB)]] = 0  # prefer readable text
    if script:
        weights["token_embd.weight"][:] = np.eye(N_VOCAB, N_EMBD)
        for token, successor in pairwise(script):
            weights["output.weight"][successor, token] = 1
    return weights | {"output_norm.weight": np.ones(N_EMBD, np.float32)}
