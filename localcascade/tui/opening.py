"""What the chat is opened with, in plain data; Textual is not needed to say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from localcascade.chat.composition import Manner
from localcascade.chat.conversation import Conversation
from localcascade.settings import THEMES

if TYPE_CHECKING:
    from localcascade.tui.speaker import ChatEngine


@dataclass(frozen=True, slots=True)
class Opening:
    """A conversation to be opened."""

    conversation: Conversation
    model: str
    """Name of the model, for the reader and the history."""
    engine: ChatEngine
    """Made, but perhaps not loaded."""
    title: str = ""
    notice: str = ""
    """What the user should know of it, above the line to write in."""


class Source(Protocol):
    """Where conversations come from."""

    def begin(self, model: str | None) -> Opening:
        """Begin a new one, with a model of a name or the present one."""

    def resume(self, session: str | None, model: str | None) -> Opening:
        """Go on with one, with another model or its own."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the user has set for good."""

    theme: str = THEMES[0]
    keys: Mapping[str, str] = field(default_factory=dict)
    """Id of an action -> its keys."""
    manner: Manner = field(default_factory=Manner)
    """How answers are asked for at first."""
    checks: bool | None = None
    """Whether steps are marked as right or wrong; None where SymPy is installed."""
