"""A turn of `run` in the history: the session it belongs to, and its words as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from localcascade.cli import console
from localcascade.cli.stream import ChatEngine
from localcascade.errors import CascadeError, HistoryError, ModelFileError
from quantize.closing import Closing

if TYPE_CHECKING:
    from pathlib import Path

    from localcascade.history import History, Message, ModelIdentity, State, Stream
    from localcascade.prompt.events import ChatRequest, Event, Sampling


def identify_model(name: str, path: Path) -> ModelIdentity:
    """Say which model answers: its file, and the file's hash where a manifest knows it."""
    from localcascade.history import ModelIdentity
    from localcascade.store.manifest import MANIFEST_NAME, read_manifest

    known: dict[str, str] = {}
    if (path.parent / MANIFEST_NAME).is_file():
        with suppress(ModelFileError):  # `verify` is there to complain
            known = {file.path: file.sha256 for file in read_manifest(path.parent).files}
    shown = path.stem if name.endswith(".gguf") else name
    return ModelIdentity(shown, str(path.absolute()), path.stat().st_size, known.get(path.name, ""))


def list_request_messages(path: Sequence[Message]) -> list[dict[str, Any]]:
    """Write a path of the history in the OpenAI form; all that the system says comes first."""
    heads = [message.text for message in path if message.role in ("system", "summary")]
    written: list[dict[str, Any]] = []
    for message in path:
        if message.role not in ("system", "summary"):
            calls = {"tool_calls": list(message.tool_calls)} if message.tool_calls else {}
            answered = {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
            written.append({"role": message.role, "content": message.text, **calls, **answered})
    return [{"role": "system", "content": "\n\n".join(heads)}] * bool(heads) + written


def drop_unanswered(path: Sequence[Message]) -> list[Message]:
    """Leave out a last question that was never answered; the next one stands beside it."""
    kept = list(path)
    while kept and not kept[-1].text and kept[-1].role == "assistant":
        kept.pop()
    while kept and kept[-1].role == "user":
        kept.pop()
    return kept


class Logbook(Closing):
    """The session of one `run`; a context manager that ends with all on the disk, or says so.

    Args:
        history: Where turns are kept; None keeps nothing.
        session: Id of a session to go on with; empty begins one.
        earlier: Its messages, as far as the next question follows them.
    """

    def __init__(
        self, history: History | None, session: str = "", earlier: Sequence[Message] = ()
    ) -> None:
        self._history, self._earlier = history, earlier
        self.session = session
        self.messages = list_request_messages(earlier)

    @classmethod
    def open(cls, prefix: str | None, *, keeps: bool) -> Self:
        """Open the history.

        Args:
            prefix: Beginning of the id of a session to go on with; empty is the last one; None
                begins one.
            keeps: Whether this turn is kept.

        Raises:
            HistoryError: The session that is wanted cannot be found or read. A history that is
                not needed for the answer is a note on stderr.
        """
        if prefix is None and not keeps:
            return cls(None)
        from localcascade.history import History

        try:
            history = History.open()
        except HistoryError as error:
            if prefix is not None:
                raise
            _note(error)
            return cls(None)
        if prefix is None:
            return cls(history)
        found = history.find_session(prefix or None)
        path = drop_unanswered(history.path_to(found.leaf) if found.leaf else [])
        if keeps:
            return cls(history, found.id, path)
        history.close()
        return cls(None, "", path)

    def listen(
        self, engine: ChatEngine, asked: Sequence[Mapping[str, Any]], model: ModelIdentity
    ) -> ChatEngine:
        """Put the history between an engine and those who use it.

        Args:
            engine: What answers.
            asked: The messages of this turn.
            model: What is asked.

        Returns:
            An engine that says the same; without a history, the one that was given.
        """
        history = self._history
        if history is not None and history.problem is None:
            return _Listener(engine, lambda sampling: self._begin(history, asked, model, sampling))
        return engine

    def close(self) -> None:
        """End the history; say what it could not keep."""
        if self._history is not None:
            self._history.close()
            if self._history.problem is not None:
                _note(self._history.problem)

    def _begin(
        self,
        history: History,
        asked: Sequence[Mapping[str, Any]],
        model: ModelIdentity,
        sampling: Sampling,
    ) -> Stream:
        from localcascade.chat.journal import write_title

        if not self.session:
            self.session = history.create_session(write_title(asked[-1]["content"]), model).id
        parent = self._earlier[-1].id if self._earlier else None
        for each in asked:
            parent = history.append(self.session, parent, each["role"], each["content"]).id
        given = {key: value for key, value in asdict(sampling).items() if value not in _NOT_GIVEN}
        return history.begin(self.session, parent, model=model, sampling=given)


_NOT_GIVEN: tuple[object, ...] = (None, (), {})


@dataclass(frozen=True, slots=True)
class _Listener:
    """An engine whose words are written down."""

    engine: ChatEngine
    begin: Callable[[Sampling], Stream]

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Generate one turn; however it is left, what came of it is kept."""
        stream, ending = self.begin(request.sampling), _Ending()
        events = self.engine.chat(request)
        try:
            for event in events:
                ending.take(event, stream)
                yield event
        except CascadeError as error:
            ending.state, ending.note = "failed", error.message
            raise
        finally:
            if close := getattr(events, "close", None):
                close()
            stream.finish(
                ending.state,
                note=ending.note,
                tool_calls=ending.tool_calls,
                timings=ending.timings,
            )


@dataclass(slots=True)
class _Ending:
    """How a turn ended; stopped, unless it says otherwise."""

    state: State = "stopped"
    note: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def take(self, event: Event, stream: Stream) -> None:
        from localcascade.prompt.events import Delta, Done, Failed, ToolCall

        if isinstance(event, Delta) and event.channel != "tool_call":
            thinks = event.channel == "thinking"
            stream.write(event.text if thinks else "", "" if thinks else event.text)
        elif isinstance(event, ToolCall):
            function = {"name": event.name, "arguments": event.arguments}
            self.tool_calls.append({"id": event.id, "type": "function", "function": function})
        elif isinstance(event, Failed):
            self.state, self.note = "failed", str(event.error)
        elif isinstance(event, Done):
            self.state = "stopped" if event.reason == "cancelled" else "complete"
            self.note = "cut off at the limit of tokens" if event.reason == "length" else ""
            self.timings = asdict(event.usage) | asdict(event.timings)


def _note(error: HistoryError) -> None:
    console.print_note(f"this is not kept in the history: {error.message}")
