"""Drafts: the size of a file that is not made, from config and tokenizer alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.choices import Choices
from quantize.draft import Draft, measure_entry, open_draft
from quantize.errors import UnsupportedModel
from quantize.families import Config
from quantize.gguf import plan_file
from tests.quantize.models import TINY


@pytest.mark.parametrize(
    "entry",
    [
        ("tokenizer.ggml.tokens", ["a", "", "Ġthe", "日本"], "arr:str"),
        ("tokenizer.ggml.token_type", [1, 3, 3], "arr:i32"),
    ],
)
def test_an_entry_takes_what_the_header_grows_by(entry: tuple[str, list[object], str]) -> None:
    # Every header is padded to 32 bytes, so a text beside it is made one byte longer at a time
    # until the padding jumps: that tells the bytes exactly.
    def find_jump(entries: list[tuple[str, object, str]]) -> tuple[int, int]:
        sizes = [len(plan_file([*entries, ("x", "y" * n, "str")], []).header) for n in range(64)]
        n = next(n for n in range(63) if sizes[n + 1] > sizes[n])
        return sizes[n], n

    (without, n_without), (with_entry, n_with) = find_jump([]), find_jump([entry])
    assert measure_entry(entry) == (with_entry - n_with) - (without - n_without)


def test_long_arrays_are_measured_as_if_they_were_packed() -> None:
    short = open_draft(TINY, "tiny")
    entry = ("tokenizer.ggml.scores", ["token " * (i % 7) for i in range(5000)], "arr:str")
    types = Choices(dict.fromkeys(short.matrices, "q8_0"))
    packed = Draft(short.config, "tiny", (*short.vocabulary, entry))
    filled = Draft(short.config, "tiny", short.vocabulary, measure_entry(entry))
    assert packed.measure_file(types) == filled.measure_file(types)


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    draft = Draft(Config(tmp_path / "config.json", {"architectures": ["Llama"]}), "llama")
    with pytest.raises(UnsupportedModel, match="Llama"):
        draft.list_tensors(Choices({}))
