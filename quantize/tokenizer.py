"""tokenizer.json -> the vocabulary of a GGUF file.

Byte-level BPE only, as the whole Nemotron-H family has. What llama.cpp would read otherwise than
the tokenizers library does is refused, not approximated; the one exception, the regexes of its
pre-tokenizers, is measured in docs/log.md.

Source: src/llama-vocab.cpp of llama.cpp 0c1e57098; serialization of tokenizers 0.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import CheckpointError, UnsupportedModel
from quantize.pretokenizer import (
    Merge,
    PreTokenizer,
    choose_pre_tokenizer,
    read_patterns,
    spell_bytes,
)
from quantize.safetensors import read_object
from quantize.special_tokens import (
    Sampling,
    SpecialTokens,
    find_special_tokens,
    read_chat_template,
    read_sampling,
    read_settings,
)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of a GGUF file, as far as a byte-level BPE has them."""
MAX_PADDING_TOKENS = 1024
MAX_PADDING_SHARE = 100
"""An embedding may have rows beyond the last token, its size rounded up for the hardware: at most
1024, or one in a hundred if that is more. Beyond, it belongs to another tokenizer."""

_DAMAGED = "Download the file again; if it is the same, the checkpoint itself is broken."
_IMPOSSIBLE = "llama.cpp would give other tokens than the model was trained on."
_BOTH_FROM_ONE = "Tokenizer and weights are of different models: take both from one."
_CONTROL_SYNTAX = re.compile(r"[<\[].*\w.*[>\]]", re.DOTALL)
_ONE_WORD = re.compile(r"\W?[^\W\d_]+|[^\w\s]+|\d{1,3}|\s+")
"""What a pre-tokenizer may leave in one piece, and so find among the tokens whatever its type."""
_FOUND_IN_ANY_TEXT = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
"""Tokens that llama.cpp finds in a user's text too, whatever type the file gives them."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before anything is split."""

    id: int
    text: str
    special: bool

    @property
    def type(self) -> int:
        """CONTROL, which a user's text never becomes, if special or spelled like one."""
        is_control = self.special or _CONTROL_SYNTAX.fullmatch(self.text)
        return CONTROL if is_control else USER_DEFINED


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about text and tokens."""

    tokens: list[str]
    """By id; ordinary tokens with each byte as its GPT-2 character, added ones as they are."""
    types: list[int]
    merges: list[str]
    """Two tokens with a space between; the earlier a merge stands, the earlier it is done."""
    pre: PreTokenizer
    special: SpecialTokens
    chat_template: str | None
    """Jinja source."""
    sampling: Sampling

    def to_metadata(self) -> list[tuple[str, Any, str]]:
        """List what llama.cpp reads: key, value, and type as `quantize.gguf.plan_file` names it."""
        special, sampling = self.special, self.sampling
        entries: list[tuple[str, Any, str]] = [
            ("general.sampling.temp", sampling.temperature, "f32"),
            ("general.sampling.top_p", sampling.top_p, "f32"),
            ("general.sampling.top_k", sampling.top_k, "i32"),
            ("tokenizer.ggml.model", "gpt2", "str"),
            ("tokenizer.ggml.pre", self.pre.name, "str"),
            # Our own key, for our engine: other runners ignore it.
            ("localcascade.cut_before_apostrophe", self.pre.joins_more, "bool"),
            ("tokenizer.ggml.tokens", self.tokens, "arr:str"),
            ("tokenizer.ggml.token_type", self.types, "arr:i32"),
            ("tokenizer.ggml.merges", self.merges, "arr:str"),
            ("tokenizer.ggml.bos_token_id", special.bos_id, "u32"),
            ("tokenizer.ggml.eos_token_id", special.eos_id, "u32"),
            ("tokenizer.ggml.eot_token_id", special.eot_id, "u32"),
            ("tokenizer.ggml.padding_token_id", special.pad_id, "u32"),
            ("tokenizer.ggml.unknown_token_id", special.unk_id, "u32"),
            # Said even when off: some pre-tokenizer names turn add_bos on by themselves.
            ("tokenizer.ggml.add_bos_token", special.add_bos, "bool"),
            ("tokenizer.ggml.add_eos_token", special.add_eos, "bool"),
            ("tokenizer.chat_template", self.chat_template, "str"),
        ]
        return [entry for entry in entries if entry[1] is not None]


def read_tokenizer(folder: Path, n_embeddings: int, config: Mapping[str, Any]) -> Vocabulary:
    """Read the tokenizer of a checkpoint; nothing in it is executed.

    Args:
        folder: Holds tokenizer.json; may hold tokenizer_config.json, generation_config.json and
            chat_template.jinja.
        n_embeddings: Rows of the embedding; the result has as many tokens.
        config: The checkpoint's config.json.

    Returns:
        The vocabulary, filled up to `n_embeddings` with unused tokens.

    Raises:
        CheckpointError: A file is missing, damaged, or contradicts another or the embedding.
        UnsupportedModel: A sound tokenizer that llama.cpp would not follow.
    """
    path = folder / "tokenizer.json"
    stated = _read_kind(path)
    model, settings = stated["model"], read_settings(folder, config)
    ids = _read_ids(path, model)
    added = _read_added(path, stated, settings.tokenizer.get("added_tokens_decoder"))
    tokens = _order_tokens(path, ids, added, n_embeddings)
    _check_padding(path, len(tokens), n_embeddings, config)
    merges = _read_merges(path, model, ids)
    patterns = read_patterns(path, stated.get("pre_tokenizer"))
    ordinary = ids.keys() - {token.text for token in added}
    ignore_merges = model.get("ignore_merges") is True
    known = {text: number for number, text in enumerate(tokens)}
    return Vocabulary(
        tokens=_pad_tokens(path, tokens, n_embeddings),
        types=_give_types(added, len(tokens), n_embeddings),
        merges=[f"{left} {right}" for left, right in merges],
        pre=choose_pre_tokenizer(path, patterns, ignore_merges, ordinary, merges),
        special=find_special_tokens(settings, known, stated.get("post_processor")),
        chat_template=read_chat_template(settings),
        sampling=read_sampling(settings),
    )


def _read_kind(path: Path) -> dict[str, Any]:
    """Read tokenizer.json and see that it is a byte-level BPE without anything around it."""
    if not path.exists() and any(path.parent.glob("*.model")):
        raise UnsupportedModel(
            f"{path.parent}: a sentencepiece model, but no tokenizer.json",
            "Only byte-level BPE is known, and only as tokenizer.json.",
        )
    stated = read_object(path)
    model, decoder = stated.get("model"), stated.get("decoder")
    if not isinstance(model, Mapping):
        raise CheckpointError(path, "model is not an object", hint=_DAMAGED)
    wrong = {
        "model.type": model.get("type", "BPE") != "BPE",
        "model.byte_fallback": model.get("byte_fallback"),
        "model.dropout": model.get("dropout"),
        "model.continuing_subword_prefix": model.get("continuing_subword_prefix"),
        "model.end_of_word_suffix": model.get("end_of_word_suffix"),
        "normalizer": stated.get("normalizer") is not None,
        "decoder": not isinstance(decoder, Mapping) or decoder.get("type") != "ByteLevel",
    }  # fmt: skip
    for key, is_wrong in wrong.items():
        if is_wrong:
            value = model.get(key.removeprefix("model.")) if "." in key else stated.get(key)
            raise UnsupportedModel(f"{path}: {key} is {value!r:.200}", _IMPOSSIBLE)
    return stated


def _read_ids(path: Path, model: Mapping[str, Any]) -> dict[str, int]:
    """Read the ordinary tokens; every byte must have one, or text would get lost."""
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise CheckpointError(path, "model.vocab does not give each token a number", hint=_DAMAGED)
    for byte, character in enumerate(spell_bytes()):
        if character not in ids:
            raise UnsupportedModel(f"{path}: model.vocab: no token for byte {byte}", _IMPOSSIBLE)
    return ids


def _read_added(path: Path, stated: Mapping[str, Any], decoder: Any) -> list[AddedToken]:
    """Read the added tokens; one is special if tokenizer.json or tokenizer_config.json says so."""
    entries = stated.get("added_tokens", [])
    if not isinstance(entries, list):
        raise CheckpointError(path, "added_tokens is not a list", hint=_DAMAGED)
    decoder = decoder if isinstance(decoder, Mapping) else {}
    added = [_read_added_token(path, entry, decoder) for entry in entries]
    for numbers in ([token.id for token in added], [token.text for token in added]):
        if len(set(numbers)) != len(numbers):
            raise CheckpointError(path, "added_tokens: an id or a text twice", hint=_DAMAGED)
    return added


def _read_added_token(path: Path, entry: Any, decoder: Mapping[str, Any]) -> AddedToken:
    try:
        number, text = entry["id"], entry["content"]
        elsewhere = decoder.get(str(number), {"content": text})
        is_same = elsewhere["content"] == text
        special = entry.get("special") is True or elsewhere.get("special") is True
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            path, f"added token {entry!r:.200} is damaged", hint=_DAMAGED
        ) from error
    if type(number) is not int or not isinstance(text, str) or not is_same:
        raise CheckpointError(
            path, f"added token {number!r} is {text!r:.200}, which is no token or contradicts "
            "tokenizer_config.json", hint=_DAMAGED,
        )  # fmt: skip
    token = AddedToken(number, text, special)
    is_word = token.type == CONTROL and _ONE_WORD.fullmatch(text)
    if flags or is_word or text in _FOUND_IN_ANY_TEXT:
        why = f"has {flags[0]} set" if flags else "would be found in any user's text"
        raise UnsupportedModel(f"{path}: added token {number} {text!r} {why}", _IMPOSSIBLE)
    return token


def _order_tokens(
    path: Path, ids: Mapping[str, int], added: Iterable[AddedToken], n_embeddings: int
) -> list[str]:
    """List all tokens by id: as many as there are ids, no two alike."""
    texts = {number: text for text, number in ids.items()}
    if len(texts) != len(ids):
        raise CheckpointError(path, "model.vocab: two tokens have one id", hint=_DAMAGED)
    for token in added:
        ordinary = texts.get(token.id, token.text)
        if ids.get(token.text, token.id) != token.id or ordinary != token.text:
            raise CheckpointError(
                path, f"added token {token.id} {token.text!r} contradicts model.vocab, where that "
                f"id is {ordinary!r} and that text {ids.get(token.text)}", hint=_DAMAGED,
            )  # fmt: skip
    _check_spelling(path, texts.values(), {token.text for token in added})
    texts |= {token.id: token.text for token in added}
    if max(texts) >= n_embeddings:
        raise CheckpointError(
            path, f"{max(texts) + 1} tokens, but the embedding has {n_embeddings} rows",
            hint=_BOTH_FROM_ONE,
        )  # fmt: skip
    for number in range(len(texts)):
        if number not in texts:
            raise CheckpointError(path, f"no token has id {number}", hint=_DAMAGED)
    return [texts[number] for number in range(len(texts))]


def _check_spelling(path: Path, ordinary: Iterable[str], added: set[str]) -> None:
    """See that a GGUF file can hold each token as it is meant."""
    alphabet = frozenset(spell_bytes())
    for text in ordinary:
        if text not in added and (not text or not alphabet.issuperset(text)):
            raise UnsupportedModel(
                f"{path}: model.vocab: token {text!a:.200} is not bytes in GPT-2's spelling",
                _IMPOSSIBLE,
            )
    for text in added:
        if not text or "\0" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            raise CheckpointError(
                path, f"added token {text!a:.200} is empty, or not text that UTF-8 and C can hold",
                hint=_DAMAGED,
            )  # fmt: skip


def _read_merges(path: Path, model: Mapping[str, Any], ids: Mapping[str, int]) -> list[Merge]:
    """Read the merges, written as "a b" or as ["a", "b"]."""
    entries = model.get("merges")
    if not isinstance(entries, list):
        raise CheckpointError(path, "model.merges is not a list", hint=_DAMAGED)
    merges = [tuple(e.split(" ")) if isinstance(e, str) else tuple(e) if isinstance(e, list) else ()
              for e in entries]  # fmt: skip
    seen: set[Merge] = set()
    for position, merge in enumerate(merges):
        if len(merge) != 2 or not all(isinstance(piece, str) for piece in merge) or merge in seen:
            raise CheckpointError(
                path, f"model.merges: entry {position} is not two tokens, or stands there twice",
                hint=_DAMAGED,
            )  # fmt: skip
        for piece in (*merge, "".join(merge)):
            if piece not in ids or " " in piece:
                raise CheckpointError(
                    path, f"model.merges: entry {position}: {piece!r} is not in model.vocab",
                    hint=_DAMAGED,
                )  # fmt: skip
        seen.add((merge[0], merge[1]))
    return [(left, right) for left, right in merges]


def _check_padding(path: Path, n_tokens: int, n_embeddings: int, config: Mapping[str, Any]) -> None:
    """See that the rows without a token are rounding and not another tokenizer's."""
    stated = config.get("vocab_size")
    if (n_tokens if stated is None else stated) != n_embeddings:
        raise CheckpointError(
            path.parent / "config.json",
            f"vocab_size is {stated!r}, the embedding has {n_embeddings} rows and tokenizer.json "
            f"{n_tokens} tokens",
            hint=_BOTH_FROM_ONE,
        )
    if n_embeddings - n_tokens > max(MAX_PADDING_TOKENS, n_embeddings // MAX_PADDING_SHARE):
        raise CheckpointError(
            path, f"{n_tokens} tokens, but the embedding has {n_embeddings} rows: more than "
            "rounding up can explain", hint=_BOTH_FROM_ONE,
        )  # fmt: skip


def _pad_tokens(path: Path, tokens: list[str], n_embeddings: int) -> list[str]:
    padding = [f"[PAD{number}]" for number in range(len(tokens), n_embeddings)]
    if taken := set(padding).intersection(tokens):
        raise CheckpointError(
            path, f"token {min(taken)} has the name that llama.cpp gives an unused row",
            hint="Rename it in tokenizer.json; llama.cpp cannot hold two tokens of one name.",
        )  # fmt: skip
    return tokens + padding


def _give_types(added: Iterable[AddedToken], n_tokens: int, n_embeddings: int) -> list[int]:
    types = [NORMAL] * n_tokens + [UNUSED] * (n_embeddings - n_tokens)
    for token in added:
        types[token.id] = token.type
    return types
