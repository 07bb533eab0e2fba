"""Between the algebra and the screens: checks answers in a thread, and tells by messages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from textual.message import Message as TextualMessage
from textual.message_pump import MessagePump
from textual.worker import get_current_worker

from localcascade.chat.checking import Findings, Task, check_task, find_tasks
from localcascade.chat.conversation import Message
from quantize.closing import Closing

if TYPE_CHECKING:
    from localcascade.maths.algebra import Algebra


class AnswerChecked(TextualMessage):
    """The steps of an answer have been checked."""

    def __init__(self, id: str, findings: Findings) -> None:
        super().__init__()
        self.id = id
        """Of the message."""
        self.findings = findings


class Checker(Closing):
    """Checks the answers of a conversation, each of them once.

    Args:
        listener: What the messages are posted to.
    """

    def __init__(self, listener: MessagePump) -> None:
        self._listener = listener
        self._algebra: Algebra | None = None
        self._done: set[Task] = set()
        self._is_closed = False

    def check(self, path: Sequence[Message], *, only_attempts: bool = False) -> None:
        """Check what is new on a path; to be run in a worker's thread.

        Args:
            path: The conversation.
            only_attempts: Leave the answers of the model alone.
        """
        worker = get_current_worker()
        for task in find_tasks(path):
            if worker.is_cancelled or self._is_closed:
                return
            if task in self._done or (only_attempts and not task.is_attempt):
                continue
            findings = check_task(task, self._get_algebra())
            self._done.add(task)
            self._listener.post_message(AnswerChecked(task.id, findings))

    def close(self) -> None:
        """End the process that compares."""
        self._is_closed = True
        if self._algebra is not None:
            self._algebra.close()

    def _get_algebra(self) -> Algebra:
        from localcascade.maths.algebra import Algebra

        self._algebra = self._algebra or Algebra()
        return self._algebra


def has_algebra() -> bool:
    """Whether all steps can be checked, and not only plain arithmetic."""
    # Asked before the first paint, for which the maths need not be imported.
    return find_spec("sympy") is not None
