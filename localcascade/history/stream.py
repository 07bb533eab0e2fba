"""A message that is being written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from localcascade.history import statements
from localcascade.history.records import Message, State

if TYPE_CHECKING:
    from localcascade.history.writer import Writer


class Stream:
    """Takes a message as it comes. No call waits for the disk: `History.flush` does.

    Args:
        message: As it is so far.
        writer: What brings it to the disk, at the latest after `writer.PERIOD_S`.
    """

    def __init__(self, message: Message, writer: Writer) -> None:
        self._message, self._writer = message, writer
        self._thinking, self._text = [message.thinking], [message.text]

    @property
    def id(self) -> str:
        """Id of the message."""
        return self._message.id

    def write(self, thinking: str = "", text: str = "") -> None:
        """Add what came since the last call; costs microseconds."""
        self._thinking.append(thinking)
        self._text.append(text)
        self._writer.extend(self._message.id, thinking, text)

    def finish(
        self,
        state: State = "complete",
        *,
        note: str = "",
        tool_calls: Sequence[Mapping[str, Any]] = (),
        timings: Mapping[str, float] | None = None,
    ) -> Message:
        """End the message; it is kept whole, and found by searches from now on.

        Args:
            state: How it ended.
            note: Why it stopped or failed.
            tool_calls: In the OpenAI form.
            timings: Numbers by name.

        Returns:
            The whole message.
        """
        self._message = replace(
            self._message,
            thinking="".join(self._thinking),
            text="".join(self._text),
            state=state,
            note=note,
            tool_calls=tuple(tool_calls),
            timings=dict(timings or {}),
        )
        self._writer.submit(*statements.finish(self._message))
        return self._message
