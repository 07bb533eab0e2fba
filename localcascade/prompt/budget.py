"""How long a model may think, and how its thinking is brought to an end so that an answer comes.

As a limit nears, thinking lands at the end of a line or sentence, at the latest at the limit: a
closing sentence in the model's own voice, then `</think>`, and it answers. Pure: whoever generates
counts nothing but tells each token and the time, and forces what a Landing says.

How to use a Guard, one for each request that thinks:
- made when the prompt is read: `Guard(budget, room_tokens=..., closing_tokens=...)`;
- after each token: `watch(token, piece, elapsed_s)` while the channel is thinking,
  `watch_answer(token)` otherwise (tool calls too); end-of-generation tokens are not told;
- a Landing: drop the bytes of an unfinished character, feed `landing.text` (if any) and then
  `</think>` as if they had been sampled, without telling them to `watch`; they were counted;
- a true `watch_answer` ends the generation, reason "length".

It also lands when max_tokens or the context is about to end ("room"), so that an answer comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from localcascade.prompt.loops import ANSWER_RULE, THINKING_RULE, LoopDetector

LandingReason = Literal["tokens", "seconds", "room", "loop", "asked"]
"""tokens, seconds: the budget's; room: max_tokens or the context would have ended before an
answer; loop: it went round in circles; asked: somebody pressed "answer now"."""

DEFAULT_RESERVE_TOKENS = 1024
WINDOW_SHARE = 0.05
WINDOW_TOKENS = 32
WINDOW_S = 1.0

MOST_TOKENS = 2**31 - 1
MOST_S = 1e9

_TIME_IS_UP = "Considering the limited time, I will give my answer now."
CLOSINGS: Final[Mapping[LandingReason, str]] = MappingProxyType(
    {
        "tokens": _TIME_IS_UP,
        "seconds": _TIME_IS_UP,
        "room": _TIME_IS_UP,
        "loop": "I am repeating myself, so I will give my answer now.",
        "asked": "I am asked to answer right away, so I will give my answer now.",
    }
)
"""What the model says to itself before it stops thinking."""

_ENDS = tuple(mark.encode() for mark in ".!?。！？…।؟")


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """How much one request may think; None is no limit of that kind."""

    tokens: int | None = None
    """Closing sentence and `</think>` included."""
    seconds: float | None = None
    """Since generation began."""
    answer_reserve_tokens: int = DEFAULT_RESERVE_TOKENS
    """Left for the answer when max_tokens or the context ends; half of them if there are fewer
    than twice as many."""


def check_budget(budget: ThinkingBudget) -> None:
    """Refuse values that mean nothing.

    Raises:
        ValueError: Names the value and what it may be.
    """
    tokens, seconds, reserve = budget.tokens, budget.seconds, budget.answer_reserve_tokens
    if tokens is not None and not _is_among(tokens, 1, MOST_TOKENS, is_whole=True):
        problem = f"the thinking budget is {_show(tokens)} tokens, but must be at least 1"
        raise ValueError(f"{problem}, at most {MOST_TOKENS}; ask without thinking instead of 0")
    if seconds is not None and not (_is_among(seconds, 0, MOST_S) and seconds > 0):
        problem = f"the thinking budget is {_show(seconds)} seconds"
        raise ValueError(f"{problem}, but must be positive, at most {MOST_S:g}")
    if not _is_among(reserve, 0, MOST_TOKENS, is_whole=True):
        problem = f"the reserve is {_show(reserve)} tokens"
        raise ValueError(f"{problem}, but must be at least 0, at most {MOST_TOKENS}")


def check_number(
    name: str, value: float, least: float, most: float, *, is_whole: bool = False
) -> None:
    """Refuse what is no number, or not between two others.

    Args:
        name: Of the value, for the message.
        value: Anything: those who call from Python may err too.
        least: What it may be.
        most: What it may be.
        is_whole: Whether it must be a whole number.

    Raises:
        ValueError: Names the value and what it may be.
    """
    if not _is_among(value, least, most, is_whole=is_whole):
        kind = "a whole number" if is_whole else "a number"
        span = f"{kind} between {_show(least)} and {_show(most)}"
        raise ValueError(f"{name} is {_show(value)}, but must be {span}")


def _is_among(value: object, least: float, most: float, *, is_whole: bool = False) -> bool:
    kinds = (int,) if is_whole else (int, float)
    return isinstance(value, kinds) and least <= value <= most


def _show(value: object) -> str:
    """Write a value in a message; a whole number may have more digits than Python writes."""
    if isinstance(value, int) and abs(value) > 2**64:
        return f"a number of {value.bit_length()} bits"
    return f"{value:g}" if isinstance(value, float) else f"{value!r:.40}"


@dataclass(frozen=True, slots=True)
class Landing:
    """How thinking ends now."""

    reason: LandingReason
    text: str
    """To be forced before `</think>`, newlines included; empty where not even that fits."""


def write_closing(reason: LandingReason, before: bytes = b"") -> str:
    """Write a closing sentence with the newlines that set it off.

    Args:
        reason: Why thinking ends.
        before: What the model wrote last.
    """
    gap = "\n" if before.endswith(b"\n") else "\n\n"
    return f"{gap}{CLOSINGS[reason]}\n"


@dataclass(frozen=True, slots=True)
class _Limit:
    """One thing that runs out: from `soft` on a sentence's end will do, at `hard` anything."""

    reason: LandingReason
    soft: float
    hard: float


class Guard:
    """Watches the generation of one request and says when its thinking must end.

    Args:
        budget: The request's.
        room_tokens: Most tokens that can be generated: the smaller of max_tokens and what the
            context has left after the prompt.
        closing_tokens: Most tokens that any of CLOSINGS (by `write_closing`) and `</think>` take.

    Raises:
        ValueError: The budget makes no sense.
    """

    def __init__(self, budget: ThinkingBudget, *, room_tokens: int, closing_tokens: int) -> None:
        check_budget(budget)
        most_tokens = _list_most_tokens(budget, room_tokens)
        # Where a closing sentence would eat a good part of the thinking, only </think> is forced.
        self._closes = min(most_tokens.values()) >= 4 * closing_tokens
        self._cost_tokens = closing_tokens if self._closes else 1
        self._limits = _list_limits(budget, most_tokens, self._cost_tokens)
        self._thinking, self._answer = LoopDetector(THINKING_RULE), LoopDetector(ANSWER_RULE)
        self._n_thinking = self._n_tokens = 0
        self._tail = b""
        self._is_asked = False
        self.landing: Landing | None = None
        """The first one, for who reports it."""

    def answer_now(self) -> None:
        """Let thinking land at the next token; without effect on an answer under way."""
        self._is_asked = True

    def watch(self, token: int, piece: bytes, elapsed_s: float) -> Landing | None:
        """Tell of a token of thinking.

        Args:
            token: Its id.
            piece: Its bytes.
            elapsed_s: Seconds since generation began.

        Returns:
            None to go on, else what to force now. Thinking that the model opens again after a
            landing ends at once.
        """
        self._n_thinking += 1
        self._n_tokens += 1
        if self.landing:
            self._n_tokens += 1  # what </think> takes
            return Landing(self.landing.reason, "")
        self._tail = (self._tail + piece)[-8:]
        reason = self._find_reason(self._thinking.feed(token), elapsed_s)
        if reason is None:
            return None
        self._n_tokens += self._cost_tokens
        text = write_closing(reason, self._tail) if self._closes else ""
        self.landing = Landing(reason, text)
        return self.landing

    def watch_answer(self, token: int) -> bool:
        """Tell of any other token; tells whether the answer goes round in circles."""
        self._n_tokens += 1
        return self._answer.feed(token)

    def _find_reason(self, is_looping: bool, elapsed_s: float) -> LandingReason | None:
        if self._is_asked:
            return "asked"
        spent = {"tokens": self._n_thinking, "seconds": elapsed_s, "room": self._n_tokens}
        for limit in self._limits:
            value = spent[limit.reason]
            if value >= limit.hard or (value >= limit.soft and _ends_sentence(self._tail)):
                return limit.reason
        return "loop" if is_looping else None


def _list_most_tokens(budget: ThinkingBudget, room_tokens: int) -> dict[LandingReason, int]:
    """Most tokens before the answer, whatever sets the bound."""
    reserve_tokens = min(budget.answer_reserve_tokens, room_tokens // 2)
    most: dict[LandingReason, int] = {"room": room_tokens - reserve_tokens}
    return most if budget.tokens is None else {**most, "tokens": budget.tokens}


def _list_limits(
    budget: ThinkingBudget, most_tokens: Mapping[LandingReason, int], cost_tokens: int
) -> list[_Limit]:
    limits = [
        _place_limit(reason, tokens - cost_tokens, WINDOW_TOKENS)
        for reason, tokens in most_tokens.items()
    ]
    if budget.seconds is not None:
        limits.append(_place_limit("seconds", budget.seconds, WINDOW_S))
    return limits


def _place_limit(reason: LandingReason, hard: float, least: float) -> _Limit:
    """Open the window before a limit: its last twentieth or `least`, at most its second half."""
    return _Limit(reason, hard - min(max(hard * WINDOW_SHARE, least), hard / 2), hard)


def _ends_sentence(text: bytes) -> bool:
    """Tell whether text ends a line or a sentence; a dot after a digit may go on as 3.14."""
    if text.endswith(b"\n"):
        return True
    text = text.rstrip(b" ")
    return text.endswith(_ENDS) and not text[-2:-1].isdigit()
