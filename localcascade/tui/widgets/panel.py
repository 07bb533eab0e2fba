"""The side panel: how answers are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Switch

from localcascade.chat.composition import Manner

Read = Callable[[str], Any]
Kind = Literal["number", "integer", "text"]

# Field of Sampling or Manner: label, kind of input, how it is read.
FIELDS: Final[Mapping[str, tuple[str, Kind, Read]]] = MappingProxyType(
    {
        "budget_tokens": ("Thinking budget", "integer", int),
        "temperature": ("Temperature", "number", float),
        "top_p": ("Top-p", "number", float),
        "top_k": ("Top-k", "integer", int),
        "min_p": ("Min-p", "number", float),
        "repeat_penalty": ("Repeat penalty", "number", float),
        "max_tokens": ("Most tokens", "integer", int),
        "seed": ("Seed", "integer", int),
        "system": ("System message", "text", str),
    }
)
_OF_MANNER = ("budget_tokens", "system")


class Panel(VerticalScroll):
    """Shows a manner and lets the user change it."""

    class Changed(Message):
        """The user changed something."""

        def __init__(self, manner: Manner) -> None:
            super().__init__()
            self.manner = manner

    def __init__(self, manner: Manner, *, id: str | None = None) -> None:
        super().__init__(id=id, can_focus=False)
        self._manner = manner

    def compose(self) -> ComposeResult:
        """One row for each field."""
        yield Label("How to answer", classes="panel-title")
        with Horizontal(classes="panel-row"):
            yield Label("Thinking")
            yield Switch(self._manner.thinking, animate=False, id="field-thinking")
        for name, (label, kind, _) in FIELDS.items():
            with Horizontal(classes="panel-row"):
                yield Label(label)
                yield Input(
                    self._write(name), placeholder="model's", type=kind, compact=True,
                    valid_empty=True, id=f"field-{name}",
                )  # fmt: skip

    def show(self, manner: Manner) -> None:
        """Show a manner that was changed elsewhere."""
        self._manner = manner
        with self.prevent(Switch.Changed, Input.Changed):
            self.query_one("#field-thinking", Switch).value = manner.thinking
            for name in FIELDS:
                self.query_one(f"#field-{name}", Input).value = self._write(name)

    @on(Switch.Changed)
    def _turn_thinking(self, event: Switch.Changed) -> None:
        event.stop()
        self._manner = replace(self._manner, thinking=event.value)
        self.post_message(self.Changed(self._manner))

    @on(Input.Changed)
    def _read_field(self, event: Input.Changed) -> None:
        event.stop()
        name = (event.input.id or "").removeprefix("field-")
        if event.validation_result is not None and not event.validation_result.is_valid:
            return
        value = self._read(name, event.value)
        if name in _OF_MANNER:
            self._manner = replace(self._manner, **{name: value})
        else:
            sampling = replace(self._manner.sampling, **{name: value})
            self._manner = replace(self._manner, sampling=sampling)
        self.post_message(self.Changed(self._manner))

    def _write(self, name: str) -> str:
        holder: Any = self._manner if name in _OF_MANNER else self._manner.sampling
        value = getattr(holder, name)
        return "" if value is None else str(value)

    @staticmethod
    def _read(name: str, text: str) -> Any:
        if name == "system":
            return text
        with suppress(ValueError):
            return FIELDS[name][2](text)
        return None
