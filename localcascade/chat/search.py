"""Looking for words in the messages of a path, thinking included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localcascade.chat.conversation import Message


@dataclass(frozen=True, slots=True)
class Match:
    """A place where the words stand."""

    index: int
    """Of the message on the path."""
    number: int
    """Of the place among those in the message, thinking first; from 0."""


def find_matches(path: Sequence[Message], query: str) -> list[Match]:
    """Find every place where some words stand, whatever their case; not in sealed thinking.

    Args:
        path: The messages.
        query: The words, as they follow each other; blank ones are found nowhere.
    """
    wanted = query.casefold()
    if not wanted.strip():
        return []
    return [
        Match(index, number)
        for index, message in enumerate(path)
        for number in range(count_places(message, wanted))
    ]


def count_places(message: Message, wanted: str) -> int:
    """Count where words, already folded, stand in a message and its thinking."""
    thinking = message.open_thinking
    return thinking.casefold().count(wanted) + message.text.casefold().count(wanted)
