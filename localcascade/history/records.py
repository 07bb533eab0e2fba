"""What the history holds, as plain values: sessions, their messages, what a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "summary", "user", "assistant", "tool"]
State = Literal["streaming", "complete", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model spoke: its name, and the file that the name stood for."""

    name: str = ""
    file: str = ""
    """Path of the GGUF file, or the address of a server."""
    size_bytes: int = 0
    sha256: str = ""
    """Of the file, where it is known without reading the file."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that went into a message; its text is part of the message's text."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, never changed once it is finished; an edit is a new message beside it."""

    id: str
    """16 hexadecimal digits."""
    session: str
    parent: str | None
    """Id of the message it answers; None for the first of a branch."""
    role: Role
    text: str = ""
    """As written; never made safe or laid out."""
    thinking: str = ""
    state: State = "complete"
    note: str = ""
    """Why it stopped or failed, for the reader."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """In the OpenAI form."""
    tool_call_id: str = ""
    """Which call a message of the role `tool` answers."""
    attachments: tuple[Attachment, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds and token counts, by the names that the writer gave them."""
    model: ModelIdentity = ModelIdentity()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    created_s: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation: a tree of messages, one path of which is on the screen."""

    id: str
    """16 hexadecimal digits; a unique prefix is enough wherever one is asked for."""
    title: str
    model: ModelIdentity
    leaf: str | None
    """Last message of the path on the screen; None while there is none."""
    created_s: float
    updated_s: float
    n_messages: int = 0
    """On all branches."""


@dataclass(frozen=True, slots=True)
class Match:
    """One message that a search found."""

    session: str
    title: str
    message: str
    role: Role
    created_s: float
    in_thinking: bool
    snippet: tuple[str, ...]
    """The text around what was found; every second piece is what was looked for."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole session, as it is exported."""

    session: Session
    messages: tuple[Message, ...]
    """Of all branches, parents before children."""

    @property
    def path(self) -> tuple[Message, ...]:
        """The messages on the screen, the first one first; what is lost above one is left out."""
        by_id = {message.id: message for message in self.messages}
        last = self.messages[-1].id if self.messages else None
        at = self.session.leaf if self.session.leaf in by_id else last
        path: list[Message] = []
        while at is not None and (message := by_id.pop(at, None)):
            path.append(message)
            at = message.parent
        return tuple(reversed(path))
