"""Finds the texts that end an answer, wherever the tokens cut them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence


class StopFinder:
    """Lets text through up to the first stop text, and holds back what may be the start of one.

    Args:
        stops: The texts, none empty; without any, all text passes at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._whole = re.compile("|".join(map(re.escape, stops)))
        self._longest = max((len(stop) - 1 for stop in stops), default=0)
        self._held = ""
        self.is_met = False
        """Whether a stop text came; nothing passes any more."""

    def feed(self, text: str) -> str:
        """Take the next piece of text.

        Args:
            text: Whole characters, cut anywhere.

        Returns:
            What is certainly before any stop text.
        """
        if not self._stops:
            return text
        if self.is_met:
            return ""
        text = self._held + text
        self._held = ""
        if match := self._whole.search(text):
            self.is_met = True
            return text[: match.start()]
        n_held = self._count_held(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Let go of what was held back, for no more text follows it."""
        held, self._held = self._held, ""
        return held

    def _count_held(self, text: str) -> int:
        lengths = range(min(self._longest, len(text)), 0, -1)
        return next((n for n in lengths if self._may_begin(text[-n:])), 0)

    def _may_begin(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
