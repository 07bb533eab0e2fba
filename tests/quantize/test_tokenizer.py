"""The vocabulary against the tokenizers library (stored) and against what llama.cpp makes of it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, read_tokenizer
from tests.quantize.llama_vocabulary import LlamaVocabulary, open_vocabulary, write_vocabulary
from tests.quantize.small_tokenizer import (
    N_MADE,
    TINY,
    make_tokenizer,
    read_made,
    write_checkpoint,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizer_tiny.json.gz"
N_TINY = 640

KNOWN_DIFFERENCES = {"b'string'", "f'test'"}
"""llama.cpp's best splitter for the tekken regex treats 's and 't after a letter as an English
ending even if more letters follow; the tokenizers library starts a new piece at the apostrophe."""
CUT = re.compile(r"(?<=[^\W_])(?=')")
"""Where a piece always ends by the tekken regex: between a letter or digit and an apostrophe."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return read_tokenizer(TINY, N_TINY, {"vocab_size": N_TINY})


@pytest.fixture(scope="module")
def llama(
    vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaVocabulary]:
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.gguf"
    write_vocabulary(vocabulary, path)
    with open_vocabulary(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    stored: list[dict[str, Any]] = json.loads(gzip.decompress(VECTORS.read_bytes()))["cases"]
    assert len({case["text"] for case in stored}) == 500
    return stored


# ---- the bundled tokenizer, in llama.cpp -----------------------------------------------------


def test_text_gives_the_tokens_of_the_tokenizers_library(
    llama: LlamaVocabulary, cases: list[dict[str, Any]]
) -> None:
    differing = {c["text"] for c in cases if llama.tokenize(c["text"]) != c["as_text"]}
    assert differing == KNOWN_DIFFERENCES


def test_special_tokens_are_recognised_where_they_may_be(
    llama: LlamaVocabulary, cases: list[dict[str, Any]]
) -> None:
    differing = {
        c["text"] for c in cases if llama.tokenize(c["text"], parse_special=True) != c["as_tokens"]
    }
    assert differing == KNOWN_DIFFERENCES


def test_no_difference_is_left_in_a_text_cut_before_apostrophes(
    llama: LlamaVocabulary, cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        parts = [llama.tokenize(part) for part in CUT.split(case["text"])]
        assert [token for part in parts for token in part] == case["as_text"], case["text"]


def test_tokens_give_back_the_bytes_of_the_text(
    llama: LlamaVocabulary, cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        for kind in ("as_text", "as_tokens"):
            assert llama.detokenize(case[kind]) == case["text"].encode()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), max_size=12)
        | st.sampled_from(["<s>", "<|im_end|>", "<think>", "</tool_call>", "<|im_", "[PAD5]"]),
        max_size=8,
    ).map("".join)
)
def test_no_text_becomes_a_special_token_or_gets_lost(llama: LlamaVocabulary, text: str) -> None:
    tokens = llama.tokenize(text)
    assert not any(llama.is_control(token) for token in tokens)
    assert llama.detokenize(tokens) == text.encode()


def test_llama_reads_the_roles_as_the_checkpoint_states_them(llama: LlamaVocabulary) -> None:
    assert llama.n_tokens == N_TINY
    assert llama.special_ids() == {"bos": 1, "eos": 5, "eot": 5, "pad": 3}
    assert llama.adds() == (False, False)
    assert [token for token in range(N_TINY) if llama.is_end(token)] == [2, 5]
    assert [token for token in range(N_TINY) if llama.is_control(token)] == list(range(12))


def test_vocabulary_has_the_tokens_of_the_file_at_their_ids(vocabulary: Vocabulary) -> None:
    stated = json.loads((TINY / "tokenizer.json").read_text())
    assert {t: i for i, t in enumerate(vocabulary.tokens)}.items() >= stated["model"][
        "vocab"
    ].items()
    assert vocabulary.types == [CONTROL] * 12 + [NORMAL] * (N_TINY - 12)
    assert [merge.split(" ") for merge in vocabulary.merges] == stated["model"]["merges"]
    assert vocabulary.chat_template == (TINY / "chat_template.jinja").read_text()
    assert (vocabulary.sampling.temperature, vocabulary.sampling.top_p) == (1.0, 0.95)


# ---- tokenizers made for one question --------------------------------------------------------


def test_a_combining_mark_stays_with_its_letter(tmp_path: Path) -> None:
    """llama.cpp's own tekken splits here and would give e, then the accent."""
    vocabulary = read_made(write_checkpoint(tmp_path, make_tokenizer()))
    write_vocabulary(vocabulary, tmp_path / "made.gguf")
    with open_vocabulary(tmp_path / "made.gguf") as llama:
        assert llama.tokenize("bce\u0301") == [259, 261]


def test_rows_beyond_the_last_token_are_unused(tmp_path: Path) -> None:
    vocabulary = read_made(write_checkpoint(tmp_path, make_tokenizer()), 264)
    assert vocabulary.tokens[262:] == ["[PAD262]", "[PAD263]"]
    assert vocabulary.types[262:] == [UNUSED, UNUSED]
    write_vocabulary(vocabulary, tmp_path / "made.gguf")
    with open_vocabulary(tmp_path / "made.gguf") as llama:
        assert not {262, 263} & set(llama.tokenize("[PAD262][PAD263]", parse_special=True))


def test_added_token_without_brackets_is_found_in_any_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer["added_tokens"] += [
        {"id": 262, "content": "b b", "special": False},
        {"id": 263, "content": "<tool>", "special": False},
    ]
    vocabulary = read_made(write_checkpoint(tmp_path, tokenizer), 264)
    assert vocabulary.types[262:] == [USER_DEFINED, CONTROL]
    write_vocabulary(vocabulary, tmp_path / "made.gguf")
    with open_vocabulary(tmp_path / "made.gguf") as llama:
        assert llama.tokenize("b b") == [262]
        assert 263 not in llama.tokenize("<tool>")
        assert llama.tokenize("<tool>", parse_special=True) == [263]


def test_bos_of_the_post_processor_is_added(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    vocabulary = read_made(write_checkpoint(tmp_path, tokenizer))
    assert (vocabulary.special.bos_id, vocabulary.special.add_bos) == (0, True)
    write_vocabulary(vocabulary, tmp_path / "made.gguf")
    with open_vocabulary(tmp_path / "made.gguf") as llama:
        assert llama.tokenize("bc", add_special=True) == [0, 259]
    write_checkpoint(tmp_path, tokenizer, tokenizer_config={"add_bos_token": False})
    assert not read_made(tmp_path).special.add_bos


def test_generation_config_is_believed_before_tokenizer_config_before_config(
    tmp_path: Path,
) -> None:
    config = {"vocab_size": N_MADE, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1}
    write_checkpoint(
        tmp_path,
        make_tokenizer(),
        generation_config={"eos_token_id": [1, 2], "top_k": 40},
        tokenizer_config={"eos_token": "<s>", "bos_token": {"content": "</s>"}},
    )
    vocabulary = read_tokenizer(tmp_path, N_MADE, config)
    special = vocabulary.special
    assert (special.eos_id, special.eot_id, special.bos_id, special.pad_id) == (1, 2, 1, 1)
    assert ("general.sampling.top_k", 40, "i32") in vocabulary.to_metadata()
    (tmp_path / "generation_config.json").unlink()
    assert read_tokenizer(tmp_path, N_MADE, config).special.eos_id == 0


def test_template_file_is_believed_before_the_default_of_a_list(tmp_path: Path) -> None:
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    write_checkpoint(tmp_path, make_tokenizer(), tokenizer_config={"chat_template": named})
    assert read_made(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("{{ 'é' }}")
    assert read_made(tmp_path).chat_template == "{{ 'é' }}"
