"""Which pre-tokenizer of llama.cpp splits text as a tokenizer.json says.

llama.cpp does not run the regexes of tokenizer.json: it has a list of named splitters, and a GGUF
file says one name. The name also fixes whether a word that is itself a token skips the merges.

Source: src/llama-vocab.cpp and src/unicode.cpp of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantize.errors import CheckpointError, UnsupportedModel

Merge = tuple[str, str]

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ANY_CASE_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What a ByteLevel pre-tokenizer splits by when `use_regex` is on."""
DIGIT_REGEX = r"\p{N}"
"""What a Digits pre-tokenizer with `individual_digits` splits by."""


def _words(ending: str, digits: str) -> str:
    """The tekken and gpt-4o regexes: a change from lower to upper case starts a new piece."""
    prefix = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{prefix}{_UPPER}*{_LOWER}+{ending}|{prefix}{_UPPER}+{_LOWER}*{ending}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


def _letters(letter: str, digits: str, other: str) -> str:
    """The cl100k regex and its variants: English endings first, then runs of letters."""
    return (
        rf"{_ANY_CASE_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{letter}+|{digits}| ?{other}+[\r\n]*|{_SPACES}"
    )


@dataclass(frozen=True)
class PreTokenizer:
    """One splitter of llama.cpp."""

    name: str
    """Value of tokenizer.ggml.pre."""
    patterns: tuple[str, ...]
    """The regexes of tokenizer.json that it stands for, applied one after the other."""
    ignores_merges: bool
    """Whether a word that is a token is taken whole, without the merges."""
    joins_more: bool = False
    """Whether it leaves digits, or letters and an English ending, in one piece that the patterns
    separate; the tokens are the same if none of them has such a place inside."""


_TEKKEN = (_words("", r"\p{N}"),)
_GPT4O = (_words(_ANY_CASE_ENDING + "?", r"\p{N}{1,3}"),)
_LLAMA3 = (_letters(r"\p{L}", r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]"),)
_QWEN2 = (_letters(r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]"),)
_QWEN35 = (_letters(r"[\p{L}\p{M}]", r"\p{N}", r"[^\s\p{L}\p{M}\p{N}]"),)
_SEED_CODER = (
    _ANY_CASE_ENDING
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|"
    + _SPACES,
)  # fmt: skip
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"""| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}""",
)

PRE_TOKENIZERS = (
    PreTokenizer("granite-embed-multi-97m", _TEKKEN, ignores_merges=True, joins_more=True),
    PreTokenizer("tekken", _TEKKEN, ignores_merges=True),
    PreTokenizer("granite-embed-multi-97m", _GPT4O, ignores_merges=True),
    PreTokenizer("gpt-4o", _GPT4O, ignores_merges=False),
    PreTokenizer("llama-bpe", _LLAMA3, ignores_merges=True),
    PreTokenizer("dbrx", _LLAMA3, ignores_merges=False),
    PreTokenizer("qwen2", _QWEN2, ignores_merges=False),
    PreTokenizer("qwen35", _QWEN35, ignores_merges=False),
    PreTokenizer("seed-coder", _SEED_CODER, ignores_merges=False),
    PreTokenizer("deepseek-v3", _DEEPSEEK3, ignores_merges=False),
    PreTokenizer("gpt-2", (GPT2_REGEX,), ignores_merges=False),
    PreTokenizer("smollm", (DIGIT_REGEX, GPT2_REGEX), ignores_merges=False),
)
"""The splitters whose original regexes are known, the most faithful first.

llama.cpp's tekken and gpt-4o take combining marks for punctuation, which tears Hindi, Thai or Khmer
words apart; granite-embed-multi-97m is gpt-4o with marks as letters. docs/log.md has the figures.
"""


def read_patterns(path: Path, stated: Any) -> tuple[str, ...]:
    """Read the regexes that a tokenizer.json splits text by, in the order they are applied.

    Args:
        path: The file, for messages.
        stated: Value of its key `pre_tokenizer`.

    Returns:
        Regexes with line ends written as escapes.

    Raises:
        CheckpointError: The entry is not what the format allows.
        UnsupportedModel: A step that a byte-level BPE of llama.cpp cannot follow.
    """
    steps = stated.get("pretokenizers") if _is_step(stated, "Sequence") else [stated]
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise CheckpointError(
            path, "pre_tokenizer is not an object or a sequence of objects",
            hint="Download tokenizer.json again.",
        )  # fmt: skip
    if not steps or not _is_step(steps[-1], "ByteLevel"):
        raise _refuse_step(path, steps[-1] if steps else {}, "the last step must be ByteLevel")
    patterns = [_read_split(path, step, alone=len(steps) == 2) for step in steps[:-1]]
    if steps[-1].get("add_prefix_space", True):
        raise _refuse_step(path, steps[-1], "llama.cpp puts no space before a text")
    return (*patterns, GPT2_REGEX) if steps[-1].get("use_regex", True) else tuple(patterns)


def choose_pre_tokenizer(
    path: Path,
    patterns: Sequence[str],
    ignore_merges: bool,
    tokens: Collection[str],
    merges: Sequence[Merge],
) -> PreTokenizer:
    """Choose the splitter of llama.cpp for the regexes of a tokenizer.json.

    Where llama.cpp has the regexes only with the other setting of `ignore_merges`, both settings
    give the same tokens exactly if the merges build every token from its own bytes.

    Args:
        path: The file, for messages.
        patterns: Its regexes, from `read_patterns`.
        ignore_merges: Its setting: a word that is a token is taken whole.
        tokens: Tokens in GPT-2's spelling, without the added ones.
        merges: In order of rank.

    Returns:
        The splitter; its name is the value of tokenizer.ggml.pre.

    Raises:
        UnsupportedModel: No splitter has these regexes, or only with other merges.
    """
    candidates = [known for known in PRE_TOKENIZERS if known.patterns == tuple(patterns)]
    if not candidates:
        names = ", ".join(known.name for known in PRE_TOKENIZERS)
        raise UnsupportedModel(
            f"{path}: pre_tokenizer: no known pre-tokenizer of llama.cpp splits by "
            f"{' then '.join(map(repr, patterns)) or 'no regex at all'}",
            f"Known are those of {names}; another regex would give other tokens than the model "
            "was trained on.",
        )
    needs_merges = any(known.ignores_merges != ignore_merges for known in candidates)
    split = find_split_token(tokens, merges) if needs_merges else None
    for known in candidates:
        follows_merges = known.ignores_merges == ignore_merges or split is None
        if follows_merges and not (known.joins_more and has_joined_token(tokens)):
            return known
    raise UnsupportedModel(
        f"{path}: model.ignore_merges is {ignore_merges}, llama.cpp's {candidates[0].name} has "
        f"it the other way, and the merges do not build token {split!r}",
        "The tokens would differ from those the model was trained on; it cannot be converted.",
    )


def spell_bytes() -> list[str]:
    """List the character that each byte has in the tokens of a byte-level BPE.

    Visible Latin-1 stands for itself; the other 68 bytes are numbered from U+0100 on.

    Source: GPT-2's encoder, bytes_to_unicode.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(0x100)]


def find_split_token(tokens: Collection[str], merges: Sequence[Merge]) -> str | None:
    """Find a token that the merges do not build from its own bytes.

    Args:
        tokens: Tokens in GPT-2's spelling.
        merges: In order of rank.

    Returns:
        One such token, None if there is none.
    """
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    return next((token for token in tokens if len(_merge_bytes(token, ranks)) > 1), None)


def _merge_bytes(token: str, ranks: Mapping[Merge, int]) -> list[str]:
    """Apply the merges to one token: always the first in rank, from the left."""
    pieces = list(token)
    while len(pieces) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(pieces)]
        rank = min(pairs)
        if rank == len(ranks):
            break
        at = pairs.index(rank)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def has_joined_token(tokens: Collection[str]) -> bool:
    """Tell whether a token holds two digits side by side, or a letter and then an apostrophe."""
    bytes_of = {character: byte for byte, character in enumerate(spell_bytes())}
    for token in tokens:
        text = bytes(bytes_of[character] for character in token).decode(errors="replace")
        for left, right in pairwise(text):
            kind = unicodedata.category(left)[0]
            if (kind in "LM" and right == "'") or kind == unicodedata.category(right)[0] == "N":
                return True
    return False


def _is_step(stated: Any, kind: str) -> bool:
    return isinstance(stated, Mapping) and stated.get("type") == kind


def _read_split(path: Path, step: Mapping[str, Any], alone: bool) -> str:
    """Read one splitting step; removing the gaps is keeping the matches if nothing else splits."""
    if _is_step(step, "Digits") and step.get("individual_digits") is True:
        return DIGIT_REGEX
    if not _is_step(step, "Split"):
        raise _refuse_step(path, step, "only Split, Digits and ByteLevel are known")
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(regex, str):
        raise _refuse_step(path, step, "only a Regex pattern is known")
    kept = (step.get("behavior"), step.get("invert"))
    if kept != ("Isolated", False) and not (alone and kept == ("Removed", True)):
        raise _refuse_step(path, step, f"behavior {kept[0]}, invert {kept[1]} is not known")
    return regex.replace("\r", r"\r").replace("\n", r"\n")


def _refuse_step(path: Path, step: Mapping[str, Any], why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path}: pre_tokenizer step {step.get('type')}: {why}",
        "llama.cpp cannot split text as this tokenizer does; it cannot be converted.",
    )
