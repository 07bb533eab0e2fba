"""What can be done in a conversation: ask, edit, regenerate, go on, compact; one answer at a time.

Each deed changes the tree and gives the request for the engine; the turn that answers it is then
taken in as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from localcascade.chat import composition
from localcascade.chat.composition import Manner
from localcascade.chat.conversation import Conversation, Message, Stats
from localcascade.chat.turn import Turn
from localcascade.prompt.events import ChatRequest


@dataclass(slots=True)
class _Summary:
    """A summary that is being written, and what it will replace."""

    kept: tuple[Message, ...]
    text: str = ""


class Exchange:
    """A conversation with a model.

    Args:
        conversation: Its tree.
        manner: How answers are asked for; may be changed at any time.
        model: Name of the model, kept with its answers.
    """

    def __init__(self, conversation: Conversation, manner: Manner, model: str = "") -> None:
        self.conversation, self.manner, self.model = conversation, manner, model
        self._streaming: Message | None = None
        self._summary: _Summary | None = None
        self._n_summarized = 0
        self._earlier = Stats()

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being written."""
        return self._streaming is not None or self._summary is not None

    @property
    def is_compacting(self) -> bool:
        """Whether what is being written is a summary."""
        return self._summary is not None

    def put(self, text: str) -> Message:
        """Add something that the user says, and ask for nothing."""
        return self.conversation.add(Message("", self.conversation.leaf, "user", text))

    def ask(self, text: str) -> ChatRequest:
        """Add a question at the end of the path, and ask for an answer."""
        self.put(text)
        return self._answer()

    def edit(self, id: str, text: str) -> ChatRequest | None:
        """Write a message differently, as a new branch.

        Returns:
            What to ask, if it was a question.
        """
        old = self.conversation.read(id)
        self.conversation.add(Message("", old.parent, old.role, text, model=old.model))
        return self._answer() if old.role == "user" else None

    def regenerate(self, id: str) -> ChatRequest | None:
        """Ask once more for the answer at or above a message, as a new branch.

        Returns:
            What to ask; None where there is no question.
        """
        question = self.conversation.find(id, lambda message: message.role == "user")
        return self._answer(question.id) if question is not None else None

    def go_on(self) -> ChatRequest | None:
        """Ask the model to go on with its last answer, where it was stopped.

        Returns:
            What to ask; None if the last message is no answer with words in it.
        """
        path = self.conversation.path
        if not path or path[-1].role != "assistant" or not path[-1].text:
            return None
        self._earlier = path[-1].stats
        self._streaming = self.conversation.reopen(path[-1].id)
        return composition.compose_continuation(path, self.manner, self.conversation.session)

    def compact(self, *, is_shorter: bool = False) -> ChatRequest | None:
        """Ask for a summary of all but the last exchange, or of its older part.

        Args:
            is_shorter: Summarize half as much as the last time, for which there was no room.

        Returns:
            What to ask; None where there is too little to summarize.
        """
        n_most = self._n_summarized // 2 if is_shorter else None
        older, kept = composition.part_path(self.conversation.path, n_most)
        if not older:
            return None
        self._n_summarized, self._summary = len(older), _Summary(tuple(kept))
        return composition.compose_summary(older, self.manner)

    def answer(self) -> ChatRequest | None:
        """Ask for the answer of a question at the end of the path.

        Returns:
            What to ask; None where the last message is no question.
        """
        path = self.conversation.path
        return self._answer() if path and path[-1].role == "user" else None

    def take(self, turn: Turn) -> Message | None:
        """Take in what came of an answer since the last time.

        Returns:
            The message as it is now; None while a summary is written.
        """
        thinking, text = turn.drain()
        if self._summary is not None:
            self._summary.text += text
            return None
        assert self._streaming is not None
        self._streaming = self.conversation.extend(self._streaming.id, thinking, text)
        return self._streaming

    def end(self, turn: Turn) -> Message | None:
        """Take in the end of an answer; a summary becomes the first message of a new branch.

        Returns:
            The message, or None where it was a summary.
        """
        message = self.take(turn)
        summary, self._summary, self._streaming = self._summary, None, None
        if message is not None:
            stats = _add_up(self._earlier, turn.stats)
            self._earlier = Stats()
            return self.conversation.finish(message.id, turn.state, stats, turn.note)
        if summary is not None and turn.state == "complete" and summary.text.strip():
            self._begin_branch(summary)
        return None

    def _answer(self, parent: str | None = None) -> ChatRequest:
        answer = Message(
            "", parent or self.conversation.leaf, "assistant", state="streaming",
            model=self.model, is_sealed=self.manner.tutor is not None,
        )  # fmt: skip
        self._streaming = self.conversation.add(answer)
        path = self.conversation.path[:-1]
        return composition.compose_request(path, self.manner, self.conversation.session)

    def _begin_branch(self, summary: _Summary) -> None:
        text = summary.text.strip()
        last = self.conversation.add(Message("", None, "summary", text, model=self.model))
        for message in summary.kept:
            last = self.conversation.add(replace(message, id="", parent=last.id))


def _add_up(earlier: Stats, later: Stats) -> Stats:
    """The figures of an answer that was written in two goes; prompts are the later one's."""
    return replace(
        later,
        thinking_tokens=earlier.thinking_tokens + later.thinking_tokens,
        completion_tokens=earlier.completion_tokens + later.completion_tokens,
        generation_s=earlier.generation_s + later.generation_s,
        thinking_s=earlier.thinking_s + later.thinking_s,
    )
