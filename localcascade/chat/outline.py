"""What a model is thinking about, in a line: the step that it is at."""

from __future__ import annotations

import re

_TAIL_CHARACTERS = 2000
_STEP = re.compile(r"^(?:#{1,6}\s+|\*\*|\d+[.)]\s+|(?:Step|Case|Part)\b)(.*)$")
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+|\n+")
_DECORATION = re.compile(r"^[#*\s>`-]+|[*`:\s]+$")


def find_step(thinking: str) -> str:
    """Find the step that a model is at, from what it has thought so far.

    Args:
        thinking: All of it; only its end is read.

    Returns:
        The last heading, numbered step or sentence that is complete; what there is, without any.
    """
    end = thinking[-_TAIL_CHARACTERS:]
    lines = [line.strip() for line in end.split("\n")]
    finished = lines[:-1] if len(lines) > 1 else lines
    for line in reversed(finished[-12:]):
        if _STEP.match(line):
            return _clean(line)
    sentences = [part for part in _SENTENCE_END.split(end) if part.strip()]
    if len(sentences) > 1 and not end.rstrip(" ").endswith((".", "!", "?", "\n")):
        sentences.pop()
    return _clean(sentences[-1]) if sentences else ""


def _clean(text: str) -> str:
    return _DECORATION.sub("", text).replace("**", "").strip()
