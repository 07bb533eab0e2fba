"""Problems to practise with offline: chosen by topic, and found again in a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from localcascade.chat.conversation import Message
from localcascade.chat.tutor import DATA_FOLDER


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem."""

    id: str
    topic: str
    level: str
    """School, upper school or first year."""
    text: str
    """Markdown with formulas."""
    answer: str
    """In LaTeX; several solutions with commas between."""


@cache
def load_problems() -> tuple[Problem, ...]:
    """Read the problems that are shipped with this program, topic by topic."""
    import tomllib

    tables = tomllib.loads((DATA_FOLDER / "problems.toml").read_text(encoding="utf-8"))
    return tuple(Problem(**table) for table in tables["problem"])


@cache
def _list_by_text() -> Mapping[str, Problem]:
    return {problem.text: problem for problem in load_problems()}


def list_topics(problems: Sequence[Problem]) -> list[str]:
    """Name the topics, in the order of the lessons."""
    return list(dict.fromkeys(problem.topic for problem in problems))


def filter_problems(problems: Sequence[Problem], query: str) -> list[Problem]:
    """Keep the problems in whose topic, level or text a word begins with each word of a query."""
    words = [re.compile(rf"(?<!\w){re.escape(word)}") for word in query.casefold().split()]

    def fits(problem: Problem) -> bool:
        text = f"{problem.topic} {problem.level} {problem.text}".casefold()
        return all(word.search(text) for word in words)

    return [problem for problem in problems if fits(problem)]


def find_problem(path: Sequence[Message]) -> Problem | None:
    """Find the problem that is practised at the end of a path; None where there is none."""
    known = _list_by_text()
    asked = (known.get(message.text) for message in reversed(path) if message.role == "user")
    return next((problem for problem in asked if problem is not None), None)
