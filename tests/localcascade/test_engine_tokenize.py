"""The engine tokenizes the bundled model's text as the tokenizers library does, all of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcascade.engine.client import Engine
from quantize.convert import quantize_checkpoint
from tests.quantize.models import TINY

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizer_tiny.json.gz"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("tokenize") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0")
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
