"""A conversation: a tree of messages, one path of which is on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

Role = Literal["system", "summary", "user", "assistant"]
State = Literal["streaming", "complete", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What an answer took; zero where nobody counted."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    thinking_tokens: int = 0
    completion_tokens: int = 0
    """Thinking included."""
    prompt_s: float = 0.0
    generation_s: float = 0.0
    thinking_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, or the system's words."""

    id: str
    parent: str | None
    role: Role
    text: str = ""
    """As written; never made safe or laid out."""
    thinking: str = ""
    state: State = "complete"
    stats: Stats = Stats()
    model: str = ""
    note: str = ""
    """Why it failed or stopped, for the reader."""
    is_sealed: bool = False
    """Whether its thinking is kept from the reader until he asks for it."""

    @property
    def open_thinking(self) -> str:
        """The thinking that may be shown and searched."""
        return "" if self.is_sealed else self.thinking


class Journal(Protocol):
    """Where messages are kept. Every call returns at once; it may write later."""

    @property
    def session(self) -> str | None:
        """Name of the conversation there, once it has one."""

    def append(self, message: Message) -> str:
        """Keep a new message, whose own id is empty.

        Returns:
            Its id.
        """

    def write(self, id: str, thinking: str, text: str) -> None:
        """Keep more thinking and text of a message that streams."""

    def finish(self, message: Message) -> None:
        """Keep the whole of a message that streamed."""

    def choose(self, leaf: str) -> None:
        """Remember which path is on the screen, by its last message."""


class MemoryJournal:
    """Keeps nothing; numbers the messages."""

    session = None
    """It has no name."""

    def __init__(self) -> None:
        self._n_messages = 0

    def append(self, message: Message) -> str:  # noqa: ARG002  (it is not kept)
        """Number a message."""
        self._n_messages += 1
        return f"new-{self._n_messages}"

    def write(self, id: str, thinking: str, text: str) -> None:
        """Keep nothing."""

    def finish(self, message: Message) -> None:
        """Keep nothing."""

    def choose(self, leaf: str) -> None:
        """Remember nothing."""


class Conversation:
    """The tree, changed in memory first and then in the journal.

    Args:
        journal: Where changes are kept.
        messages: What is there already, parents before children.
        leaf: Last message of the path on the screen; None is the newest.
    """

    def __init__(
        self, journal: Journal, messages: Sequence[Message] = (), leaf: str | None = None
    ) -> None:
        self._journal = journal
        self._messages: dict[str, Message] = {}
        self._children: dict[str | None, list[str]] = {}
        for message in messages:
            self._insert(message)
        self._leaf = leaf or (messages[-1].id if messages else None)

    @property
    def leaf(self) -> str | None:
        """Id of the last message of the path."""
        return self._leaf

    @property
    def session(self) -> str | None:
        """Name of the conversation in its journal, once it has one."""
        return self._journal.session

    @property
    def path(self) -> tuple[Message, ...]:
        """The messages on the screen, the first one first."""
        path, id = [], self._leaf
        while id is not None:
            path.append(self._messages[id])
            id = self._messages[id].parent
        return tuple(reversed(path))

    @property
    def is_tutored(self) -> bool:
        """Whether the last answer of the path is sealed, as a tutor's is."""
        answers = [message for message in self.path if message.role == "assistant"]
        return bool(answers) and answers[-1].is_sealed

    def read(self, id: str) -> Message:
        """Read one message.

        Raises:
            KeyError: There is none of that id.
        """
        return self._messages[id]

    def add(self, message: Message) -> Message:
        """Add a message below its parent, at the end of the path on the screen.

        Args:
            message: Its id is empty.

        Returns:
            The message with its id.
        """
        kept = replace(message, id=self._journal.append(message))
        self._insert(kept)
        self._choose(kept.id)
        return kept

    def extend(self, id: str, thinking: str, text: str) -> Message:
        """Add thinking and text to a message that streams."""
        old = self._messages[id]
        self._journal.write(id, thinking, text)
        self._messages[id] = replace(old, thinking=old.thinking + thinking, text=old.text + text)
        return self._messages[id]

    def finish(self, id: str, state: State, stats: Stats, note: str = "") -> Message:
        """End a message that streamed."""
        self._messages[id] = replace(self._messages[id], state=state, stats=stats, note=note)
        self._journal.finish(self._messages[id])
        return self._messages[id]

    def reopen(self, id: str) -> Message:
        """Let a message that was stopped stream again."""
        self._messages[id] = replace(self._messages[id], state="streaming", note="")
        return self._messages[id]

    def unseal(self, id: str) -> Message:
        """Show the thinking of a message from now on; when it is opened again, it is sealed."""
        self._messages[id] = replace(self._messages[id], is_sealed=False)
        return self._messages[id]

    def count_branches(self, id: str) -> tuple[int, int]:
        """Place of a message among those with its parent, from 1, and their number."""
        siblings = self._children[self._messages[id].parent]
        return siblings.index(id) + 1, len(siblings)

    def walk(self, id: str, n_steps: int) -> bool:
        """Go from the branch of a message to one beside it, and down to its newest end.

        Args:
            id: A message on the path.
            n_steps: Branches to the right; negative is left.

        Returns:
            Whether there is such a branch.
        """
        siblings = self._children[self._messages[id].parent]
        place = siblings.index(id) + n_steps
        if not 0 <= place < len(siblings):
            return False
        leaf = siblings[place]
        while self._children.get(leaf):
            leaf = self._children[leaf][-1]
        self._choose(leaf)
        return True

    def find(self, id: str, fits: Callable[[Message], bool]) -> Message | None:
        """Find the nearest message at or above one that fits."""
        at: str | None = id
        while at is not None:
            if fits(self._messages[at]):
                return self._messages[at]
            at = self._messages[at].parent
        return None

    def _insert(self, message: Message) -> None:
        self._messages[message.id] = message
        self._children.setdefault(message.parent, []).append(message.id)

    def _choose(self, leaf: str) -> None:
        self._leaf = leaf
        self._journal.choose(leaf)
