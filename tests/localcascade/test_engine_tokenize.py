"""The engine tokenizes the bundled model's text as the tokenizers library does, all of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from localcascade.engine import vocabulary
from localcascade.engine.client import Engine
from localcascade.engine.vocabulary import cut_pieces
from quantize.convert import quantize_checkpoint
from tests.localcascade.local_engine import load
from tests.quantize.models import TINY

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizer_tiny.json.gz"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenize") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0")
    return path


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with Engine(path) as engine:
        yield engine


def read_cases() -> list[dict[str, Any]]:
    """Texts with their tokens, special ones as text and as tokens."""
    stored = json.loads(gzip.decompress(VECTORS.read_bytes()))
    cases: list[dict[str, Any]] = stored["cases"] if isinstance(stored, dict) else stored
    return cases


def test_every_stored_text_gives_the_library_s_tokens(engine: Engine) -> None:
    cases = read_cases()
    assert len(cases) >= 500
    for case in cases:
        assert engine.tokenize(case["text"]) == case["as_text"], case["text"]
        tokens = engine.tokenize(case["text"], parse_special=True)
        assert tokens == case["as_tokens"], case["text"]


@pytest.mark.parametrize("character", ["a", "-", " ", "漢"])
def test_a_long_run_does_not_kill_the_worker(engine: Engine, character: str) -> None:
    assert len(engine.tokenize(character * 100_000)) >= 100_000 // 32


def test_no_length_kills_the_worker(engine: Engine) -> None:
    # Without pieces, 1.7 million letters in a row overflow the worker's stack of 512 MiB.
    assert len(engine.tokenize("a" * 2_000_000)) >= 2_000_000 // 32


def test_pieces_of_a_text_give_the_tokens_of_the_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(vocabulary.__file__).read_text() + "Über  größe, 漢字 12345 isn't it?\r\n\n" * 50
    tokenize = partial(load(path).vocabulary.tokenize, text, parse_special=False)
    expected = tokenize()
    monkeypatch.setattr(vocabulary, "PIECE_CHARS", 500)
    monkeypatch.setattr(vocabulary, "_BREAK_CHARS", 300)
    assert tokenize() == expected
    pieces = list(cut_pieces(text))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 500 < len(text) // 10
    some = tokenize(n_most=300)
    assert 300 < len(some) < len(expected) // 2 and some == expected[: len(some)]


def test_a_text_without_a_break_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "PIECE_CHARS", 10)
    monkeypatch.setattr(vocabulary, "_BREAK_CHARS", 4)
    assert list(cut_pieces("a" * 25)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(cut_pieces("aaaaaaaa bbb cccc")) == ["aaaaaaaa", " bbb cccc"]
    assert list(cut_pieces("")) == [""]
