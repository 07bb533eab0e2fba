"""What an engine is asked: a path of messages as a request, to answer, go on or summarize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from localcascade.chat.conversation import Message
from localcascade.chat.tutor import Tutor
from localcascade.prompt.budget import ThinkingBudget
from localcascade.prompt.events import ChatRequest, Sampling

CONTINUE = "Go on exactly where you stopped, without repeating anything."
SUMMARIZE = (
    "Summarize our conversation so far, so that you could go on with it from your summary alone. "
    "Keep every fact, number, name, decision, open question and piece of code that may matter "
    "later. Write only the summary."
)
SUMMARY_HEAD = "Summary of the conversation so far:\n\n"
N_KEPT = 2
"""Messages that compacting leaves as they are: the last question and its answer."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How answers are asked for."""

    thinking: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    budget_tokens: int | None = None
    """Of thinking; None is no limit."""
    system: str = ""
    """System message."""
    tutor: Tutor | None = None
    """Who teaches instead of answering; his thinking is sealed."""

    @property
    def words(self) -> str:
        """All that the system says."""
        return "\n\n".join(filter(None, [self.system, self.tutor.system if self.tutor else ""]))


def compose_request(path: Sequence[Message], manner: Manner, session: str | None) -> ChatRequest:
    """Ask for an answer to the last message of a path.

    Args:
        path: From the first message on, the last one a user's.
        manner: How.
        session: Name under which the engine keeps the state of the conversation.
    """
    budget = ThinkingBudget(tokens=manner.budget_tokens) if manner.budget_tokens else None
    return ChatRequest(
        messages=tuple(write_messages(path, manner.words)),
        thinking=manner.thinking,
        sampling=manner.sampling,
        thinking_budget=budget,
        session=session,
    )


def compose_continuation(
    path: Sequence[Message], manner: Manner, session: str | None
) -> ChatRequest:
    """Ask the model to go on with the last message of a path, its own."""
    wish = Message("", path[-1].id, "user", CONTINUE)
    return compose_request((*path, wish), manner, session)


def compose_summary(path: Sequence[Message], manner: Manner) -> ChatRequest:
    """Ask the model to summarize a path, without thinking."""
    wish = Message("", path[-1].id, "user", SUMMARIZE)
    quiet = Manner(False, Sampling(temperature=0.0), system=manner.system)
    return compose_request((*path, wish), quiet, None)


def write_messages(path: Sequence[Message], system: str = "") -> list[dict[str, Any]]:
    """Write messages in the OpenAI form; all that the system says comes first, as one.

    What a user said in several messages without an answer between them is one message too, for
    there are templates that want turns to alternate.
    """
    words = [system] if system else []
    words += [m.text for m in path if m.role == "system"]
    words += [SUMMARY_HEAD + m.text for m in path if m.role == "summary"]
    head = [{"role": "system", "content": "\n\n".join(words)}] if words else []
    turns: list[dict[str, Any]] = []
    for message in path:
        if message.role == "user" and turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n\n{message.text}"
        elif message.role in ("user", "assistant"):
            turns.append({"role": message.role, "content": message.text})
    return head + turns


def part_path(
    path: Sequence[Message], n_most: int | None = None
) -> tuple[Sequence[Message], Sequence[Message]]:
    """Part a path into what is summarized, and what stays: the last exchange at least.

    An answer of which there is no word is left out, so that its question can be asked again.

    Args:
        path: From the first message on.
        n_most: Messages that are summarized at most, as whole exchanges; None is all but the last.
    """
    if path and path[-1].role == "assistant" and not path[-1].text:
        path = path[:-1]
    n_kept = N_KEPT if path and path[-1].role == "assistant" else 1
    n_older = len(path) - n_kept if n_most is None else min(n_most, len(path) - n_kept)
    while n_older > 0 and path[n_older].role != "user":
        n_older -= 1
    n_older = max(n_older, 0)
    return path[:n_older], path[n_older:]
