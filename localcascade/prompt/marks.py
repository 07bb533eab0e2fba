"""Which special tokens of a rendered prompt the template wrote, and which a user only typed.

Every special text inside the template's own literals is wrapped in two private-use characters
that occur nowhere else. Whatever the template does to a user's text afterwards (lowering,
replacing, gluing `<` and `>` around it), a special token without its marks is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise, takewhile

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
"""Supplementary private-use area A: no tokenizer has a token of its own for it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt that is tokenized on its own, never joined with its neighbour."""

    text: str
    special: bool
    """True: exactly one special token's text, written by the template. False: plain text, in which
    no special text occurs; one that a user typed is cut in two between neighbouring segments."""


class Marks:
    """Marks the special texts of one template and reads the marks back.

    Args:
        special_texts: Texts of special tokens; blank ones are left to the tokenizer.
        avoid: Text in which the two marks must not occur.
    """

    def __init__(self, special_texts: Iterable[str], avoid: str) -> None:
        texts = {text for text in special_texts if text.strip()}
        used = {*avoid, *"".join(texts)}
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        self.opening, self.closing = next(free), next(free)
        any_special = _match_any(texts) if texts else "(?!)"
        self._special = re.compile(any_special)
        self._marked = re.compile(f"{self.opening}({any_special}){self.closing}")
        self._mark = re.compile(f"({self._marked.pattern})|[{self.opening}{self.closing}]")

    def occur_in(self, text: str) -> bool:
        """Whether a mark occurs in `text`."""
        return self.opening in text or self.closing in text

    def tag(self, text: str) -> str:
        """Mark every special text of a literal of the template."""
        return self._special.sub(f"{self.opening}\\g<0>{self.closing}", text)

    def untag(self, text: str) -> str:
        """Take all marks away, for comparisons with a user's text."""
        return text.replace(self.opening, "").replace(self.closing, "")

    def clean(self, text: str) -> str:
        """Take away the marks that no longer enclose a special text, as after a split."""
        return self._mark.sub(lambda match: match[1] or "", text) if self.occur_in(text) else text

    def split(self, text: str) -> list[Segment]:
        """Cut a rendered prompt into segments.

        Args:
            text: What the template wrote, marks included.

        Returns:
            Segments whose texts, joined, are the prompt without marks; none is empty.
        """
        segments = []
        for index, piece in enumerate(self._marked.split(text)):
            if index % 2:
                segments.append(Segment(piece, True))
            else:
                segments += [Segment(part, False) for part in self._cut_typed(self.untag(piece))]
        return segments

    def _cut_typed(self, text: str) -> list[str]:
        """Cut each special text after its first character: a tokenizer may know it even as text."""
        cuts = [0]
        while match := self._special.search(text, cuts[-1]):
            cuts.append(match.start() + 1)
        cuts.append(len(text))
        return [text[a:b] for a, b in pairwise(cuts) if a < b]


def _match_any(texts: Collection[str]) -> str:
    """Write a pattern for any of `texts`, the longest that matches.

    It branches character by character, so that a vocabulary's thousand special tokens cost no
    more at each `<` than one.
    """
    groups: dict[str, set[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], set()).add(text)
    shorter_fits = bool(groups.pop("", None))
    branches = []
    for group in groups.values():
        pairs = zip(min(group), max(group), strict=False)  # what these two share, all share
        prefix = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        rests = {text.removeprefix(prefix) for text in group}
        branches.append(re.escape(prefix) + (_match_any(rests) if rests != {""} else ""))
    return f"(?:{'|'.join(branches)}){'?' if shorter_fits else ''}"
