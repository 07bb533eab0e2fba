"""A conversation as it is read: moving over its messages, finding, copying, checking steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Final

from textual import events, on
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static

from localcascade.chat.blocks import find_code
from localcascade.chat.card import CHECKS_VIEWS, ChecksView
from localcascade.chat.checking import HOW_TO_INSTALL
from localcascade.chat.controls import make_safe
from localcascade.chat.conversation import Message
from localcascade.chat.exchange import Exchange
from localcascade.chat.search import Match, find_matches
from localcascade.tui import checker
from localcascade.tui.clipboard import copy_text
from localcascade.tui.widgets.composer import Composer
from localcascade.tui.widgets.finder import Finder
from localcascade.tui.widgets.transcript import Entry, Transcript

_CHECKS_NOTES: Final[Mapping[ChecksView, str]] = MappingProxyType(
    {
        "off": "Steps are not marked.",
        "line": "Below each answer: how many steps are right, and those that are wrong.",
        "all": "Below each answer: every step that was found.",
    }
)


class ReadingScreen(Screen[None]):
    """Lets the user read a conversation, whoever writes it.

    Whoever inherits puts the transcript, a Finder, a Composer and a Static `notice` on the screen.

    Args:
        exchange: The conversation.
        checks: Whether steps are marked as right or wrong; None where SymPy is installed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f7", "toggle_source", "Formulas as source", id="chat.source", priority=True),
        Binding("alt+s", "turn_checks", "Checked steps", id="chat.checks", priority=True),
        Binding("ctrl+t", "turn_thinking", "Show thinking", id="chat.thinking", priority=True),
        Binding("alt+up", "select(-1)", "Message above", id="chat.above", priority=True),
        Binding("alt+down", "select(1)", "Message below", id="chat.below", priority=True),
        Binding("alt+left", "walk(-1)", "Branch before", id="chat.branch_before", priority=True),
        Binding("alt+right", "walk(1)", "Next branch", id="chat.branch_next", priority=True),
        Binding("ctrl+y", "copy_message", "Copy message", id="chat.copy", priority=True),
        Binding("alt+c", "copy_code", "Copy code", id="chat.copy_code", priority=True),
        Binding("ctrl+f", "find", "Find", id="chat.find", priority=True),
        Binding("pageup", "page(-1)", "Read up", id="chat.page_up", priority=True),
        Binding("pagedown", "page(1)", "Read down", id="chat.page_down", priority=True),
    ]

    def __init__(self, exchange: Exchange, checks: bool | None = None) -> None:
        super().__init__()
        self._exchange = exchange
        self._transcript = Transcript(id="transcript")
        self._matches: list[Match] = []
        self._match = 0
        self._n_code = 0
        self._checker = checker.Checker(self)
        is_wanted = checker.has_algebra() if checks is None else checks
        self._checks: ChecksView = "line" if is_wanted else "off"

    def on_mount(self) -> None:
        """Show as much of what is found about steps as was asked for."""
        self._transcript.show_checks(self._checks)

    def on_unmount(self) -> None:
        """End what compares."""
        self._checker.close()

    def on_key(self, event: events.Key) -> None:
        """Let what is typed while the conversation has the keys be written."""
        if self.focused is self._transcript and event.is_printable:
            composer = self.query_one(Composer).focus()
            composer.post_message(events.Key(event.key, event.character))

    def on_paste(self, event: events.Paste) -> None:
        """Let what is pasted while the conversation has the keys be written."""
        if self.focused is self._transcript:
            self.query_one(Composer).focus().insert(event.text)

    @on(Transcript.Clicked)
    def _open_clicked(self, event: Transcript.Clicked) -> None:
        message = self._transcript.entries[event.index].message
        if message.open_thinking or message.role == "user":
            self._transcript.turn_view(event.index)

    def action_select(self, step: int) -> None:
        """Move the cursor over the messages."""
        n_messages = len(self._transcript.entries)
        at = self._transcript.selected
        index = (n_messages if at is None else at) + step
        self._n_code = 0
        self._transcript.select_message(max(index, 0) if index < n_messages else None)

    def action_walk(self, step: int) -> None:
        """Go to the branch beside the selected message's, or the nearest fork above the end."""
        conversation = self._exchange.conversation
        message = self._choose() if self._transcript.selected is not None else None
        if message is None and conversation.leaf is not None:
            message = conversation.find(
                conversation.leaf, lambda m: conversation.count_branches(m.id)[1] > 1
            )
        if message is None or self._exchange.is_busy or not conversation.walk(message.id, step):
            return
        self._show_path()
        self._check_answers()

    def action_turn_thinking(self) -> None:
        """Show the thinking of the selected or last answer as a line, its tail, or all."""
        message = self._choose(None if self._transcript.selected is not None else "assistant")
        index = self._find_index(message)
        if message is not None and message.is_sealed and message.thinking:
            self._notify("The thinking is sealed. Alt+R shows it.", "information")
        elif index is not None:
            self._transcript.turn_view(index)

    def action_toggle_source(self) -> None:
        """Show formulas as LaTeX, or laid out."""
        self._transcript.show_source(not self._transcript.look.shows_source)

    def action_turn_checks(self) -> None:
        """Show nothing, a line, or all of what was found about the steps of answers."""
        at = CHECKS_VIEWS.index(self._checks)
        self._checks = CHECKS_VIEWS[(at + 1) % len(CHECKS_VIEWS)]
        self._transcript.show_checks(self._checks)
        self._check_answers()
        self._notify(_CHECKS_NOTES[self._checks], "information")
        if self._checks == "line" and not checker.has_algebra():
            self._notify(HOW_TO_INSTALL, "warning")

    def _check_answers(self) -> None:
        """Check what is new, in a thread; the attempts of a student whatever is shown."""
        path, only_attempts = self._exchange.conversation.path, self._checks == "off"
        check = partial(self._checker.check, path, only_attempts=only_attempts)
        self.run_worker(check, group="check", thread=True, exclusive=True)

    @on(checker.AnswerChecked)
    def _show_findings(self, event: checker.AnswerChecked) -> None:
        self._transcript.show_findings(event.id, event.findings)

    def action_copy_message(self) -> None:
        """Copy the selected message, or the last answer, as it was written."""
        message = self._choose(None if self._transcript.selected is not None else "assistant")
        if message is not None:
            self._copy(message.text, "message")

    def action_copy_code(self) -> None:
        """Copy the last block of code of a message; again, the one before it."""
        message = self._choose(None if self._transcript.selected is not None else "assistant")
        blocks = find_code(message.text) if message is not None else []
        if not blocks:
            self._notify("There is no code in this message.", "information")
            return
        self._n_code = self._n_code % len(blocks) + 1
        self._copy(blocks[-self._n_code], "code")

    def action_find(self) -> None:
        """Open the line to look for words in."""
        self.query_one(Finder).open()

    def action_page(self, step: int) -> None:
        """Scroll by most of a screen."""
        transcript = self._transcript
        transcript.scroll_relative(y=step * (transcript.size.height - 2), animate=False)

    @on(Finder.Wanted)
    def _find(self, event: Finder.Wanted) -> None:
        if event.step == 0:
            self._matches = find_matches(self._exchange.conversation.path, event.query)
            self._match = len(self._matches)
            self._transcript.mark_matches(event.query)
        step = event.step or -1
        if self._matches:
            self._match = (self._match + step) % len(self._matches)
            match = self._matches[self._match]
            self._transcript.show_match(match.index, event.query, match.number)
        self.query_one(Finder).show_count(self._match + 1, len(self._matches))

    @on(Finder.Closed)
    def _end_finding(self) -> None:
        self._transcript.mark_matches("")
        self.query_one(Composer).focus()

    def _show_path(self) -> None:
        conversation = self._exchange.conversation
        self._transcript.show_path(
            [Entry(m, conversation.count_branches(m.id)) for m in conversation.path]
        )

    def _choose(self, role: str | None = None) -> Message | None:
        """The selected message, or the last one of a role."""
        entries = self._transcript.entries
        if self._transcript.selected is not None:
            return entries[self._transcript.selected].message
        fitting = [e.message for e in entries if role is None or e.message.role == role]
        return fitting[-1] if fitting else None

    def _find_index(self, message: Message | None) -> int | None:
        ids = [entry.message.id for entry in self._transcript.entries]
        return ids.index(message.id) if message is not None else None

    def _copy(self, text: str, what: str) -> None:
        self.run_worker(self._copy_everywhere(text, what), group="copy")

    async def _copy_everywhere(self, text: str, what: str) -> None:
        ways = await copy_text(self.app, text)
        told = f"Copied the {what}: {len(text):,} characters."
        missing = "Too long for this terminal, and no program for the clipboard was found."
        self._notify(told if ways else missing, "information" if ways else "warning")

    def _show_notice(self, text: str) -> None:
        notice = self.query_one("#notice", Static)
        notice.update(make_safe(text))
        notice.display = bool(text)

    def _notify(self, text: str, severity: Any) -> None:
        self.notify(make_safe(text), severity=severity, markup=False, timeout=6)
