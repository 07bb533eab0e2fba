"""The tutor, the practice problems and the checked steps, by their keys."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from localcascade.chat.composition import Manner
from localcascade.chat.conversation import Conversation, MemoryJournal, Message
from localcascade.chat.tutor import load_tutor
from localcascade.prompt.events import Delta
from localcascade.tui import checker
from localcascade.tui.actions import list_actions
from localcascade.tui.app import ChatApp
from localcascade.tui.opening import Opening, Preferences
from localcascade.tui.screens.lesson import LessonScreen
from localcascade.tui.screens.practice import PracticeScreen
from localcascade.tui.widgets.composer import Composer
from localcascade.tui.widgets.finder import Finder
from localcascade.tui.widgets.gauge import Gauge
from localcascade.tui.widgets.transcript import Transcript
from tests.localcascade.idleness import LIMIT_S
from tests.localcascade.scripted_engine import (
    ScriptedEngine,
    ScriptedSource,
    end,
    think_and_say,
)
from tests.localcascade.shelves import settle, wait_until

pytestmark = pytest.mark.asyncio

TUTOR = load_tutor()
THOUGHT = "The roots are two and three.\nI must not say so.\n"
STEPS = "First $2 + 3 = 5$, then $5 \\cdot 4 = 21$, so $x = 7$."


def open_lesson(
    *scripts: Sequence[object],
    messages: Sequence[Message] = (),
    tutored: bool = True,
    checks: bool | None = None,
    topic: str | None = None,
    keys: Mapping[str, str] = MappingProxyType({}),
) -> tuple[ChatApp, ScriptedEngine]:
    engine = ScriptedEngine(list(scripts or [[end()]]))  # type: ignore[arg-type]
    manner = Manner(tutor=TUTOR if tutored else None)
    opening = Opening(Conversation(MemoryJournal(), messages), "scripted", engine)
    preferences = Preferences(keys=keys, manner=manner, checks=checks)
    return ChatApp(ScriptedSource(engine), opening, preferences, topic=topic), engine


async def wait_for(pilot: Pilot[None], text: str) -> str:
    """Wait until the conversation shows a text, which a thread may take a while to find."""
    await wait_until(pilot, lambda: text in read_screen(pilot.app))
    return read_screen(pilot.app)


async def say(pilot: Pilot[None], text: str) -> None:
    pilot.app.screen.query_one(Composer).insert(text)
    await pilot.press("enter")
    await settle(pilot)


def read_screen(app: App[None]) -> str:
    transcript = app.screen.query_one(Transcript)
    return "\n".join(transcript.render_line(y).text.rstrip() for y in range(transcript.size.height))


def read_texts(app: App[None]) -> list[str]:
    return [entry.message.text for entry in app.screen.query_one(Transcript).entries]


def read_notice(app: App[None]) -> str:
    notice = app.screen.query_one("#notice", Static)
    return str(notice.content) if notice.display else ""


# The tutor


async def test_levels_of_help_are_asked_for_by_keys() -> None:
    app, engine = open_lesson(think_and_say(THOUGHT, "What is 2 times 3?"))
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        assert "Alt+H" in read_notice(app)
        assert app.screen.query_one(Gauge).readings.mode == "tutor, thinking"
        app.screen.query_one(Composer).insert("Solve $x^2 - 5x + 6 = 0$.")
        await pilot.press("alt+h")
        await settle(pilot)
        await pilot.press("alt+n")
        await settle(pilot)
        await pilot.press("alt+l")
        await settle(pilot)
        wishes = [TUTOR.helps[level].wish for level in ("hint", "step", "solution")]
        assert read_texts(app)[::2] == [f"Solve $x^2 - 5x + 6 = 0$.\n\n{wishes[0]}", *wishes[1:]]
        systems = {request.messages[0]["content"] for request in engine.requests}
        assert systems == {TUTOR.system}


async def test_there_is_no_help_without_a_problem() -> None:
    app, engine = open_lesson(tutored=False)
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("alt+h")
        await settle(pilot)
        assert (engine.requests, read_texts(app)) == ([], [])


async def test_thinking_is_sealed_until_it_is_revealed() -> None:
    app, _ = open_lesson(think_and_say(THOUGHT, "What is 2 times 3?"))
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "Solve it")
        screen = read_screen(app)
        assert "▪ Thought 8 tokens · sealed" in screen and "roots" not in screen
        await pilot.press("ctrl+t")
        await settle(pilot)
        assert "roots" not in read_screen(app)
        await pilot.press("ctrl+f", *"roots")
        assert app.screen.query_one(Finder).query_one("#finder-count", Static).content == " nothing"
        await pilot.press("escape", "alt+r")
        await settle(pilot)
        assert "▾ Thought" in (screen := read_screen(app)) and "The roots are two" in screen
        await pilot.press("ctrl+f", *"roots")
        await settle(pilot)
        assert app.screen.query_one(Finder).query_one("#finder-count", Static).content == " 1 / 1"


async def test_sealed_thinking_is_not_shown_while_it_comes() -> None:
    app, engine = open_lesson([Delta(THOUGHT, "thinking"), None, Delta("Hm?", "answer"), end()])
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "Solve it")
        assert "▪ Thinking" in (screen := read_screen(app)) and "roots" not in screen
        await pilot.press("alt+r")
        assert "The roots are two" in read_screen(app)
        engine.chats[0].release()
        await settle(pilot)
        assert "The roots are two" in (screen := read_screen(app)) and "Hm?" in screen


async def test_tutor_mode_is_turned_on_and_off() -> None:
    app, engine = open_lesson(think_and_say(THOUGHT, "6"), tutored=False)
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "plain")
        assert "▸ Thought" in read_screen(app)
        await pilot.press("alt+t")
        await say(pilot, "taught")
        await pilot.press("alt+t")
        assert app.screen.query_one(Gauge).readings.mode == "thinking"
        await say(pilot, "plain again")
        has_tutor = [r.messages[0]["role"] == "system" for r in engine.requests]
        assert has_tutor == [False, True, False]
        screen = read_screen(app)
        assert (screen.count("▪ Thought"), screen.count("▸ Thought")) == (1, 2)


async def test_a_tutored_conversation_is_opened_again_as_one() -> None:
    messages = [
        Message("1", None, "user", "Solve it"),
        Message("2", "1", "assistant", "What is 2 times 3?", THOUGHT, is_sealed=True),
    ]
    app, engine = open_lesson(messages=messages, tutored=False)
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        assert "sealed" in (screen := read_screen(app)) and "roots" not in screen
        await pilot.press("alt+n")
        await settle(pilot)
        assert engine.requests[0].messages[0]["content"] == TUTOR.system


# Practice


async def choose_problem(pilot: Pilot[None], query: str) -> None:
    await pilot.press("alt+p")
    await settle(pilot)
    pilot.app.screen.query_one(Input).value = query
    await settle(pilot)
    await pilot.press("enter")
    await settle(pilot)


async def test_a_problem_is_chosen_and_an_answer_compared_without_the_model() -> None:
    app, engine = open_lesson(think_and_say("", "Begin with 3."), tutored=False)
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await choose_problem(pilot, "347")
        assert read_texts(app) == ["What is $347 + 586 - 129$?"]
        assert "Alt+A" in read_notice(app) and not engine.requests
        app.screen.query_one(Composer).insert("805")
        await pilot.press("alt+a")
        await wait_for(pilot, "answer ✗ wrong")
        app.screen.query_one(Composer).insert("x = 804")
        await pilot.press("alt+a")
        await wait_for(pilot, "answer ✓ right")
        assert read_texts(app)[1:] == ["My answer: 805", "My answer: x = 804"]
        assert not engine.requests
        await pilot.press("alt+h")
        await settle(pilot)
        question = engine.requests[0].messages[1]["content"]
        assert question.startswith("What is $347") and question.endswith(TUTOR.helps["hint"].wish)
        assert engine.requests[0].messages[0]["content"] == TUTOR.system


async def test_an_attempt_needs_a_problem() -> None:
    app, _ = open_lesson()
    async with app.run_test() as pilot:
        await settle(pilot)
        app.screen.query_one(Composer).insert("805")
        await pilot.press("alt+a")
        await settle(pilot)
        assert (read_texts(app), app.screen.query_one(Composer).text) == ([], "805")


async def test_the_problems_are_filtered_and_left() -> None:
    app, _ = open_lesson(topic="derivatives")
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, PracticeScreen)
        rows = app.screen.query_one(OptionList)
        hint = app.screen.query_one("#practice-hint", Static)
        assert (rows.option_count, str(hint.content)[:7]) == (9, "8 of 95")
        assert rows.highlighted == 1
        await pilot.press("up")
        assert rows.highlighted == 8  # past the heading, to the end
        app.screen.query_one(Input).value = "nowhere"
        await settle(pilot)
        assert (rows.option_count, str(hint.content)) == (0, "There is none.")
        await pilot.press("enter")
        assert isinstance(app.screen, PracticeScreen)
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, LessonScreen) and read_texts(app) == []


# Checked steps


async def test_steps_are_marked_and_the_text_stays() -> None:
    app, _ = open_lesson(think_and_say("", STEPS), tutored=False, checks=True)
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "Go")
        screen = await wait_for(pilot, "✗ 1 wrong")
        assert "✓ 1 step right · ✗ 1 wrong · ? 1 not checked" in screen
        assert "✗ 5 · 4 = 21" in screen and "? x = 7" not in screen
        assert read_texts(app)[1].rstrip() == STEPS
        await pilot.press("alt+s")
        assert "? x = 7" in read_screen(app)
        await pilot.press("alt+s")
        assert "wrong" not in read_screen(app)
        await pilot.press("alt+s")
        assert "✗ 1 wrong" in read_screen(app)


async def test_checking_does_not_hold_up_the_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate, begun = threading.Event(), threading.Event()
    check = checker.check_task

    def check_late(*args: object) -> object:
        begun.set()
        gate.wait(LIMIT_S)
        return check(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checker, "check_task", check_late)
    app, _ = open_lesson(think_and_say("", STEPS), tutored=False, checks=True)
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "Go")
        assert await asyncio.to_thread(begun.wait, LIMIT_S)
        await pilot.press("a", "b")
        assert app.screen.query_one(Composer).text == "ab"
        assert "wrong" not in read_screen(app)
        gate.set()
        await wait_for(pilot, "✗ 1 wrong")


async def test_without_sympy_steps_are_marked_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localcascade.maths.algebra.find_spec", lambda name: None)
    monkeypatch.setattr("localcascade.tui.checker.find_spec", lambda name: None)
    text = "$2 + 3 = 6$ and $(x + 1)^2 = x^2 + 2x + 1$"
    app, _ = open_lesson(think_and_say("", text), tutored=False)
    async with app.run_test(size=(80, 30), notifications=True) as pilot:
        await say(pilot, "Go")
        await settle(pilot)
        assert "wrong" not in read_screen(app)
        await pilot.press("alt+s")
        await wait_for(pilot, "✗ 1 step wrong · ? 1 not checked")
        told = [str(note.message) for note in app._notifications]
        assert any("pip install 'localcascade[maths]'" in text for text in told)


async def test_every_key_is_in_help_and_palette() -> None:
    app, _ = open_lesson()
    async with app.run_test() as pilot:
        await settle(pilot)
        listed = {action.id: action.group for action in list_actions(app.screen)}
        names = ("tutor", "hint", "step", "solution", "reveal", "practice", "attempt")
        assert {listed[f"lesson.{name}"] for name in names} == {"Tutor and practice"}
        assert listed["chat.checks"] == "Conversation"


async def test_keys_of_the_lesson_can_be_changed() -> None:
    app, engine = open_lesson(think_and_say("", "What is 2 times 3?"), keys={"lesson.hint": "f12"})
    async with app.run_test() as pilot:
        app.screen.query_one(Composer).insert("Solve it")
        await pilot.press("alt+h")
        await settle(pilot)
        assert not engine.requests
        await pilot.press("f12")
        await settle(pilot)
        assert engine.requests[0].messages[-1]["content"].endswith(TUTOR.helps["hint"].wish)
