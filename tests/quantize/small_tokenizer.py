"""A byte-level BPE small enough to be written down, for tests that change it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from quantize.pretokenizer import spell_bytes
from quantize.tokenizer import Vocabulary, read_tokenizer

TINY = Path(__file__).parents[2] / "localcascade" / "data" / "tiny"
N_MADE = 262
TEKKEN = json.loads((TINY / "tokenizer.json").read_text())["pre_tokenizer"]


def make_tokenizer() -> dict[str, Any]:
    """Three special tokens, the 256 bytes, and the merges of e + acute accent and of b + c."""
    alphabet = spell_bytes()
    acute = [alphabet[byte] for byte in "\u0301".encode()]
    merges = [["b", "c"], acute, ["e", "".join(acute)]]
    tokens = ["<s>", "</s>", "<|im_end|>", *alphabet, *("".join(merge) for merge in merges)]
    return {
        "added_tokens": [
            {"id": number, "content": tokens[number], "special": True} for number in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": copy.deepcopy(TEKKEN),
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens) if number > 2},
            "merges": merges,
        },
    }


def write_checkpoint(folder: Path, tokenizer: dict[str, Any], **others: dict[str, Any]) -> Path:
    """Write tokenizer.json, and others by name (generation_config={...})."""
    files = {"tokenizer": tokenizer, "generation_config": {"eos_token_id": 1}, **others}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read_made(folder: Path, n_embeddings: int = N_MADE) -> Vocabulary:
    return read_tokenizer(folder, n_embeddings, {"vocab_size": n_embeddings})
