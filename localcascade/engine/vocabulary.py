"""Text to tokens and back, with a wall between what a template writes and what a user wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from localcascade.engine import _llama
from localcascade.prompt.template import Segment


class Vocabulary:
    """The vocabulary of a loaded model.

    Args:
        handle: Lives as long as the model.
    """

    def __init__(self, handle: _llama.VocabHandle) -> None:
        self._handle = handle
        self.n_tokens = _llama.get_n_vocab(handle)

    @cached_property
    def special(self) -> dict[str, int]:
        """Text -> id of every token that a template may write as such.

        That is CONTROL, and USER_DEFINED unless it is mere white space: some vocabularies add
        runs of spaces by hand, and those are plain text.
        """
        control, user_defined = _llama.find_special_tokens(self._handle)
        pairs = ((self.piece(token).decode("utf-8", "replace"), token)
                 for token in (*control, *user_defined))  # fmt: skip
        return {text: token for text, token in pairs if text.strip()}

    @cached_property
    def _forged(self) -> re.Pattern[str]:
        """Finds where a user's text spells a USER_DEFINED token, overlaps included."""
        _, user_defined = _llama.find_special_tokens(self._handle)
        known = set(user_defined)
        texts = [re.escape(t) for t, token in self.special.items() if token in known and len(t) > 1]
        return re.compile(f"(?={'|'.join(texts)})" if texts else r"(?!)")

    def piece(self, token: int) -> bytes:
        """Get the bytes a token stands for; special tokens give their own text."""
        return _llama.read_piece(self._handle, token)

    def is_eog(self, token: int) -> bool:
        """Tell whether a token ends a generation."""
        return _llama.is_eog(self._handle, token)

    @property
    def bos_text(self) -> str:
        """The beginning-of-sequence token's text, empty if there is none."""
        return self._text_or_empty(_llama.get_bos(self._handle))

    @property
    def eos_text(self) -> str:
        """The end-of-sequence token's text, empty if there is none."""
        return self._text_or_empty(_llama.get_eos(self._handle))

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Cut text into tokens as llama.cpp does.

        Args:
            text: Any text; lone surrogates, which UTF-8 lacks, become question marks.
            parse_special: Let the text of a control token become that token.

        Returns:
            Token ids; none are added at the ends.
        """
        data = text.encode("utf-8", "replace")
        return _llama.tokenize(self._handle, data, parse_special=parse_special)

    def tokenize_plain(self, text: str) -> list[int]:
        """Cut a user's text into tokens, of which none is special.

        llama.cpp finds USER_DEFINED tokens even when told not to parse special ones, so the
        text is cut inside whatever spells one.
        """
        cuts = [match.start() + 1 for match in self._forged.finditer(text)]
        spans = zip([0, *cuts], [*cuts, len(text)], strict=True)
        pieces = (self.tokenize(text[start:end], parse_special=False) for start, end in spans)
        return [token for piece in pieces for token in piece]

    def tokenize_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Cut a rendered prompt into tokens.

        Args:
            segments: A special one is exactly one token's text; the others are plain.

        Returns:
            Token ids.
        """
        tokens: list[int] = []
        for segment in segments:
            if segment.special:
                tokens.append(self.special[segment.text])
            else:
                tokens += self.tokenize_plain(segment.text)
        return tokens

    def _text_or_empty(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""
