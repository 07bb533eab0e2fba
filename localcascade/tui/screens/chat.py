"""The chat: the conversation, the line to write in, the gauge; panels that open beside them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static
from textual.worker import Worker

from localcascade.chat.attachments import Attachment, measure_attachment, write_message
from localcascade.chat.card import Live
from localcascade.chat.controls import make_safe
from localcascade.chat.conversation import Message
from localcascade.chat.exchange import Exchange
from localcascade.chat.journal import write_title
from localcascade.chat.markdown import warm_up
from localcascade.chat.turn import Turn
from localcascade.errors import CascadeError
from localcascade.prompt.events import ChatRequest
from localcascade.tui import speaker
from localcascade.tui.editor import edit_text
from localcascade.tui.screens.reading import ReadingScreen
from localcascade.tui.speaker import Speaker
from localcascade.tui.widgets.attach import AttachPicker, describe_attachment
from localcascade.tui.widgets.composer import Composer
from localcascade.tui.widgets.finder import Finder
from localcascade.tui.widgets.gauge import WARN_SHARE, Gauge, count_context, read_turn
from localcascade.tui.widgets.panel import Panel

DEFAULT_CTX = 8192
"""Tokens of context that are counted on before the model is loaded."""
BUDGETS = (None, 512, 2048, 8192, 32768)
"""Tokens of thinking that the key goes through."""


class ChatScreen(ReadingScreen):
    """One conversation with one model.

    Args:
        exchange: The conversation.
        voice: The model behind it.
        title: Of the conversation; empty while there is none.
        notice: What the user should know at first.
        checks: Whether steps are marked as right or wrong; None where SymPy is installed.
        draft: What the user has begun to write.
    """

    CSS_PATH = "chat.tcss"
    AUTO_FOCUS = "Composer"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", priority=True),
        Binding("f5", "answer_now", "Answer now", id="chat.answer_now"),
        Binding("f6", "turn_budget", "Thinking budget", id="chat.budget", priority=True),
        Binding("f3", "turn_mode", "Thinking or instruct", id="chat.mode"),
        Binding("f4", "toggle_panel", "Sampling", id="chat.panel"),
        Binding("f8", "compact", "Compact", id="chat.compact"),
        Binding("f9", "go_on", "Go on", id="chat.go_on"),
        Binding("ctrl+r", "regenerate", "Regenerate", id="chat.regenerate", priority=True),
        Binding("ctrl+e", "edit", "Edit", id="chat.edit", priority=True),
        Binding("ctrl+o", "open_editor", "Open in $EDITOR", id="chat.editor", priority=True),
    ]

    def __init__(
        self,
        exchange: Exchange,
        voice: speaker.ChatEngine,
        title: str,
        notice: str = "",
        checks: bool | None = None,
        draft: str = "",
    ) -> None:
        super().__init__(exchange, checks)
        self._notice = notice
        self._speaker = Speaker(voice, self)
        self._title = title
        self._editing: Message | None = None
        self._draft = ""
        """What was being written before a turn was edited."""
        self._composer = Composer(draft, id="composer")
        self._turn: Worker[None] | None = None
        self._ended: Turn | None = None
        self._attachments: list[Attachment] = []
        self._gauge = Gauge(id="gauge")

    @property
    def draft(self) -> str:
        """What the user has begun to write, beside any turn that is being edited."""
        return self._draft if self._editing is not None else self._composer.text

    def compose(self) -> ComposeResult:
        """Everything but the side panel; what opens between is hidden."""
        with Horizontal(id="middle"), Vertical(id="left"):
            yield Static("", id="top", markup=False)
            yield self._transcript
            yield Finder(id="finder")
            yield AttachPicker(id="attach")
            yield Static("", id="notice", markup=False)
            yield self._composer
        yield self._gauge

    def on_mount(self) -> None:
        """Show the conversation; the model loads behind it."""
        self._composer.move_cursor(self._composer.document.end)
        self._read(state="loading", mode=self._name_mode())
        self._show_path()
        self._show_notice(self._notice)
        self.call_after_refresh(self._begin_loading)

    def _show_path(self) -> None:
        path = self._exchange.conversation.path
        self._title = self._title or (write_title(path[0].text) if path else "")
        shown = [part for part in (self._exchange.model, self._title) if part]
        self.query_one("#top", Static).update(make_safe(" — ".join(shown)))
        super()._show_path()

    def on_unmount(self) -> None:
        """Keep what there is of an answer that is left."""
        turn = self._speaker.turn
        if turn is not None and self._exchange.is_busy:
            turn.stop()
            self._exchange.end(turn)

    def _begin_loading(self) -> None:
        self.run_worker(self._speaker.load(), group="load")
        self.run_worker(warm_up, group="warm", thread=True)
        self.run_worker(self._speaker.watch_memory(), group="memory")

    # What the model tells

    @on(speaker.ModelLoading)
    def _show_loading(self, event: speaker.ModelLoading) -> None:
        if not self._exchange.is_busy:
            self._read(state=f"loading {event.percent} %")

    @on(speaker.ModelLoaded)
    def _show_loaded(self, event: speaker.ModelLoaded) -> None:
        self._read(n_ctx=event.info.n_ctx)
        if self._attachments:
            self._recount()
        self._check_answers()
        if not self._exchange.is_busy:
            self._read(
                state="ready", context_tokens=count_context(self._exchange.conversation.path)
            )

    @on(speaker.ModelFailed)
    def _show_failure(self, event: speaker.ModelFailed) -> None:
        self._read(state="no model")
        self._show_notice(f"{event.error} {event.error.hint}".strip())

    @on(speaker.MemoryMeasured)
    def _show_memory(self, event: speaker.MemoryMeasured) -> None:
        self._read(memory_bytes=event.n_bytes)

    @on(speaker.TurnMoved)
    def _show_turn(self, event: speaker.TurnMoved) -> None:
        turn = event.turn
        if not self._exchange.is_busy or turn is self._ended:  # told of twice, and another begun
            return
        take = self._exchange.end if turn.is_over else self._exchange.take
        message = take(turn)
        if message is not None:
            self._transcript.take(message, _describe(turn) if not turn.is_over else None)
        is_compacting = self._exchange.is_compacting
        self._gauge.readings = read_turn(self._gauge.readings, turn, is_compacting=is_compacting)
        if turn.is_over:
            self._ended = turn
            self._end_turn(turn, was_summary=message is None)
            self.call_after_refresh(gc.collect)

    def _end_turn(self, turn: Turn, *, was_summary: bool) -> None:
        self._check_answers()
        if was_summary:
            self._end_compacting(turn)
        elif turn.is_full:
            self._show_notice("The context is full. F8 compacts the conversation.")
        elif self._gauge.readings.context_share >= WARN_SHARE:
            share = round(100 * self._gauge.readings.context_share)
            self._show_notice(f"The context is {share} % full. F8 compacts the conversation.")
        hint = getattr(turn.error, "hint", "")
        if hint:
            self._notify(hint, "warning")

    def _end_compacting(self, turn: Turn) -> None:
        """Tell of the summary, and ask what had no room before; or try with less of the past."""
        shorter = self._exchange.compact(is_shorter=True) if turn.is_full else None
        if shorter is not None:
            self._speak(shorter)
            return
        if turn.state == "complete":
            self._show_notice("Compacted: the whole conversation is in the branch before (Alt+←).")
            self._begin_turn(self._exchange.answer())
        else:
            self._show_path()
            self._show_notice(f"Not compacted: {turn.note}")

    # What the user does

    @on(Composer.Submitted)
    def _send(self, event: Composer.Submitted) -> None:
        text = write_message(event.text.strip(), self._attachments)
        if text and self._exchange.is_busy:
            self._notify("An answer is being written: Esc stops it.", "information")
        if not text or self._exchange.is_busy:
            return
        self._composer.write(self._draft)
        self._attachments = []
        edited, self._editing, self._draft = self._editing, None, ""
        self._show_notice("")
        if edited is None:
            self._begin_turn(self._exchange.ask(text))
        else:
            self._begin_turn(self._exchange.edit(edited.id, text))

    @on(Composer.AttachWanted)
    def _open_files(self) -> None:
        room = self._measure_room(self._attachments)
        self.query_one(AttachPicker).open(Path.cwd(), room, self._speaker.count_tokens)

    @on(AttachPicker.Picked)
    def _take_file(self, event: AttachPicker.Picked) -> None:
        self._attachments.append(event.attachment)
        self._composer.take_sign()
        self._show_attachments()

    @on(AttachPicker.Closed)
    def _end_attaching(self) -> None:
        self._composer.focus()

    def _measure_room(self, attachments: Sequence[Attachment]) -> int:
        """Tokens that another file may have: a quarter of what is free is left for the answer."""
        readings = self._gauge.readings
        taken = readings.context_tokens + sum(a.n_tokens for a in attachments)
        return max((readings.n_ctx or DEFAULT_CTX) - taken, 0) * 3 // 4

    @work(thread=True, group="recount")
    def _recount(self) -> None:
        """Count what was only estimated; what has no room in the real context comes off."""
        kept: list[Attachment] = []
        counted = list(self._attachments)
        for attachment in counted:
            try:
                room = self._measure_room(kept)
                kept.append(measure_attachment(attachment, room, self._speaker.count_tokens))
            except CascadeError as error:
                self.app.call_from_thread(self._notify, f"Taken off: {error}", "warning")
        self.app.call_from_thread(self._replace_attachments, counted, kept)

    def _replace_attachments(self, old: list[Attachment], new: list[Attachment]) -> None:
        if self._attachments:  # else they have been sent meanwhile
            self._attachments = new + [a for a in self._attachments if a not in old]
            self._show_attachments()

    def _show_attachments(self) -> None:
        parts = [describe_attachment(a) for a in self._attachments]
        attached = "Attached: " + ", ".join(parts) + ". Esc takes them off."
        self._show_notice(attached if parts else "")

    @on(Panel.Changed)
    def _change_manner(self, event: Panel.Changed) -> None:
        self._exchange.manner = event.manner
        self._read(mode=self._name_mode())

    def action_stop(self) -> None:
        """Stop the answer; or leave what was begun: finding, attaching, editing, a selection."""
        finder, picker = self.query_one(Finder), self.query_one(AttachPicker)
        if self._turn is not None and self._exchange.is_busy:
            self._turn.cancel()
        elif picker.display:
            picker.action_close()
        elif finder.display:
            finder.action_close()
        elif self._editing is not None or self._attachments:
            if self._editing is not None:
                self._composer.write(self._draft)
            self._draft, self._editing, self._attachments = "", None, []
            self._show_notice("")
        else:
            self._transcript.select_message(None)
            self._composer.focus()

    def action_answer_now(self) -> None:
        """Let the model end its thinking and answer."""
        self._speaker.answer_now()

    def action_regenerate(self) -> None:
        """Ask again for the selected answer, or the last, as a new branch."""
        message = self._choose()
        if message is not None and not self._exchange.is_busy:
            self._begin_turn(self._exchange.regenerate(message.id))

    def action_go_on(self) -> None:
        """Let the model go on where it was stopped."""
        path = self._exchange.conversation.path
        if self._exchange.is_busy or not path:
            return
        request = self._exchange.go_on()
        self._begin_turn(request or self._exchange.regenerate(path[-1].id))

    def action_compact(self) -> None:
        """Summarize all but the last exchange into a new branch."""
        if self._exchange.is_busy:
            return
        request = self._exchange.compact()
        if request is None:
            self._notify("There is too little to compact.", "information")
            return
        self._show_notice("Compacting …")
        self._speak(request)

    def action_edit(self) -> None:
        """Put the selected message, or the last question, into the line to write in."""
        message = self._choose("user") if self._transcript.selected is None else self._choose()
        if message is None or self._exchange.is_busy:
            return
        self._draft, self._editing = self.draft, message
        self._composer.write(message.text)
        self._show_notice("Editing: Enter sends it as a new branch, Esc leaves it as it is.")

    def action_open_editor(self) -> None:
        """Open what is being written, or the selected message, in the user's editor."""
        if self._transcript.selected is not None:
            self.action_edit()
        with self.app.suspend():
            text, problem = edit_text(self._composer.text)
        self._composer.write(text)
        if problem:
            self._notify(problem, "error")

    def action_turn_mode(self) -> None:
        """Change between thinking and answering at once."""
        manner = self._exchange.manner
        self._set_manner(replace(manner, thinking=not manner.thinking))

    def action_turn_budget(self) -> None:
        """Give the next answer more to think, up to no limit."""
        manner = self._exchange.manner
        larger = [b for b in BUDGETS if b and b > (manner.budget_tokens or 0)]
        is_last = manner.budget_tokens is not None and not larger
        self._set_manner(replace(manner, budget_tokens=None if is_last else larger[0]))

    async def action_toggle_panel(self) -> None:
        """Open or close the side panel; made only then, as the first paint would wait for it."""
        if self.query(Panel):
            await self.query_one(Panel).remove()
            self._composer.focus()
        else:
            panel = Panel(self._exchange.manner, id="panel")
            await self.query_one("#middle").mount(panel)
            panel.query_one("#field-thinking").focus()

    # How it is done

    def _begin_turn(self, request: ChatRequest | None) -> None:
        self._show_path()
        if request is not None:
            self._speak(request)

    def _speak(self, request: ChatRequest) -> None:
        self._n_code = 0
        self._read(is_busy=True, state="reading")
        self._turn = self.run_worker(self._speaker.speak(request), group="turn")

    def _set_manner(self, manner: Any) -> None:
        self._exchange.manner = manner
        for panel in self.query(Panel):
            panel.show(manner)
        self._read(mode=self._name_mode())

    def _name_mode(self) -> str:
        manner = self._exchange.manner
        if not manner.thinking:
            return "instruct"
        return f"thinking ≤ {manner.budget_tokens:,}" if manner.budget_tokens else "thinking"

    def _read(self, **readings: Any) -> None:
        self._gauge.readings = replace(self._gauge.readings, **readings)


def _describe(turn: Turn) -> Live:
    prompt = turn.prompt
    waiting = f"Reading {prompt.done:,} of {prompt.total:,} tokens" if prompt else "…"
    seconds = turn.thinking_s if turn.n_thinking else 0.0
    return Live(turn.n_thinking, seconds, turn.tokens_per_s, waiting)
