"""What the tokenizer reader refuses, and that it says where and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize.errors import CheckpointError, QuantizeError, UnsupportedModel
from quantize.tokenizer import read_tokenizer
from tests.quantize.small_tokenizer import N_MADE, make_tokenizer, read_made, write_checkpoint


def edit(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Make a change: the value at a path of keys becomes another; a new last key is added."""

    def change(tokenizer: dict[str, Any]) -> None:
        at: Any = tokenizer
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return change


def add_token(text: str, number: int = N_MADE, **flags: Any) -> Callable[[dict[str, Any]], None]:
    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append({"id": number, "content": text, "special": True, **flags})

    return change


def remove_byte(tokenizer: dict[str, Any]) -> None:
    del tokenizer["model"]["vocab"]["a"]


REFUSED = {
    "unigram": (UnsupportedModel, "model.type is 'Unigram'", edit("model", "type", to="Unigram")),
    "byte fallback": (UnsupportedModel, "byte_fallback", edit("model", "byte_fallback", to=True)),
    "normalizer": (UnsupportedModel, "normalizer", edit("normalizer", to={"type": "NFC"})),
    "decoder": (UnsupportedModel, "decoder", edit("decoder", to={"type": "Metaspace"})),
    "no decoder": (UnsupportedModel, "decoder", edit("decoder", to=None)),
    "suffix": (UnsupportedModel, "end_of_word", edit("model", "end_of_word_suffix", to="</w>")),
    "no bytes": (UnsupportedModel, "no token for byte 97", remove_byte),
    "not bytes": (UnsupportedModel, "not bytes", edit("model", "vocab", "a b", to=262)),
    "unknown regex": (
        UnsupportedModel, r"\\d\+.*",
        edit("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", to=r"\d+"),
    ),
    "merged gaps": (
        UnsupportedModel, "MergedWithNext",
        edit("pre_tokenizer", "pretokenizers", 0, "behavior", to="MergedWithNext"),
    ),
    "prefix space": (
        UnsupportedModel, "no space before",
        edit("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", to=True),
    ),
    "other kind": (UnsupportedModel, "Whitespace", edit("pre_tokenizer", "type", to="Whitespace")),
    "unbuilt token": (UnsupportedModel, "build token 'bcb'", edit("model", "vocab", "bcb", to=262)),
    "forced text": (UnsupportedModel, "any user's text", add_token("<|start|>")),
    "one word": (UnsupportedModel, "any user's text", add_token("<end")),
    "strip": (UnsupportedModel, "lstrip", add_token("<a b>", lstrip=True)),
    "two around": (
        UnsupportedModel, "post_processor",
        edit("post_processor", to={"type": "RobertaProcessing"}),
    ),
    "hole": (CheckpointError, "no token has id 262", add_token("<x>", number=263)),
    "too many": (CheckpointError, "embedding has 264 rows", add_token("<x>", number=264)),
    "absurd id": (CheckpointError, "embedding has 264 rows", add_token("<x>", number=10**15)),
    "negative id": (CheckpointError, "no token has id 262", add_token("<x>", number=-1)),
    "same id": (CheckpointError, "one id", edit("model", "vocab", "b", to=100)),
    "contradiction": (CheckpointError, "contradicts model.vocab", add_token("<x>", number=100)),
    "added twice": (CheckpointError, "twice", add_token("<s>")),
    "zero byte": (CheckpointError, "UTF-8 and C", add_token("<a\0>")),
    "surrogate": (CheckpointError, "UTF-8 and C", add_token("<a\ud800>")),
    "pad name": (CheckpointError, "unused row", add_token("[PAD263]")),
    "float id": (CheckpointError, "a number", edit("model", "vocab", "a", to=1.5)),
    "bool id": (CheckpointError, "a number", edit("model", "vocab", "a", to=True)),
    "unknown piece": (CheckpointError, "'bb' is not in", edit("model", "merges", 0, to=["b", "b"])),
    "merge of three": (CheckpointError, "entry 0", edit("model", "merges", 0, to="b c d")),
    "merge twice": (CheckpointError, "entry 1", edit("model", "merges", 1, to="b c")),
    "no merges": (CheckpointError, "merges", edit("model", "merges", to=None)),
    "no model": (CheckpointError, "model", edit("model", to=[])),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    error, message, change = REFUSED[name]
    tokenizer = make_tokenizer()
    change(tokenizer)
    write_checkpoint(tmp_path, tokenizer)
    with pytest.raises(error, match=message) as caught:
        read_made(tmp_path, 264)
    assert "tokenizer.json" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("n_embeddings", "stated", "message"),
    [
        (261, 261, "262 tokens, but the embedding has 261 rows"),
        (300, 262, "vocab_size is 262, the embedding has 300 rows"),
        (262, 300, "vocab_size is 300, the embedding has 262 rows"),
        (300, None, "vocab_size is None, the embedding has 300 rows"),
        (262 + 1025, 262 + 1025, "more than rounding up"),
    ],
)
def test_tokenizer_smaller_or_larger_than_the_embedding(
    n_embeddings: int, stated: int | None, message: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, make_tokenizer())
    config = {} if stated is None else {"vocab_size": stated}
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(tmp_path, n_embeddings, config)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config", {"eos_token_id": 999}, "eos_token_id 999"),
        ("generation_config", {"eos_token_id": True}, "eos_token_id True"),
        ("generation_config", {}, "no token ends an answer"),
        ("generation_config", {"eos_token_id": 1, "temperature": "hot"}, "temperature 'hot'"),
        ("generation_config", {"eos_token_id": 1, "top_p": 1.5}, "top_p 1.5"),
        ("generation_config", {"eos_token_id": 1, "top_k": 1.5}, "top_k 1.5"),
        ("generation_config", {"eos_token_id": 1, "top_p": float("nan")}, "top_p nan"),
        ("tokenizer_config", {"bos_token": "<nowhere>"}, "bos_token '<nowhere>'"),
        ("tokenizer_config", {"add_bos_token": True}, "bos token"),
        ("tokenizer_config", {"chat_template": 5}, "chat template"),
        ("tokenizer_config", {"chat_template": "x" * (2**20 + 1)}, "chat template"),
        ("tokenizer_config", {"chat_template": "\ud800"}, "chat template"),
        ("tokenizer_config", {"chat_template": [{"name": "rag"}]}, "none is named default"),
        ("tokenizer_config", {"added_tokens_decoder": {"0": {"content": "<x>"}}}, "contradicts"),
    ],
)
def test_refused_beside_tokenizer_json(
    file: str, content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, make_tokenizer(), **{file: content})
    with pytest.raises(CheckpointError, match=message) as caught:
        read_made(tmp_path)
    assert caught.value.hint


def test_end_that_llama_would_not_stop_at(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    add_token("<stop>")(tokenizer)
    write_checkpoint(tmp_path, tokenizer, generation_config={"eos_token_id": [1, 262, 0]})
    with pytest.raises(UnsupportedModel, match="would not stop at"):
        read_made(tmp_path, 263)


def test_sentencepiece_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found"):
        read_made(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="sentencepiece"):
        read_made(tmp_path)


def list_paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """List the places in a JSON value, the vocabulary's 256 bytes as one."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    short = list(inner)[-4:] if path[-1:] == ("vocab",) else list(inner)
    return [path, *(place for key, part in short for place in list_paths(part, (*path, key)))]


PLACES = list_paths(make_tokenizer())[1:]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "a", "ByteLevel", "Split", "Sequence", "TemplateProcessing", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "id", "content", "single", "processors", "pretokenizers"]), inner
    ),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_change_is_read_or_refused_by_name(
    place: tuple[str | int, ...], value: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    edit(*place, to=value)(tokenizer)
    write_checkpoint(tmp_path, tokenizer)
    try:
        vocabulary = read_made(tmp_path)
    except QuantizeError as error:
        assert error.message
    else:
        assert (
            len(vocabulary.tokens) == len(set(vocabulary.tokens)) == len(vocabulary.types) == N_MADE
        )
