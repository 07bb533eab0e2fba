"""One problem, many chains of thought: asked for at once, stopped as soon as the answer stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from localcascade.chat.answers import Answer
from localcascade.chat.voting import Ballot, IsSame, Vote
from localcascade.errors import CascadeError, EngineDied
from localcascade.prompt.events import ChatRequest, Delta, Done, Event, Failed, FinishReason

WISH = "Put your final answer within \\boxed{}."
_PROBLEM_KEYS = ("problem", "question", "prompt")
_SEPARATOR = "---"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be solved."""

    text: str
    name: str = ""
    """How it is called in its file."""
    expected: str | None = None
    """The right answer, where it is known."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain that has ended."""

    index: int
    text: str
    """Its answer as the model wrote it, without the thinking."""
    answer: Answer | None
    """What that says."""
    reason: FinishReason
    thinking_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Solution:
    """What the chains came to."""

    vote: Vote
    chains: tuple[Chain, ...]
    """Those that ended by themselves, in the order they did."""
    n_samples: int
    """Chains that were asked for."""
    has_stopped_early: bool
    """Whether the rest could not change the answer and was stopped."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the chains are."""

    vote: Vote
    n_samples: int
    n_pieces: int
    """Pieces of text so far, about as many as tokens."""


class SamplingEngine(Protocol):
    """What solving needs of an engine."""

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Generate a request's answers; closing the iterator stops those that go on."""


@dataclass
class _Count:
    """The chains of one problem while they run."""

    ballot: Ballot
    n_samples: int
    texts: dict[int, list[str]] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)
    n_pieces: int = 0

    def take(self, event: Event) -> None:
        """Take what the engine says."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta):
            self.n_pieces += 1
            if event.channel == "answer":
                self.texts.setdefault(event.index, []).append(event.text)
        elif isinstance(event, Done):
            self._end(event)

    def _end(self, done: Done) -> None:
        text = "".join(self.texts.pop(done.index, ()))
        usage = done.usage
        self.chains.append(
            Chain(
                done.index,
                text,
                self.ballot.add(text),
                done.reason,
                usage.thinking_tokens,
                usage.completion_tokens,
            )
        )

    @property
    def n_left(self) -> int:
        return self.n_samples - len(self.chains)


def solve_problem(
    engine: SamplingEngine,
    request: ChatRequest,
    is_same: IsSame,
    on_progress: Callable[[Standing], None] = lambda _standing: None,
    *,
    stops_early: bool = True,
) -> Solution:
    """Let the chains of a request vote.

    Args:
        engine: What runs them.
        request: `n` says how many chains; they share the prompt.
        is_same: Compares expressions.
        on_progress: Called after every piece of text and every end of a chain.
        stops_early: Stop the chains that cannot change the answer any more.

    Returns:
        The count.

    Raises:
        CascadeError: The engine failed.
    """
    count = _Count(Ballot(is_same), request.n)
    with closing(_as_generator(engine.chat(request))) as events:
        for event in events:
            count.take(event)
            vote = count.ballot.count()
            on_progress(Standing(vote, request.n, count.n_pieces))
            if stops_early and vote.is_decided(count.n_left):
                break
    vote = count.ballot.count()
    if count.n_left and not (stops_early and vote.is_decided(count.n_left)):
        raise EngineDied("the engine ended in the middle of the chains")
    return Solution(vote, tuple(count.chains), request.n, count.n_left > 0)


def _as_generator(events: Iterator[Event]) -> Generator[Event, None, None]:
    """Pass events on, and close where they come from however that ends."""
    try:
        yield from events
    finally:
        if close := getattr(events, "close", None):
            close()


def make_question(problem: str) -> str:
    """Ask for a problem's answer in a form that can be found again."""
    return f"{problem}\n\n{WISH}"


def read_problems(text: str, is_lines: bool) -> list[Problem]:
    """Read problems from the text of a file.

    Args:
        text: Problems between lines of `---`; or one JSON object a line with the problem under
            "problem", "question" or "prompt", and perhaps "answer" and "id".
        is_lines: Whether it is the latter.

    Raises:
        CascadeError: A line is not such an object; names the line.
    """
    if is_lines:
        lines = enumerate(text.splitlines(), 1)
        return [_read_line(number, line) for number, line in lines if line.strip()]
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == _SEPARATOR:
            parts.append([])
        else:
            parts[-1].append(line)
    return [Problem(found) for part in parts if (found := "\n".join(part).strip())]


def _read_line(number: int, line: str) -> Problem:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise _refuse(number, f"is not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise _refuse(number, "is not an object")
    key = next((key for key in _PROBLEM_KEYS if isinstance(value.get(key), str)), None)
    if key is None or not value[key].strip():
        raise _refuse(number, "has no problem")
    expected = value.get("answer")
    name = str(value.get("id", ""))
    return Problem(value[key].strip(), name, None if expected is None else str(expected))


def _refuse(number: int, problem: str) -> CascadeError:
    return CascadeError(
        f"line {number} {problem}",
        'Each line is one object: {"problem": "What is 2 + 2?", "answer": "4"}',
    )
