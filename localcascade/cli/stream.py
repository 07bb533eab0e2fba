"""One turn on the terminal: the answer on stdout, thinking and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol

from localcascade.cli import console
from localcascade.cli.render import MarkdownWriter

if TYPE_CHECKING:
    from pathlib import Path

    from localcascade.engine.client import Engine
    from localcascade.prompt.events import ChatRequest, Delta, Done, Event, ToolCall


class ChatEngine(Protocol):
    """What play_turn needs of an engine."""

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Generate one turn."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a finished turn left behind."""

    answer: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    done: Done


class Screen:
    """Writes a turn as it comes.

    Thinking is dimmed where escape codes are allowed. On a terminal, the answer is set as Markdown
    and control characters of the model's text are escaped; a pipe gets its bytes as they are.

    Args:
        show_answer: Whether the answer goes to stdout as it comes.
        show_thinking: Whether thinking goes to stderr as it comes.
    """

    def __init__(self, *, show_answer: bool = True, show_thinking: bool = True) -> None:
        self._streams = {"answer": sys.stdout, "thinking": sys.stderr}
        for stream in self._streams.values():
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a model writes what a terminal may not know
        self._shown = {"answer": show_answer, "thinking": show_thinking}
        self._dim = console.use_colour(sys.stderr)
        self._channel = ""
        self._newlines = {"answer": "", "thinking": ""}
        self._answered = False
        self._status_width = 0
        self._writer: MarkdownWriter | None = None

    def show_status(self, text: str) -> None:
        """Replace the waiting line, if stderr is a terminal; an empty text clears it."""
        if sys.stderr.isatty() and (text or self._status_width):
            print(f"\r{text:<{self._status_width}}", end="" if text else "\r", file=sys.stderr)
            sys.stderr.flush()
            self._status_width = len(text)

    def show_delta(self, delta: Delta) -> None:
        """Write a piece of thinking or answer; newlines wait until more text follows them."""
        if not self._shown.get(delta.channel):
            return
        self.show_status("")
        if delta.channel != self._channel:
            self._begin(delta.channel)
        text = self._newlines[delta.channel] + delta.text
        ready = text.rstrip("\n")
        self._newlines[delta.channel] = text[len(ready) :]
        self._write(ready)

    def end(self) -> None:
        """Finish the lines that were begun, so that what is printed next starts its own."""
        self.show_status("")
        if self._channel == "thinking":
            print(file=sys.stderr, flush=True)
        if self._writer is not None:
            self._end_writer()
        elif self._answered:
            print(flush=True)
        self.abandon()

    def abandon(self) -> None:
        """Forget the lines that were begun, as when nobody reads stdout any more."""
        self._channel, self._answered, self._writer = "", False, None

    def note(self, text: str) -> None:
        """Write a remark of ours to stderr, dimmed like thinking."""
        print(self._dimmed(f"note: {text}"), file=sys.stderr)

    def _begin(self, channel: str) -> None:
        """Close the other channel's line, with a blank one between them on a shared terminal."""
        shared = sys.stdout.isatty() and sys.stderr.isatty()
        self._end_writer()
        if self._channel and (shared or self._channel == "thinking"):
            # Written to stderr in either direction: stdout holds nothing but the answer.
            print("\n" if shared else "", file=sys.stderr, flush=True)
            self._newlines["thinking"] = ""
        self._channel = channel
        self._answered |= channel == "answer"
        if channel == "answer" and sys.stdout.isatty():
            self._writer = MarkdownWriter(sys.stdout)

    def _end_writer(self) -> None:
        if self._writer is not None:
            self._writer.finish()
        self._writer = None

    def _write(self, text: str) -> None:
        if self._writer is not None:
            self._writer.feed(text)
            return
        stream = self._streams[self._channel]
        if text and stream.isatty():
            text = console.escape_controls(text)
        print(self._dimmed(text) if stream is sys.stderr else text, end="", file=stream, flush=True)

    def _dimmed(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dim and text else text


def open_engine(path: Path, screen: Screen, **options: Any) -> Engine:
    """Load a model, with the share done on the waiting line.

    Args:
        path: GGUF file.
        screen: Where the line is.
        **options: Of Engine.

    Returns:
        The engine, to be closed by the caller.

    Raises:
        CascadeError: It cannot be loaded.
    """
    from localcascade.engine.client import Engine
    from localcascade.settings import CHAT_OUTPUTS

    engine = Engine(path, **{"n_outputs": CHAT_OUTPUTS, **options})
    try:
        engine.load(lambda _stage, done, _total: screen.show_status(f"Loading: {done} %"))
    except BaseException:
        engine.close()
        raise
    finally:
        screen.show_status("")
    return engine


def play_turn(engine: ChatEngine, request: ChatRequest, screen: Screen) -> Outcome:
    """Run one turn and show it.

    Args:
        engine: What generates it.
        request: What to generate.
        screen: Where it appears; its line is finished whatever happens.

    Returns:
        The whole turn.

    Raises:
        CascadeError: The turn failed.
        KeyboardInterrupt: The user stopped it; generation is stopped too.
    """
    from localcascade.errors import EngineDied
    from localcascade.prompt.events import Delta, Done, Failed, PromptProgress, ToolCall

    texts: dict[str, list[str]] = {"answer": [], "thinking": [], "tool_call": []}
    calls: list[ToolCall] = []
    with _stopping(engine.chat(request), screen) as events:
        for event in events:
            if isinstance(event, PromptProgress):
                screen.show_status(f"Reading the prompt: {event.done}/{event.total} tokens")
            elif isinstance(event, Delta):
                texts[event.channel].append(event.text)
                screen.show_delta(event)
            elif isinstance(event, ToolCall):
                calls.append(event)
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Done):
                answer, thinking = "".join(texts["answer"]), "".join(texts["thinking"])
                return Outcome(answer, thinking, tuple(calls), event)
    raise EngineDied("the engine ended in the middle of a turn")


@contextmanager
def _stopping(events: Iterator[Event], screen: Screen) -> Iterator[Iterator[Event]]:
    """Stop the generation and finish the line, however the block is left."""
    try:
        yield events
    except BrokenPipeError:
        screen.abandon()
        raise
    finally:
        if close := getattr(events, "close", None):
            close()
        screen.end()
