"""One answer as it comes: events added up into text, counts and speed."""

from __future__ import annotations

from dataclasses import dataclass, field

from localcascade.chat.conversation import State, Stats
from localcascade.errors import ContextFull
from localcascade.prompt.events import (
    ContextEnd,
    Delta,
    Done,
    Event,
    Failed,
    PromptProgress,
    ToolCall,
)


@dataclass(slots=True)
class Turn:
    """The figures of an answer that streams, and its text since the last look.

    `take` is told of each event and the time; `drain` hands out the text that came since.
    """

    begun_s: float
    """Clock at its start."""
    prompt: PromptProgress | None = None
    is_over: bool = False
    state: State = "streaming"
    note: str = ""
    n_thinking: int = 0
    """Tokens of thinking; estimated from pieces of text until it is over."""
    n_tokens: int = 0
    first_s: float | None = None
    """Clock at its first token."""
    last_s: float = 0.0
    thinking_s: float = 0.0
    """Seconds from the first token to the end of thinking."""
    done: Done | None = None
    error: Exception | None = None
    is_full: bool = False
    """Whether the context had no room for the prompt, or for all of the answer."""
    _texts: dict[str, list[str]] = field(default_factory=lambda: {"thinking": [], "answer": []})

    def take(self, event: Event, now_s: float) -> None:
        """Add an event.

        Args:
            event: From the engine.
            now_s: The clock.
        """
        match event:
            case PromptProgress():
                self.prompt = event
            case Delta():
                self._add(event, now_s)
            case ToolCall():
                self._texts["answer"].append(f"\n\n`{event.name}({event.arguments})`\n\n")
            case ContextEnd():
                self.is_full, self.note = True, "The context is full."
            case Done():
                self._finish(event)
            case Failed():
                self.is_over, self.state, self.error = True, "failed", event.error
                self.is_full = isinstance(event.error, ContextFull)
                self.note = str(event.error)

    def stop(self) -> None:
        """The user stopped it."""
        self.is_over, self.state, self.note = True, "stopped", "Stopped."

    def drain(self) -> tuple[str, str]:
        """Thinking and answer since the last time."""
        thinking, answer = ("".join(self._texts[key]) for key in ("thinking", "answer"))
        self._texts = {"thinking": [], "answer": []}
        return thinking, answer

    @property
    def tokens_per_s(self) -> float:
        """Of generation; 0 before there are two."""
        if self.done is not None and self.done.timings.tokens_per_s:
            return self.done.timings.tokens_per_s
        elapsed_s = self.last_s - (self.first_s or self.last_s)
        return (self.n_tokens - 1) / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def stats(self) -> Stats:
        """What it took so far, or in all."""
        if self.done is None:
            n_prompt, n_reused = (self.prompt.total, self.prompt.reused) if self.prompt else (0, 0)
            elapsed_s = self.last_s - (self.first_s or self.last_s)
            return Stats(
                n_prompt, n_reused, self.n_thinking, self.n_tokens, 0.0, elapsed_s, self.thinking_s
            )
        usage, timings = self.done.usage, self.done.timings
        return Stats(
            usage.prompt_tokens, usage.reused_tokens, usage.thinking_tokens,
            usage.completion_tokens, timings.prompt_s, timings.generation_s, self.thinking_s,
        )  # fmt: skip

    def _add(self, delta: Delta, now_s: float) -> None:
        self.first_s = now_s if self.first_s is None else self.first_s
        self.last_s = now_s
        self.n_tokens += 1
        if delta.channel == "thinking":
            self.n_thinking += 1
            self.thinking_s = now_s - self.first_s
        if delta.channel in self._texts:
            self._texts[delta.channel].append(delta.text)

    def _finish(self, done: Done) -> None:
        self.is_over, self.done = True, done
        self.state = "complete" if done.reason in ("stop", "tool_calls") else "stopped"
        if done.reason == "length" and not self.note:
            self.note = "Cut off: the most tokens that were allowed, or the end of the context."
