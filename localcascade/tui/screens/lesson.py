"""The chat with a tutor in it: help in levels, sealed thinking, problems to practise with."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual.binding import Binding, BindingType

from localcascade.chat.exchange import Exchange
from localcascade.chat.practice import Problem, find_problem, load_problems
from localcascade.chat.tutor import ATTEMPT, Level, Tutor, load_tutor
from localcascade.tui.screens.chat import ChatScreen
from localcascade.tui.speaker import ChatEngine
from localcascade.tui.widgets.composer import Composer

HELP_KEYS = "Alt+H hint · Alt+N next step · Alt+L solution"
TUTOR_NOTICE = f"Tutor: {HELP_KEYS} · Alt+R unseals thinking"
PRACTICE_NOTICE = f"Write your answer; Alt+A checks it. {HELP_KEYS}"


class LessonScreen(ChatScreen):
    """A conversation in which the model can be a tutor.

    Args:
        exchange: The conversation; its manner says whether there is a tutor.
        voice: The model behind it.
        title: Of the conversation; empty while there is none.
        notice: What the user should know at first.
        checks: Whether steps are marked as right or wrong; None where SymPy is installed.
        draft: What the user has begun to write.
        topic: Words to filter the practice problems with, which are shown at first; None shows
            the conversation.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("alt+t", "turn_tutor", "Tutor mode", id="lesson.tutor", priority=True),
        Binding("alt+h", "ask_help('hint')", "Hint", id="lesson.hint", priority=True),
        Binding("alt+n", "ask_help('step')", "Next step", id="lesson.step", priority=True),
        Binding(
            "alt+l", "ask_help('solution')", "Full solution", id="lesson.solution", priority=True
        ),
        Binding("alt+r", "reveal", "Unseal thinking", id="lesson.reveal", priority=True),
        Binding("alt+p", "practise", "Practice problems", id="lesson.practice", priority=True),
        Binding("alt+a", "check_attempt", "Check my answer", id="lesson.attempt", priority=True),
    ]

    def __init__(
        self,
        exchange: Exchange,
        voice: ChatEngine,
        title: str,
        notice: str = "",
        checks: bool | None = None,
        draft: str = "",
        topic: str | None = None,
    ) -> None:
        is_tutored = exchange.manner.tutor is not None
        notice = notice or TUTOR_NOTICE * is_tutored
        super().__init__(exchange, voice, title, notice, checks, draft)
        self._topic = topic

    def on_mount(self) -> None:
        """Show the problems first, if that is what was asked for."""
        if self._topic is not None:
            self.call_after_refresh(self.action_practise, self._topic)

    def action_turn_tutor(self) -> None:
        """Begin or end tutor mode; what is sealed stays sealed."""
        begins = self._exchange.manner.tutor is None
        self._set_tutor(load_tutor() if begins else None)
        self._show_notice(TUTOR_NOTICE if begins else "")

    def action_ask_help(self, level: Level) -> None:
        """Send what is being written, if anything, with the wish for a level of help."""
        composer = self.query_one(Composer)
        if not composer.text.strip() and not self._exchange.conversation.path:
            self._notify("Write a problem first, or choose one with Alt+P.", "information")
        elif not self._exchange.is_busy:
            wish = self._require_tutor().ask(level, composer.text)
            composer.post_message(Composer.Submitted(wish))

    def action_reveal(self) -> None:
        """Show the thinking of the selected or last answer, and let it be found."""
        message = self._choose(None if self._transcript.selected is not None else "assistant")
        index = self._find_index(message)
        if message is None or index is None or not message.is_sealed:
            self._notify("There is no sealed thinking here.", "information")
            return
        self._transcript.change(index, self._exchange.conversation.unseal(message.id))
        self._transcript.set_view(index, "all")

    def action_practise(self, topic: str = "") -> None:
        """Let the student choose a problem."""
        if not self._exchange.is_busy:
            from localcascade.tui.screens.practice import PracticeScreen

            screen = PracticeScreen(load_problems(), topic)
            self.app.push_screen(screen, self._begin_problem)

    def _begin_problem(self, problem: Problem | None) -> None:
        if problem is None or self._exchange.is_busy:
            return
        self._require_tutor()
        self._exchange.put(problem.text)
        self._show_path()
        self._show_notice(PRACTICE_NOTICE)

    def action_check_attempt(self) -> None:
        """Compare what is written with the answer of the problem, without the model."""
        composer = self.query_one(Composer)
        attempt = " ".join(composer.text.split())
        if find_problem(self._exchange.conversation.path) is None:
            self._notify("Only practice problems have answers: Alt+P.", "information")
        elif not attempt:
            self._notify("Write your answer first.", "information")
        elif not self._exchange.is_busy:
            composer.clear()
            self._exchange.put(f"{ATTEMPT}{attempt}")
            self._show_path()
            self._check_answers()

    def _require_tutor(self) -> Tutor:
        """The tutor, who is called if he is not there."""
        tutor = self._exchange.manner.tutor or load_tutor()
        if self._exchange.manner.tutor is None:
            self._set_tutor(tutor)
        return tutor

    def _set_tutor(self, tutor: Tutor | None) -> None:
        self._set_manner(replace(self._exchange.manner, tutor=tutor))

    def _name_mode(self) -> str:
        mode = super()._name_mode()
        return f"tutor, {mode}" if self._exchange.manner.tutor is not None else mode
