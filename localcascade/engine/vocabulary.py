"""Text to tokens and back, with special tokens only where a template wrote them."""

from __future__ import annotations

import re
from functools import cached_property

from localcascade.engine import _llama
from localcascade.prompt.marks import Segment

_APOSTROPHE = re.compile(r"(?<=[^\W_])(?=')")
"""Between a letter or digit and an apostrophe, where the tekken family always ends a word."""


class Vocabulary:
    """The vocabulary of a loaded model.

    Args:
        handle: Lives as long as the model.
        cut_before_apostrophe: The file's own word for it, see quantize/pretokenizer.py.
    """

    def __init__(self, handle: _llama.VocabHandle, *, cut_before_apostrophe: bool = False) -> None:
        self._handle = handle
        self._cuts = cut_before_apostrophe
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

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Cut text into tokens as llama.cpp does.

        Args:
            text: Any text; lone surrogates, which UTF-8 lacks, become question marks.
            parse_special: Let the text of a control token become that token.

        Returns:
            Token ids; none are added at the ends.
        """
        tokens: list[int] = []
        for part in _APOSTROPHE.split(text) if self._cuts else [text]:
            data = part.encode("utf-8", "replace")
            tokens += _llama.tokenize(self._handle, data, parse_special=parse_special)
        return tokens

    def create_grammar(self, grammar: str) -> _llama.SamplerHandle:
        """Build a sampler that lets through what a grammar allows; see `_llama`."""
        return _llama.create_grammar(self._handle, grammar)

    def tokenize_segment(self, segment: Segment) -> list[int]:
        """Cut one segment of a rendered prompt into tokens; each is cut on its own.

        llama.cpp finds USER_DEFINED tokens even when told not to parse special ones; that no
        plain segment holds the text of one is the template's promise.

        Args:
            segment: A special one is exactly one token's text; the others are plain.

        Returns:
            Token ids.
        """
        if segment.special:
            return [self.special[segment.text]]
        return self.tokenize(segment.text, parse_special=False)

    def _decode(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""
