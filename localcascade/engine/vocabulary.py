"""Text to tokens and back, with special tokens only where a template wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, lru_cache

from localcascade.engine import _llama
from localcascade.prompt.marks import Segment

_APOSTROPHE = re.compile(r"(?<=[^\W_])(?=')")
"""Between a letter or digit and an apostrophe, where the tekken family always ends a word."""

PIECE_CHARS = 1 << 14
"""Longer text is cut into pieces. llama.cpp splits text into words with std::regex, which calls
itself for each character of a word: 325 bytes of stack each, 5 MiB for so many."""
_BREAK = re.compile(r"(?<=\n)(?=[^\W_])|(?<=[^\W_])(?= [^\W_])")
"""Where a word ends for those that split as GPT-2 did or by its successors' rules: before the first
letter of a line, and before a space between letters or digits."""
_BREAK_CHARS = 2048
"""How far back from a piece's end such a place is looked for."""
SHORT_CHARS = 32
N_REMEMBERED = 4096
"""Short texts whose tokens are remembered: each takes llama.cpp half a millisecond, most of it for
the regular expression, and a text full of apostrophes has thousands."""


class Vocabulary:
    """The vocabulary of a loaded model.

    Args:
        handle: Lives as long as the model.
        cut_before_apostrophe: The file's own word for it, see quantize/pretokenizer.py.
    """

    def __init__(self, handle: _llama.VocabHandle, *, cut_before_apostrophe: bool = False) -> None:
        self._handle = handle
        self._cuts = cut_before_apostrophe
        self._recall = lru_cache(N_REMEMBERED)(self._tokenize)
        self._has_words = _llama.splits_words(handle)
        self.n_tokens = _llama.get_n_vocab(handle)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    @cached_property
    def special(self) -> dict[str, int]:
        """Text -> id of every token that a template may write as such.

        That is CONTROL, and USER_DEFINED unless it is mere white space: some vocabularies add
        runs of spaces by hand, and those are plain text.
        """
        control, user_defined = _llama.find_special_tokens(self._handle)
        tokens = {self._decode(token): token for token in (*control, *user_defined)}
        return {text: token for text, token in tokens.items() if text.strip()}

    def piece(self, token: int) -> bytes:
        """Get the bytes a token stands for; special tokens give their own text."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = _llama.read_piece(self._handle, token)
        return piece

    def is_eog(self, token: int) -> bool:
        """Tell whether a token ends a generation."""
        is_end = self._ends.get(token)
        if is_end is None:
            is_end = self._ends[token] = _llama.is_eog(self._handle, token)
        return is_end

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token, if every text is to open with it."""
        token = _llama.get_bos(self._handle)
        return token if token >= 0 and _llama.adds_bos(self._handle) else None

    @property
    def bos_text(self) -> str:
        """The beginning-of-sequence token's text, empty if there is none."""
        return self._decode(_llama.get_bos(self._handle))

    @property
    def eos_text(self) -> str:
        """The end-of-sequence token's text, empty if there is none."""
        return self._decode(_llama.get_eos(self._handle))

    def tokenize(self, text: str, *, parse_special: bool, n_most: int | None = None) -> list[int]:
        """Cut text into tokens as llama.cpp does.

        Args:
            text: Any text; lone surrogates, which UTF-8 lacks, become question marks. A run of more
                than PIECE_CHARS characters without a break is cut somewhere, special tokens' texts
                in it too.
            parse_special: Let the text of a control token become that token.
            n_most: Stop as soon as there are more tokens than this, for the rest is of no use.

        Returns:
            Token ids; none are added at the ends.
        """
        tokens: list[int] = []
        for part in self._cut(text):
            tokenize = self._recall if len(part) <= SHORT_CHARS else self._tokenize
            tokens += tokenize(part, parse_special)
            if n_most is not None and len(tokens) > n_most:
                break
        return tokens

    def _tokenize(self, text: str, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        return _llama.tokenize(self._handle, data, parse_special=parse_special)

    def _cut(self, text: str) -> Iterator[str]:
        """Cut text where words end anyway."""
        pieces = cut_pieces(text) if self._has_words else [text]
        for piece in pieces:
            yield from _APOSTROPHE.split(piece) if self._cuts else [piece]

    def create_grammar(self, grammar: str) -> _llama.SamplerHandle:
        """Build a sampler that lets through what a grammar allows; see `_llama`."""
        return _llama.create_grammar(self._handle, grammar)

    def tokenize_segment(self, segment: Segment, n_most: int | None = None) -> list[int]:
        """Cut one segment of a rendered prompt into tokens; each is cut on its own.

        llama.cpp finds USER_DEFINED tokens even when told not to parse special ones; that no
        plain segment holds the text of one is the template's promise.

        Args:
            segment: A special one is exactly one token's text; the others are plain.
            n_most: As for tokenize.

        Returns:
            Token ids.
        """
        if segment.special:
            return [self.special[segment.text]]
        return self.tokenize(segment.text, parse_special=False, n_most=n_most)

    def _decode(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""


def cut_pieces(text: str) -> Iterator[str]:
    """Cut text into pieces of PIECE_CHARS characters, or a little less where a word ends near."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        # One more on either side, for what a place looks like depends on both.
        near = text[end - _BREAK_CHARS - 1 : end + 2]
        places = [found.start() for found in _BREAK.finditer(near)]
        if places := [place for place in places if 0 < place <= _BREAK_CHARS + 1]:
            end += places[-1] - _BREAK_CHARS - 1
        yield text[start:end]
        start = end
    yield text[start:]
